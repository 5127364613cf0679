//! The gated feed-forward block of a layer.

use octavo_kernels as k;
use octavo_kernels::{Kernels, QuantizedRows};

use super::{Model, Scratch, project, take};
use crate::spec::{Activation, MlpSpec};
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
        let branch = take(&mut s.branch, rows * hidden);
        let input = self.mlp_input(kernels, layer.mlp_norm.as_deref(), x, normed);
        let buffers = (&mut s.wide, &mut s.inner, &mut s.quantized);
        gated(kernels, (mlp.intermediate, mlp.activation), weights, input, rows, branch, buffers);
        self.add_branch(kernels, layer.mlp_post_norm.as_deref(), branch, x);
    }
}

/// out = down(act(gate(x)) * up(x)) for `rows` rows of width `inner` between the projections.
pub(super) fn gated(
    kernels: &Kernels,
    (inner, activation): (usize, Activation),
    weights: &MlpWeights,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    (wide, activated, quantized): (&mut Vec<f32>, &mut Vec<f32>, &mut QuantizedRows),
) {
    let gate_up = take(wide, rows * 2 * inner);
    let activated = take(activated, rows * inner);
    project(kernels, &weights.gate_up, x, rows, gate_up, quantized);
    let activation = match activation {
        Activation::Silu => k::Activation::Silu,
        Activation::GeluTanh => k::Activation::GeluTanh,
    };
    k::activate_and_mul(kernels, activation, gate_up, inner, activated);
    project(kernels, &weights.down, activated, rows, out, quantized);
}
