//! The gated feed-forward block of a layer.

use octavo_kernels as k;
use octavo_kernels::{Kernels, QuantizedRows, WeightDtype};

use super::model::{Model, project};
use super::scratch::{Scratch, take};
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
        rows: usize,
        s: &mut Scratch,
    ) {
        let hidden = self.spec.hidden;
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let block_out = take(&mut s.block_out, rows * hidden);
        let input = self.mlp_input(kernels, layer.mlp_norm.as_deref(), x, normed);
        let buffers = Between {
            gate_up: &mut s.qkv_gate_up,
            intermediate: &mut s.intermediate,
            rows: &mut s.quantized,
            next: &mut s.activated,
        };
        gated(kernels, (mlp.intermediate, mlp.activation), weights, input, rows, block_out, buffers);
        self.add_block_out(kernels, layer.mlp_post_norm.as_deref(), block_out, x);
    }
}

/// What a gated block computes in.
pub(super) struct Between<'a> {
    pub(super) gate_up: &'a mut Vec<f32>,
    pub(super) intermediate: &'a mut Vec<f32>,
    pub(super) rows: &'a mut QuantizedRows,
    pub(super) next: &'a mut QuantizedRows,
}

/// out = down(act(gate(x)) * up(x)) for `rows` rows of `width` channels between the projections.
pub(super) fn gated(
    kernels: &Kernels,
    (width, activation): (usize, ActivationKind),
    weights: &MlpWeights,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    b: Between<'_>,
) {
    let activation = match activation {
        ActivationKind::Silu => k::Activation::Silu,
        ActivationKind::GeluTanh => k::Activation::GeluTanh,
    };
    let (up, down) = (&weights.gate_up, &weights.down);
    let joined = up.bias.is_none() && down.weight.dtype() == WeightDtype::INT8;
    if joined && up.weight.forward_gated(kernels, x, activation, b.next, b.rows) {
        let stride = down.weight.out_features();
        return down.weight.forward_quantized(kernels, b.next, down.bias.as_deref(), out, stride);
    }
    let gate_up = take(b.gate_up, rows * 2 * width);
    let activated = take(b.intermediate, rows * width);
    project(kernels, up, x, rows, gate_up, b.rows);
    k::activate_and_mul(kernels, activation, gate_up, width, activated);
    project(kernels, down, activated, rows, out, b.rows);
}
