//! The multi-head attention block of a layer.

use octavo_kernels as k;
use octavo_kernels::{AttentionParams, Kernels};

use super::adapters::AtSite;
use super::batch::Batch;
use super::model::{Model, project};
use super::scratch::{Scratch, take};
use crate::adapter::Site;
use crate::spec::GqaSpec;
use crate::weights::{GqaWeights, LayerWeights};

impl Model {
    /// x += o(attention(qkv(norm(x)))); norms stand where the spec places them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn gqa(
        &self,
        kernels: &Kernels,
        a: &GqaSpec,
        layer: &LayerWeights,
        weights: &GqaWeights,
        cache: &mut k::KvLayer,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let width = q_width + 2 * kv_width;
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let block_out = take(&mut s.block_out, rows * hidden);
        let qkv = take(&mut s.qkv_gate_up, rows * width);
        let input: &[f32] = match &layer.attention_norm {
            Some(weight) => {
                self.normalize(kernels, weight, x, normed);
                normed
            }
            None => x,
        };
        let at = |site| AtSite::new(batch.adapters, layer.index, site);
        project(kernels, &weights.qkv, input, rows, qkv, at(Site::Qkv), &mut s.projection);
        if let Some((q_norm, k_norm)) = &weights.qk_norm {
            // A norm over all heads is one over a single wide head.
            let (q_heads, k_heads) = (q_width / q_norm.len(), kv_width / k_norm.len());
            k::rms_norm_heads(kernels, qkv, width, q_heads, self.norm(q_norm));
            k::rms_norm_heads(kernels, &mut qkv[q_width..], width, k_heads, self.norm(k_norm));
        }
        if let Some(rope) = a.rope {
            // The table holds a row for each row of the batch. q and k lie side by side and turn alike.
            let layout = k::RopeLayout { stride: width, heads: a.heads + a.kv_heads, head_dim: a.head_dim };
            k::rope(kernels, qkv, layout, &s.rows, self.rope_table(&s.ropes, rope));
        }
        let (new_k, new_v) = (&qkv[q_width..], &qkv[q_width + kv_width..]);
        k::write_kv(kernels, cache, new_k, width, new_v, width, batch.slots);
        if !batch.sealed.is_empty() {
            k::seal_blocks(kernels, cache, batch.sealed);
        }
        let params = AttentionParams {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            window: a.window,
            softcap: a.softcap,
        };
        let out = take(&mut s.intermediate, rows * q_width);
        let selection = s.selector.as_mut().map(k::Selector::selection);
        k::paged_attention(kernels, cache, qkv, width, batch.seqs, &params, selection, out);
        project(kernels, &weights.o, out, rows, block_out, at(Site::O), &mut s.projection);
        self.add_block_out(kernels, layer.attention_post_norm.as_deref(), block_out, x);
    }
}
