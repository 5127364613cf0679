//! The attention block of a layer.

use octavo_kernels as k;
use octavo_kernels::{AttentionParams, Kernels};

use super::{Batch, Model, Scratch, project, take};
use crate::spec::LayerSpec;
use crate::weights::LayerWeights;

impl Model {
    /// x += o(attention(qkv(norm(x)))).
    pub(super) fn attention(
        &self,
        kernels: &Kernels,
        layer: &LayerSpec,
        weights: &LayerWeights,
        cache: &mut k::KvLayer,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        let a = &layer.attention;
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let width = q_width + 2 * kv_width;
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let qkv = take(&mut s.wide, rows * width);
        k::rms_norm(kernels, x, self.norm(&weights.attention_norm), normed);
        project(kernels, &weights.qkv, normed, rows, qkv, &mut s.quantized);
        if let Some((q_norm, k_norm)) = &weights.qk_norm {
            k::rms_norm_heads(kernels, qkv, width, a.heads, self.norm(q_norm));
            k::rms_norm_heads(kernels, &mut qkv[q_width..], width, a.kv_heads, self.norm(k_norm));
        }
        if let Some(rope) = a.rope {
            let table = k::RopeTable {
                cos: &s.ropes[rope].cos,
                sin: &s.ropes[rope].sin,
                rotary_dim: self.spec.ropes[rope].rotary_dim,
                style: k::RopeStyle::Half,
            };
            // The table holds a row for each row of the batch. q and k lie side by side and turn alike.
            let layout = k::RopeLayout { stride: width, heads: a.heads + a.kv_heads, head_dim: a.head_dim };
            k::rope(kernels, qkv, layout, &s.rows, table);
        }
        let (new_k, new_v) = (&qkv[q_width..], &qkv[q_width + kv_width..]);
        k::write_kv(kernels, cache, new_k, width, new_v, width, batch.slots);
        let params = AttentionParams {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            window: a.window,
            softcap: a.softcap,
        };
        let out = take(&mut s.inner, rows * q_width);
        k::paged_attention(kernels, cache, qkv, width, batch.seqs, &params, out);
        project(kernels, &weights.o, out, rows, normed, &mut s.quantized);
        k::add_assign(kernels, x, normed);
    }
}
