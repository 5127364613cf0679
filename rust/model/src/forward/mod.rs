//! The forward pass on the CPU: one flat batch of tokens through all layers.
//!
//! The residual stream, norms, rope and softmax are f32; matmuls read weights as they are stored. Every row's result
//! depends on its own sequence alone (see the kernels), so batching and chunking change no bit.

mod attention;
mod latent;
mod mlp;
mod moe;

use std::path::Path;

use octavo_kernels as k;
use octavo_kernels::{
    AttentionReport, DynamicParams, Kernels, QuantizedRows, RmsNorm, RopeStyle, SealedBlock, SeqView,
    WeightDtype,
};

use crate::ModelError;
use crate::families::Family;
use crate::kv::{KvPool, LayerStore};
use crate::load::{self, Loaded, Spared, WeightFormat};
use crate::packed_form::Origin;
use crate::rope::RopeTable;
use crate::spec::{AttentionSpec, Dtype, FeedForwardSpec, LayerSpec, ModelSpec, NormKind, NormPlacement};
use crate::weights::{AttentionWeights, FeedForwardWeights, LayerWeights, Projection, Weights};

/// A loaded model. It keeps no state of requests.
pub struct Model {
    spec: ModelSpec,
    weights: Weights,
    stored_dtype: Dtype,
    weight_dtype: WeightDtype,
    spared: Vec<Spared>,
    inverse_frequencies: Vec<Vec<f32>>,
    warnings: Vec<String>,
    origin: Option<Origin>,
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
    /// What the queries of each sequence may leave out; empty: nothing. Needs an int8 pool.
    pub choices: &'a [DynamicParams],
    /// Blocks of an int8 pool that this step fills.
    filled: &'a [SealedBlock],
}

