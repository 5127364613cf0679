//! The forward pass on the CPU: one flat batch of tokens through all layers.
//!
//! The residual stream, norms, rope and softmax are f32; matmuls read weights as they are stored. Every row's result
//! depends on its own sequence alone (see the kernels), so batching and chunking change no bit.

mod attention;
mod mlp;

use std::path::Path;

use octavo_kernels as k;
use octavo_kernels::{Kernels, QuantizedRows, RmsNorm, SeqView, WeightDtype};

use crate::ModelError;
use crate::families::Family;
use crate::kv::KvPool;
use crate::rope::RopeTable;
use crate::spec::{Dtype, ModelSpec};
use crate::weights::{self, Loaded, Projection, Weights};

/// A loaded model. It keeps no state of requests.
pub struct Model {
    spec: ModelSpec,
    weights: Weights,
    stored_dtype: Dtype,
    weight_dtype: WeightDtype,
    inverse_frequencies: Vec<Vec<f32>>,
    warnings: Vec<String>,
}

/// The tokens of one step.
pub struct Batch<'a> {
    /// Token ids `[T]`.
    pub tokens: &'a [u32],
    /// Their positions `[T]`.
    pub positions: &'a [u32],
    /// Cache slots of their keys and values `[T]`.
    pub slots: &'a [u32],
    /// The sequences, in order of their rows.
    pub seqs: &'a [SeqView<'a>],
}

/// Reusable memory of the forward pass; grows to the largest step.
#[derive(Default)]
pub struct Scratch {
    /// Residual stream `[T, hidden]`; after `forward` the output of the last layer.
    x: Vec<f32>,
    normed: Vec<f32>,
    /// `[T, (heads + 2 kv_heads) * head_dim]`, then gate and up.
    wide: Vec<f32>,
    /// Attention or activation output.
    inner: Vec<f32>,
    rows: Vec<u32>,
    ropes: Vec<RopeTable>,
    quantized: QuantizedRows,
}

/// The first `len` elements of `buffer`, grown if needed. Their old content is not cleared.
fn take(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Model {
    /// Loads the weights of `folder` as `weight_dtype`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, or `Unsupported`, naming file and tensor.
    pub fn load(
        kernels: &Kernels,
        folder: &Path,
        family: Family,
        weight_dtype: WeightDtype,
    ) -> Result<Self, ModelError> {
        let Loaded { weights, stored: stored_dtype, warnings } =
            weights::load(kernels, folder, &family, weight_dtype)?;
        let inverse_frequencies = family.spec.ropes.iter().map(|r| r.inverse_frequencies()).collect();
        Ok(Self { spec: family.spec, weights, stored_dtype, weight_dtype, inverse_frequencies, warnings })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Element type of the checkpoint's embedding.
    pub fn stored_dtype(&self) -> Dtype {
        self.stored_dtype
    }

    /// What is odd about the checkpoint, though it loads: tensors with values that are not numbers, by name.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How the weights are held.
    pub fn weight_dtype(&self) -> WeightDtype {
        self.weight_dtype
    }

    /// Runs one step: writes the batch's keys and values into `kv` and leaves the last layer's output in `scratch`.
    pub fn forward(&self, kernels: &Kernels, kv: &mut KvPool, batch: &Batch<'_>, scratch: &mut Scratch) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let embed = self.weights.embed.as_ref().unwrap_or(&self.weights.head);
        for (row, &token) in take(&mut scratch.x, rows * hidden).chunks_exact_mut(hidden).zip(batch.tokens) {
            embed.row(token as usize, row);
        }
        scratch.rows.clear();
        scratch.rows.extend(0..rows as u32);
        scratch.ropes.resize_with(self.inverse_frequencies.len(), RopeTable::default);
        for (table, frequencies) in scratch.ropes.iter_mut().zip(&self.inverse_frequencies) {
            table.fill(frequencies, batch.positions);
        }
        for (i, (layer, weights)) in self.spec.layers.iter().zip(&self.weights.layers).enumerate() {
            self.attention(kernels, layer, weights, &mut kv.layers[i], batch, scratch);
            self.mlp(kernels, layer, weights, rows, scratch);
        }
    }

    /// Logits of `rows` of the last forward pass: `out` `[rows, vocab]`, f32.
    pub fn logits(&self, kernels: &Kernels, rows: &[u32], scratch: &mut Scratch, out: &mut [f32]) {
        let hidden = self.spec.hidden;
        let gathered = take(&mut scratch.inner, rows.len() * hidden);
        for (to, &row) in gathered.chunks_exact_mut(hidden).zip(rows) {
            to.copy_from_slice(&scratch.x[row as usize * hidden..][..hidden]);
        }
        let normed = take(&mut scratch.normed, rows.len() * hidden);
        k::rms_norm(kernels, gathered, self.norm(&self.weights.norm), normed);
        self.weights.head.forward(kernels, normed, rows.len(), None, out, &mut scratch.quantized);
    }

    fn norm<'a>(&self, weight: &'a [f32]) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm_eps, offset: 0.0 }
    }
}

fn project(
    kernels: &Kernels,
    p: &Projection,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
    scratch: &mut QuantizedRows,
) {
    p.weight.forward(kernels, x, rows, p.bias.as_deref(), y, scratch);
}
