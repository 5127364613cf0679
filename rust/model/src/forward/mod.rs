//! The forward pass on the CPU: one flat batch of tokens through all layers.
//!
//! The residual stream, norms, rope and softmax are f32; matmuls read weights as they are stored. Every row's result
//! depends on its own sequence alone (see the kernels), so batching and chunking change no bit.

mod adapters;
mod attach;
mod batch;
mod gqa;
mod mla;
mod mlp;
mod model;
mod moe;
mod router;
mod scratch;

use octavo_kernels as k;
use octavo_kernels::Kernels;

pub use self::adapters::AdapterRows;
pub use self::batch::Batch;
pub use self::model::Model;
pub use self::scratch::Scratch;
use self::scratch::take;
use crate::ModelError;
use crate::families::Family;
use crate::folder::ModelFolder;
use crate::kv::{KvPool, LayerStore};
use crate::load;
use crate::rope::RopeAngles;
use crate::spec::{AttentionSpec, FeedForwardSpec};
use crate::weight_format::WeightFormat;
use crate::weights::{AttentionWeights, FeedForwardWeights, Loaded};

impl Model {
    /// Loads the weights of `folder` in `format`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, or `Unsupported`, naming file and tensor.
    pub fn load(
        kernels: &Kernels,
        folder: &dyn ModelFolder,
        mut family: Family,
        format: impl Into<WeightFormat>,
    ) -> Result<Self, ModelError> {
        let format = format.into();
        let Loaded { weights, stored: stored_dtype, warnings, kept_in_bf16, origin } =
            load::load(kernels, folder, &mut family, format)?;
        let inverse_frequencies = family.spec.ropes.iter().map(|r| r.inverse_frequencies(0)).collect();
        let (spec, names, weight_dtype) = (family.spec, family.names, format.dtype);
        Ok(Self {
            spec,
            names,
            weights,
            stored_dtype,
            weight_dtype,
            kept_in_bf16,
            inverse_frequencies,
            warnings,
            origin,
        })
    }

    /// Runs one step: writes the batch's keys and values into `kv` and leaves the last layer's output in `scratch`.
    pub fn forward(&self, kernels: &Kernels, kv: &mut KvPool, batch: &Batch<'_>, s: &mut Scratch) {
        self.embed(kernels, batch, s);
        let layers = self.spec.layers.iter().zip(&self.weights.layers).zip(&mut kv.layers);
        for ((layer, weights), store) in layers {
            match (&layer.attention, &weights.attention, store) {
                (AttentionSpec::Gqa(a), AttentionWeights::Gqa(w), LayerStore::Gqa(cache)) => {
                    self.gqa(kernels, a, weights, w, cache, batch, s);
                }
                (AttentionSpec::Mla(a), AttentionWeights::Mla(w), LayerStore::Mla(cache)) => {
                    self.mla(kernels, a, weights, w, cache, batch, s);
                }
                _ => unreachable!("weights and cache are made from the spec"),
            }
            match (&layer.mlp, &weights.mlp) {
                (FeedForwardSpec::Dense(m), FeedForwardWeights::Dense(w)) => {
                    self.mlp(kernels, m, weights, w, batch, s);
                }
                (FeedForwardSpec::Experts(m), FeedForwardWeights::Experts(w)) => {
                    self.experts(kernels, m, weights, w, batch, s);
                }
                _ => unreachable!("weights are made from the spec"),
            }
        }
    }

    /// Fills the residual stream with the embeddings of the tokens, and the rope angles of their positions.
    fn embed(&self, kernels: &Kernels, batch: &Batch<'_>, s: &mut Scratch) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let embed = self.weights.embed.as_ref().unwrap_or(&self.weights.head);
        for (row, &token) in take(&mut s.x, rows * hidden).chunks_exact_mut(hidden).zip(batch.tokens) {
            embed.row(kernels, token as usize, row);
        }
        if self.spec.embedding_scale != 1.0 {
            k::scale(kernels, &mut s.x[..rows * hidden], self.spec.embedding_scale);
        }
        s.rows.clear();
        s.rows.extend(0..rows as u32);
        s.ropes.resize_with(self.inverse_frequencies.len(), RopeAngles::default);
        let ropes = self.spec.ropes.iter().zip(&self.inverse_frequencies);
        for (table, (rope, frequencies)) in s.ropes.iter_mut().zip(ropes) {
            table.fill(frequencies, rope.amplitude(), batch.positions);
        }
    }

    /// Hidden states behind the last norm, of `rows` of the last forward pass: `out` `[rows, hidden]`, f32.
    pub fn hidden(&self, kernels: &Kernels, rows: &[u32], scratch: &mut Scratch, out: &mut [f32]) {
        let hidden = self.spec.hidden;
        let gathered = take(&mut scratch.intermediate, rows.len() * hidden);
        for (to, &row) in gathered.chunks_exact_mut(hidden).zip(rows) {
            to.copy_from_slice(&scratch.x[row as usize * hidden..][..hidden]);
        }
        self.normalize(kernels, &self.weights.norm, gathered, out);
    }

    /// Logits of `rows` of the last forward pass: `out` `[rows, vocab]`, f32.
    pub fn logits(&self, kernels: &Kernels, rows: &[u32], scratch: &mut Scratch, out: &mut [f32]) {
        let len = rows.len() * self.spec.hidden;
        let mut normed = std::mem::take(&mut scratch.normed);
        self.hidden(kernels, rows, scratch, take(&mut normed, len));
        scratch.normed = normed;
        let normed = &scratch.normed[..len];
        self.weights.head.forward(kernels, normed, rows.len(), None, out, &mut scratch.projection.quantized);
        if self.spec.logit_scale != 1.0 {
            k::scale(kernels, out, self.spec.logit_scale);
        }
        if let Some(cap) = self.spec.logit_softcap {
            k::soft_cap(kernels, out, cap);
        }
    }
}
