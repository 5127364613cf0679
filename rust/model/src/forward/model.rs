//! A loaded model, and the parts of a layer that every block shares: norms, the residual sum and projections.

use octavo_kernels as k;
use octavo_kernels::{Kernels, LoraRows, RmsNorm, RopeStyle, WeightDtype};

use super::adapters::{AtSite, ProjectionBuffers};
use crate::families::TensorNames;
use crate::octavo_file::format::Origin;
use crate::rope::RopeAngles;
use crate::spec::{Dtype, ModelSpec, NormKind, NormPlacement};
use crate::weight_format::KeptInBf16;
use crate::weights::{ModelWeights, Projection};

/// A loaded model. It keeps no state of requests.
pub struct Model {
    pub(super) spec: ModelSpec,
    pub(super) names: TensorNames,
    pub(super) weights: ModelWeights,
    pub(super) stored_dtype: Dtype,
    pub(super) weight_dtype: WeightDtype,
    pub(super) kept_in_bf16: Vec<KeptInBf16>,
    pub(super) inverse_frequencies: Vec<Vec<f32>>,
    pub(super) warnings: Vec<String>,
    pub(super) origin: Option<Origin>,
}

impl Model {
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
    pub fn kept_in_bf16(&self) -> &[KeptInBf16] {
        &self.kept_in_bf16
    }

    /// Where the quantised file comes from in which the weights are mapped; None: they were packed while loading.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// How the weights are held, those of `kept_in_bf16` aside.
    pub fn weight_dtype(&self) -> WeightDtype {
        self.weight_dtype
    }

    pub(super) fn norm<'a>(&self, weight: &'a [f32]) -> RmsNorm<'a> {
        RmsNorm { weight, eps: self.spec.norm.eps, offset: self.spec.norm.offset }
    }

    /// out = norm(x), row by row.
    pub(super) fn normalize(&self, kernels: &Kernels, weight: &[f32], x: &[f32], out: &mut [f32]) {
        match self.spec.norm.kind {
            NormKind::Rms => k::rms_norm(kernels, x, self.norm(weight), out),
            NormKind::Layer => {
                out.copy_from_slice(x);
                k::layer_norm(kernels, out, self.norm(weight));
            }
        }
    }

    /// What the feed-forward block reads: the normed stream, the stream itself, or what attention has left in `normed`.
    pub(super) fn mlp_input<'a>(
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

    /// x += factor * norm(block_out), where there is a norm; `block_out` is left in any state.
    pub(super) fn add_block_out(
        &self,
        kernels: &Kernels,
        norm: Option<&[f32]>,
        block_out: &mut [f32],
        x: &mut [f32],
    ) {
        match (norm, self.spec.norm.kind) {
            (None, _) => {}
            (Some(weight), NormKind::Rms) => {
                k::rms_norm_heads(kernels, block_out, weight.len(), 1, self.norm(weight));
            }
            (Some(weight), NormKind::Layer) => k::layer_norm(kernels, block_out, self.norm(weight)),
        }
        if self.spec.residual_scale != 1.0 {
            k::scale(kernels, block_out, self.spec.residual_scale);
        }
        k::add_assign(kernels, x, block_out);
    }

    /// The table of a rope for the rows of this step.
    pub(super) fn rope_table<'a>(&self, ropes: &'a [RopeAngles], rope: usize) -> k::RopeTable<'a> {
        let spec = &self.spec.ropes[rope];
        let style = if spec.interleaved { RopeStyle::Interleaved } else { RopeStyle::Half };
        k::RopeTable { cos: &ropes[rope].cos, sin: &ropes[rope].sin, rotary_dim: spec.rotary_dim, style }
    }
}

/// y = x W^T + b for `rows` rows, and what adapters add to them.
pub(super) fn project(
    kernels: &Kernels,
    p: &Projection,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
    at: AtSite<'_>,
    b: &mut ProjectionBuffers,
) {
    assert_eq!(x.len(), rows * p.weight.in_features(), "values of x");
    let adapters = LoraRows { runs: &at.runs(), h: &mut b.low_rank };
    k::forward_lora(kernels, &p.weight, x, p.bias.as_deref(), adapters, y, &mut b.quantized);
}