impl<'a> Batch<'a> {
    /// A step's tokens; `slots` and blocks are those of the scheduler.
    pub fn new(tokens: &'a [u32], positions: &'a [u32], slots: &'a [u32], seqs: &'a [SeqView<'a>]) -> Self {
        Self { tokens, positions, slots, seqs, choices: &[], filled: &[] }
    }
}

/// Reusable memory of the forward pass; grows to the largest step.
#[derive(Default)]
pub struct Scratch {
    /// Residual stream `[T, hidden]`; after `forward` the output of the last layer.
    x: Vec<f32>,
    /// Input of a block, normed.
    normed: Vec<f32>,
    /// What a block adds to the residual stream `[T, hidden]`.
    branch: Vec<f32>,
    /// `[T, (heads + 2 kv_heads) * head_dim]`, then gate and up.
    wide: Vec<f32>,
    /// Attention or activation output.
    inner: Vec<f32>,
    rows: Vec<u32>,
    ropes: Vec<RopeTable>,
    quantized: QuantizedRows,
    /// The activated rows between the projections of a feed-forward block.
    activated: QuantizedRows,
    latent: latent::Buffers,
    moe: moe::Buffers,
    reports: Vec<AttentionReport>,
}

impl Scratch {
    /// What attention read and left out for each sequence of the last step, if its queries had a choice.
    pub fn attention_reports(&self) -> &[AttentionReport] {
        &self.reports
    }
}

/// The first `len` elements of `buffer`, grown if needed. Their old content is not cleared.
fn take(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Model {
    /// Loads the weights of `folder` in `format`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, or `Unsupported`, naming file and tensor.
    pub fn load(
        kernels: &Kernels,
        folder: &Path,
        family: Family,
        format: impl Into<WeightFormat>,
    ) -> Result<Self, ModelError> {
        let format = format.into();
        let Loaded { weights, stored: stored_dtype, warnings, spared, origin } =
            load::load(kernels, folder, &family, format)?;
        let inverse_frequencies = family.spec.ropes.iter().map(|r| r.inverse_frequencies(0)).collect();
        let (spec, weight_dtype) = (family.spec, format.dtype);
        Ok(Self { spec, weights, stored_dtype, weight_dtype, spared, inverse_frequencies, warnings, origin })
    }

    /// Sets the longest context that will be served: the rope scalings that depend on a length take this one.
    pub fn set_context(&mut self, tokens: usize) {
        let ropes = self.spec.ropes.iter();
        self.inverse_frequencies = ropes.map(|r| r.inverse_frequencies(tokens)).collect();
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes
    }

    /// Element type of the checkpoint's embedding.
    pub fn stored_dtype(&self) -> Dtype {
        self.stored_dtype
    }

    /// What is odd about the checkpoint, though it loads: tensors with values that are not numbers, by name.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The tensors that stayed in bfloat16 although the others are int8, with the reason.
    pub fn spared(&self) -> &[Spared] {
        &self.spared
    }

    /// Where the quantised file comes from in which the weights are mapped; None: they were packed while loading.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// How the weights are held, those of `spared` aside.
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
        if self.spec.embedding_scale != 1.0 {
            k::scale(kernels, &mut scratch.x[..rows * hidden], self.spec.embedding_scale);
        }
        scratch.rows.clear();
        scratch.rows.extend(0..rows as u32);
        scratch.ropes.resize_with(self.inverse_frequencies.len(), RopeTable::default);
        let ropes = self.spec.ropes.iter().zip(&self.inverse_frequencies);
        for (table, (rope, frequencies)) in scratch.ropes.iter_mut().zip(ropes) {
            table.fill(frequencies, rope.amplitude(), batch.positions);
        }
        scratch.reports.clear();
        scratch.reports.resize(batch.choices.len(), AttentionReport::default());
        match &mut kv.tails {
            None => self.layers(kernels, &mut kv.layers, batch, scratch),
            Some(tails) => {
                tails.begin(batch.slots, batch.seqs);
                let seqs = tails.views(batch.seqs);
                let placed = Batch { slots: &tails.slots, seqs: &seqs, filled: &tails.filled, ..*batch };
                for layer in &mut kv.layers {
                    if let LayerStore::Gqa(layer) = layer {
                        layer.grow_open_blocks(tails.count());
                    }
                }
                self.layers(kernels, &mut kv.layers, &placed, scratch);
                tails.end();
            }
        }
    }

    fn layers(&self, kernels: &Kernels, stores: &mut [LayerStore], batch: &Batch<'_>, s: &mut Scratch) {
        for ((layer, weights), store) in self.spec.layers.iter().zip(&self.weights.layers).zip(stores) {
            self.layer(kernels, layer, weights, store, batch, s);
        }
    }

    fn layer(
        &self,
        kernels: &Kernels,
        layer: &LayerSpec,
        weights: &LayerWeights,
        store: &mut LayerStore,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        match (&layer.attention, &weights.attention, store) {
            (AttentionSpec::Gqa(a), AttentionWeights::Gqa(w), LayerStore::Gqa(cache)) => {
                self.attention(kernels, a, weights, w, cache, batch, s);
            }
            (AttentionSpec::Mla(a), AttentionWeights::Mla(w), LayerStore::Mla(cache)) => {
                self.latent_attention(kernels, a, weights, w, cache, batch, s);
            }
            _ => unreachable!("weights and cache are made from the spec"),
        }
        let rows = batch.tokens.len();
        match (&layer.mlp, &weights.mlp) {
            (FeedForwardSpec::Dense(m), FeedForwardWeights::Dense(w)) => {
                self.mlp(kernels, m, weights, w, rows, s);
            }
            (FeedForwardSpec::Experts(m), FeedForwardWeights::Experts(w)) => {
                self.experts(kernels, m, weights, w, rows, s);
            }
            _ => unreachable!("weights are made from the spec"),
        }
    }

    /// Hidden states behind the last norm, of `rows` of the last forward pass: `out` `[rows, hidden]`, f32.
    pub fn hidden(&self, kernels: &Kernels, rows: &[u32], scratch: &mut Scratch, out: &mut [f32]) {
        let hidden = self.spec.hidden;
        let gathered = take(&mut scratch.inner, rows.len() * hidden);
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
        self.weights.head.forward(kernels, normed, rows.len(), None, out, &mut scratch.quantized);
        if self.spec.logit_scale != 1.0 {
            k::scale(kernels, out, self.spec.logit_scale);
        }
        if let Some(cap) = self.spec.logit_softcap {
            k::soft_cap(kernels, out, cap);
        }
    }

    fn norm<'a>(&self, weight: &'a [f32]) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm.eps, offset: self.spec.norm.offset }
    }

    /// out = norm(x), row by row.
    fn normalize(&self, kernels: &Kernels, weight: &[f32], x: &[f32], out: &mut [f32]) {
        match self.spec.norm.kind {
            NormKind::Rms => k::rms_norm(kernels, x, self.norm(weight), out),
            NormKind::Layer => {
                out.copy_from_slice(x);
                k::layer_norm(kernels, out, self.norm(weight));
            }
        }
    }

    /// What the feed-forward block reads: the normed stream, the stream itself, or what attention has left in `normed`.
    fn mlp_input<'a>(
        &self,
        kernels: &Kernels,
        norm: Option<&[f32]>,
        x: &'a [f32],
        normed: &'a mut [f32],
    ) -> &'a [f32] {
        match norm {
            Some(weight) => {
                self.normalize(kernels, weight, x, normed);
                normed
            }
            None if self.spec.norm_placement == NormPlacement::Parallel => normed,
            None => x,
        }
    }

    /// x += factor * norm(branch), where there is a norm; `branch` is left in any state.
    fn add_branch(&self, kernels: &Kernels, norm: Option<&[f32]>, branch: &mut [f32], x: &mut [f32]) {
        match (norm, self.spec.norm.kind) {
            (None, _) => {}
            (Some(weight), NormKind::Rms) => {
                k::rms_norm_heads(kernels, branch, weight.len(), 1, self.norm(weight));
            }
            (Some(weight), NormKind::Layer) => k::layer_norm(kernels, branch, self.norm(weight)),
        }
        if self.spec.residual_scale != 1.0 {
            k::scale(kernels, branch, self.spec.residual_scale);
        }
        k::add_assign(kernels, x, branch);
    }

    /// The table of a rope for the rows of this step.
    fn rope_table<'a>(&self, ropes: &'a [RopeTable], rope: usize) -> k::RopeTable<'a> {
        let spec = &self.spec.ropes[rope];
        let style = if spec.interleaved { RopeStyle::Interleaved } else { RopeStyle::Half };
        k::RopeTable { cos: &ropes[rope].cos, sin: &ropes[rope].sin, rotary_dim: spec.rotary_dim, style }
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
