//! The MLA block of a layer (multi-head latent attention), in its absorbed form: attention reads the cached latents.
//!
//! W_k and W_v are the parts of a head's up-projection of the latent c. For a query q and attention weights p:
//!
//! ```text
//! q . (W_k c)       = (W_k^T q) . c          to_latent: queries move to the latent space
//! sum p_i (W_v c_i) = W_v (sum p_i c_i)      to_value: results move back
//!
//! row of the cache, and of each head's query    [ latent: kv_lora_rank | rope part: qk_rope_head_dim ]
//! row of each head before                       [ qk_nope_head_dim     | rope part: qk_rope_head_dim ]
//! ```
//!
//! Keys and values of heads are never computed. Prefill and decode compute the same sums.

use octavo_kernels as k;
use octavo_kernels::{Kernels, Linear, MlaCache, MlaParams, QuantizedRows, RmsNorm};

use super::adapters::AtSite;
use super::batch::Batch;
use super::model::{Model, project};
use super::scratch::{Scratch, take};
use crate::adapter::Site;
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
        let at = |site| AtSite::new(batch.adapters, layer.index, site);
        let heads = take(&mut s.qkv_gate_up, rows * a.heads * head_dim);
        match &weights.q_a {
            Some((down, norm)) => {
                let q_latent = take(&mut b.q_latent, rows * norm.len());
                project(kernels, down, input, rows, q_latent, at(Site::QA), &mut s.projection);
                k::rms_norm_heads(kernels, q_latent, norm.len(), 1, latent_norm(norm));
                project(kernels, &weights.q, q_latent, rows, heads, at(Site::Q), &mut s.projection);
            }
            None => project(kernels, &weights.q, input, rows, heads, at(Site::Q), &mut s.projection),
        }
        let new = take(&mut b.new, rows * width);
        project(kernels, &weights.kv_a, input, rows, new, at(Site::KvA), &mut s.projection);
        k::rms_norm_heads(kernels, new, width, 1, latent_norm(&weights.kv_a_norm));
        let table = self.rope_table(&s.ropes, a.rope);
        let key = k::RopeLayout { stride: width, heads: 1, head_dim: a.qk_rope_head_dim };
        k::rope(kernels, &mut new[a.kv_lora_rank..], key, &s.rows, table);
        cache.write(new, batch.slots);

        let rotated = take(&mut b.rotated, rows * a.heads * a.qk_rope_head_dim);
        let q = take(&mut b.q, rows * a.heads * width);
        rotate_queries(kernels, a, heads, &s.rows, table, rotated, q);
        per_head(kernels, &weights.to_latent, rows, heads, q, &mut b.head, &mut s.projection.quantized);
        let params = MlaParams { heads: a.heads, value_width: a.kv_lora_rank, scale: a.scale };
        let out = take(&mut b.out, rows * a.heads * a.kv_lora_rank);
        k::mla_attention(kernels, cache, q, batch.seqs, params, out);
        let values = take(&mut s.intermediate, rows * a.heads * a.v_head_dim);
        per_head(kernels, &weights.to_value, rows, out, values, &mut b.head, &mut s.projection.quantized);
        project(kernels, &weights.o, values, rows, block_out, at(Site::O), &mut s.projection);
        self.add_block_out(kernels, layer.attention_post_norm.as_deref(), block_out, x);
    }
}

/// Writes the rope parts of `heads` `[T, heads, nope + rope]`, rotated, into those of `q` `[T, heads, latent + rope]`.
fn rotate_queries(
    kernels: &Kernels,
    a: &MlaSpec,
    heads: &[f32],
    rows: &[u32],
    table: k::RopeTable<'_>,
    rotated: &mut [f32],
    q: &mut [f32],
) {
    let rope = a.qk_rope_head_dim;
    let head_dim = a.qk_nope_head_dim + rope;
    for (to, head) in rotated.chunks_exact_mut(rope).zip(heads.chunks_exact(head_dim)) {
        to.copy_from_slice(&head[a.qk_nope_head_dim..]);
    }
    let layout = k::RopeLayout { stride: a.heads * rope, heads: a.heads, head_dim: rope };
    k::rope(kernels, rotated, layout, rows, table);
    for (to, rotated) in q.chunks_exact_mut(a.kv_lora_rank + rope).zip(rotated.chunks_exact(rope)) {
        to[a.kv_lora_rank..].copy_from_slice(rotated);
    }
}

/// Projects the first `in_features` channels of each head of `from` `[T, heads, _]` with the head's own matrix to the
/// first `out_features` of `to` `[T, heads, _]`. `head` holds one head of all rows.
fn per_head(
    kernels: &Kernels,
    weights: &[Linear],
    rows: usize,
    from: &[f32],
    to: &mut [f32],
    head: &mut Vec<f32>,
    quantized: &mut QuantizedRows,
) {
    if rows == 0 {
        return;
    }
    let (from_stride, to_stride) = (from.len() / rows, to.len() / rows);
    let (from_dim, to_dim) = (from_stride / weights.len(), to_stride / weights.len());
    for (h, weight) in weights.iter().enumerate() {
        let head = take(head, rows * weight.in_features());
        gather(from, from_stride, h * from_dim, weight.in_features(), head);
        weight.forward_strided(kernels, head, rows, None, &mut to[h * to_dim..], to_stride, quantized);
    }
}

/// Copies `width` values from channel `start` of each row, rows `stride` apart.
fn gather(from: &[f32], stride: usize, start: usize, width: usize, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
        to.copy_from_slice(&from[start..start + width]);
    }
}
