//! The gated feed-forward block of a layer.

use octavo_kernels as k;
use octavo_kernels::{Kernels, QuantizedRows, WeightDtype};

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
        let buffers = Between {
            wide: &mut s.wide,
            inner: &mut s.inner,
            rows: &mut s.quantized,
            next: &mut s.activated,
        };
        gated(kernels, (mlp.intermediate, mlp.activation), weights, input, rows, branch, buffers);
        self.add_branch(kernels, layer.mlp_post_norm.as_deref(), branch, x);
    }
}

/// What a gated block computes in.
pub(super) struct Between<'a> {
    pub(super) wide: &'a mut Vec<f32>,
    pub(super) inner: &'a mut Vec<f32>,
    pub(super) rows: &'a mut QuantizedRows,
    pub(super) next: &'a mut QuantizedRows,
}

/// out = down(act(gate(x)) * up(x)) for `rows` rows of width `inner` between the projections.
pub(super) fn gated(
    kernels: &Kernels,
    (inner, activation): (usize, Activation),
    weights: &MlpWeights,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    b: Between<'_>,
) {
    let activation = match activation {
        Activation::Silu => k::Activation::Silu,
        Activation::GeluTanh => k::Activation::GeluTanh,
    };
    let (up, down) = (&weights.gate_up, &weights.down);
    let joined = up.bias.is_none() && down.weight.dtype() == WeightDtype::Int8;
    if joined && up.weight.forward_gated(kernels, x, activation, b.next, b.rows) {
        let stride = down.weight.out_features();
        return down.weight.forward_quantized(kernels, b.next, down.bias.as_deref(), out, stride);
    }
    let gate_up = take(b.wide, rows * 2 * inner);
    let activated = take(b.inner, rows * inner);
    project(kernels, up, x, rows, gate_up, b.rows);
    k::activate_and_mul(kernels, activation, gate_up, inner, activated);
    project(kernels, down, activated, rows, out, b.rows);
}
