//! The gated feed-forward block of a layer.

use octavo_kernels as k;
use octavo_kernels::{Kernels, LoraRows, QuantizedRows};

use super::adapters::{AtSite, ProjectionBuffers};
use super::batch::Batch;
use super::model::{Model, project};
use super::scratch::{Scratch, take};
use crate::adapter::Site;
use crate::spec::{ActivationKind, MlpSpec};
use crate::weights::{LayerWeights, MlpWeights};

impl Model {
    /// x += down(act(gate(norm(x))) * up(norm(x))); norms stand where the spec places them.
    pub(super) fn mlp(
        &self,
        kernels: &Kernels,
        mlp: &MlpSpec,
        layer: &LayerWeights,
        weights: &MlpWeights,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let block_out = take(&mut s.block_out, rows * hidden);
        let input = self.mlp_input(kernels, layer.mlp_norm.as_deref(), x, normed);
        let buffers = Between {
            gate_up: &mut s.qkv_gate_up,
            intermediate: &mut s.intermediate,
            projection: &mut s.projection,
            next: &mut s.activated,
        };
        let at = [Site::GateUp, Site::Down].map(|site| AtSite::new(batch.adapters, layer.index, site));
        gated(kernels, (mlp.intermediate, mlp.activation), weights, input, block_out, at, buffers);
        self.add_block_out(kernels, layer.mlp_post_norm.as_deref(), block_out, x);
    }
}

/// Rows of a gated block with adapters that are computed together.
const ADAPTER_ROWS: usize = 64;

/// What a gated block computes in.
pub(super) struct Between<'a> {
    pub(super) gate_up: &'a mut Vec<f32>,
    pub(super) intermediate: &'a mut Vec<f32>,
    pub(super) projection: &'a mut ProjectionBuffers,
    pub(super) next: &'a mut QuantizedRows,
}

/// out = down(act(gate(x)) * up(x)) for rows of `width` channels between the projections, with the adapters `at` them.
///
/// One pass for gate and up has the bits of its steps: a row does not depend on the adapters of others.
pub(super) fn gated(
    kernels: &Kernels,
    (width, activation): (usize, ActivationKind),
    weights: &MlpWeights,
    x: &[f32],
    out: &mut [f32],
    [at_up, at_down]: [AtSite<'_>; 2],
    b: Between<'_>,
) {
    let rows = x.len() / weights.gate_up.weight.in_features();
    let activation = match activation {
        ActivationKind::Silu => k::Activation::Silu,
        ActivationKind::GeluTanh => k::Activation::GeluTanh,
    };
    let (up, down) = (&weights.gate_up, &weights.down);
    let ProjectionBuffers { quantized, low_rank } = &mut *b.projection;
    let (runs_up, runs_down) = (at_up.runs(), at_down.runs());
    let adapters = LoraRows { runs: &runs_up, h: low_rank };
    let pair = [&up.weight, &down.weight];
    if up.bias.is_none() && k::forward_gated(kernels, pair, x, activation, adapters, b.next, quantized) {
        let adapters = LoraRows { runs: &runs_down, h: low_rank };
        let bias = down.bias.as_deref();
        return k::forward_lora_quantized(kernels, &down.weight, b.next, bias, adapters, out);
    }
    // Values between the projections of few rows at a time stay in the cache.
    let block = if at_up.is_empty() { rows } else { ADAPTER_ROWS.min(rows) };
    let (inputs, outputs) = (up.weight.in_features(), down.weight.out_features());
    for first in (0..rows).step_by(block.max(1)) {
        let rows = block.min(rows - first);
        let (at_up, at_down) = (at_up.of_rows(first, rows), at_down.of_rows(first, rows));
        let gate_up = take(b.gate_up, rows * 2 * width);
        let activated = take(b.intermediate, rows * width);
        project(kernels, up, &x[first * inputs..][..rows * inputs], rows, gate_up, at_up, b.projection);
        k::activate_and_mul(kernels, activation, gate_up, width, activated);
        let out = &mut out[first * outputs..][..rows * outputs];
        project(kernels, down, activated, rows, out, at_down, b.projection);
    }
}
