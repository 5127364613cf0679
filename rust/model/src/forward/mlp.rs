//! The gated feed-forward block of a layer.

use octavo_kernels as k;
use octavo_kernels::Kernels;

use super::{Model, Scratch, project, take};
use crate::spec::{Activation, LayerSpec};
use crate::weights::LayerWeights;

impl Model {
    /// x += down(act(gate(norm(x))) * up(norm(x))).
    pub(super) fn mlp(
        &self,
        kernels: &Kernels,
        layer: &LayerSpec,
        weights: &LayerWeights,
        rows: usize,
        s: &mut Scratch,
    ) {
        let (hidden, inner) = (self.spec.hidden, layer.mlp.intermediate);
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let gate_up = take(&mut s.wide, rows * 2 * inner);
        let activated = take(&mut s.inner, rows * inner);
        k::rms_norm(kernels, x, self.norm(&weights.mlp_norm), normed);
        project(kernels, &weights.gate_up, normed, rows, gate_up, &mut s.quantized);
        let activation = match layer.mlp.activation {
            Activation::Silu => k::Activation::Silu,
            Activation::GeluTanh => k::Activation::GeluTanh,
        };
        k::activate_and_mul(kernels, activation, gate_up, inner, activated);
        project(kernels, &weights.down, activated, rows, normed, &mut s.quantized);
        k::add_assign(kernels, x, normed);
    }
}
