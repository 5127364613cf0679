//! The latent attention block of a layer, in its absorbed form: what is cached is what attention reads.
//!
//! With W_k and W_v the parts of a head's up-projection of the latent c, q . (W_k c) = (W_k^T q) . c and the sum of weights
//! times W_v c is W_v times the weighted sum of c. So queries go into the space of the latents and results come back from
//! it, and no key or value of a head is ever formed. Prefill and decode compute the same sums.

use octavo_kernels as k;
use octavo_kernels::{Kernels, MlaCache, MlaParams, RmsNorm};

use super::batch::Batch;
use super::model::{Model, project};
use super::scratch::{Scratch, take};
use crate::spec::MlaSpec;
use crate::weights::{LayerWeights, MlaWeights};

impl Model {
    /// x += o(attention(norm(x))) over latents; norms stand where the spec places them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn mla(
        &self,
        kernels: &Kernels,
        a: &MlaSpec,
        layer: &LayerWeights,
        weights: &MlaWeights,
        cache: &mut MlaCache,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let (head_dim, width) =
            (a.qk_nope_head_dim + a.qk_rope_head_dim, a.kv_lora_rank + a.qk_rope_head_dim);
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let block_out = take(&mut s.block_out, rows * hidden);
        let input: &[f32] = match &layer.attention_norm {
            Some(weight) => {
                self.normalize(kernels, weight, x, normed);
                normed
            }
            None => x,
        };
        let b = &mut s.mla;
        let latent_norm = |weight| RmsNorm { weight, eps: a.norm_eps, offset: 0.0 };
        let heads = take(&mut s.qkv_gate_up, rows * a.heads * head_dim);
        match &weights.q_a {
            Some((down, norm)) => {
                let q_latent = take(&mut b.q_latent, rows * norm.len());
                project(kernels, down, input, rows, q_latent, &mut s.quantized);
                k::rms_norm_heads(kernels, q_latent, norm.len(), 1, latent_norm(norm));
                project(kernels, &weights.q, q_latent, rows, heads, &mut s.quantized);
            }
            None => project(kernels, &weights.q, input, rows, heads, &mut s.quantized),
        }
        let new = take(&mut b.new, rows * width);
        project(kernels, &weights.kv_a, input, rows, new, &mut s.quantized);
        k::rms_norm_heads(kernels, new, width, 1, latent_norm(&weights.kv_a_norm));
        let table = self.rope_table(&s.ropes, a.rope);
        let key = k::RopeLayout { stride: width, heads: 1, head_dim: a.qk_rope_head_dim };
        k::rope(kernels, &mut new[a.kv_lora_rank..], key, &s.rows, table);
        cache.write(new, batch.slots);

        let turned = take(&mut b.turned, rows * a.heads * a.qk_rope_head_dim);
        for (to, head) in turned.chunks_exact_mut(a.qk_rope_head_dim).zip(heads.chunks_exact(head_dim)) {
            to.copy_from_slice(&head[a.qk_nope_head_dim..]);
        }
        let query = k::RopeLayout {
            stride: a.heads * a.qk_rope_head_dim,
            heads: a.heads,
            head_dim: a.qk_rope_head_dim,
        };
        k::rope(kernels, turned, query, &s.rows, table);
        let q = take(&mut b.q, rows * a.heads * width);
        for (to, turned) in q.chunks_exact_mut(width).zip(turned.chunks_exact(a.qk_rope_head_dim)) {
            to[a.kv_lora_rank..].copy_from_slice(turned);
        }
        for (h, to_latent) in weights.to_latent.iter().enumerate() {
            let head = take(&mut b.head, rows * a.qk_nope_head_dim);
            gather(heads, a.heads * head_dim, h * head_dim, a.qk_nope_head_dim, head);
            let to = &mut q[h * width..];
            to_latent.forward_strided(kernels, head, rows, None, to, a.heads * width, &mut s.quantized);
        }
        let params = MlaParams { heads: a.heads, value_width: a.kv_lora_rank, scale: a.scale };
        let out = take(&mut b.out, rows * a.heads * a.kv_lora_rank);
        k::mla_attention(kernels, cache, q, batch.seqs, params, out);
        let values = take(&mut s.intermediate, rows * a.heads * a.v_head_dim);
        for (h, to_value) in weights.to_value.iter().enumerate() {
            let head = take(&mut b.head, rows * a.kv_lora_rank);
            gather(out, a.heads * a.kv_lora_rank, h * a.kv_lora_rank, a.kv_lora_rank, head);
            let to = &mut values[h * a.v_head_dim..];
            to_value.forward_strided(kernels, head, rows, None, to, a.heads * a.v_head_dim, &mut s.quantized);
        }
        project(kernels, &weights.o, values, rows, block_out, &mut s.quantized);
        self.add_block_out(kernels, layer.attention_post_norm.as_deref(), block_out, x);
    }
}

/// Copies `width` values from place `start` of each row, rows `stride` apart.
fn gather(from: &[f32], stride: usize, start: usize, width: usize, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
        to.copy_from_slice(&from[start..start + width]);
    }
}
