//! Activations, gated and plain, and the residual sum.

use crate::context::Kernels;
use crate::parallel::for_row_runs;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// Minimum values of one task.
const VALUES_PER_TASK: usize = 8 << 10;

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// out = f(gate) * up: `gate_up` `[m, 2 * inner]` (gate first, then up, in each row), `out` `[m, inner]`.
pub fn activate_and_mul(kernels: &Kernels, f: Activation, gate_up: &[f32], inner: usize, out: &mut [f32]) {
    assert!(inner > 0 && out.len().is_multiple_of(inner), "{} outputs in rows of {inner}", out.len());
    assert_eq!(gate_up.len(), 2 * out.len(), "length of gate_up");
    let rows = out.len() / inner;
    for_row_runs(kernels.pool(), out, rows, inner, VALUES_PER_TASK.div_ceil(inner), |first, count, out| {
        let gate_up = &gate_up[2 * first * inner..2 * (first + count) * inner];
        dispatch(kernels, ActivateAndMul { f, gate_up, inner, out });
    });
}

/// [`activate_and_mul`] with [`Activation::Silu`].
pub fn silu_and_mul(kernels: &Kernels, gate_up: &[f32], inner: usize, out: &mut [f32]) {
    activate_and_mul(kernels, Activation::Silu, gate_up, inner, out);
}

/// [`activate_and_mul`] with [`Activation::GeluTanh`].
pub fn gelu_tanh_and_mul(kernels: &Kernels, gate_up: &[f32], inner: usize, out: &mut [f32]) {
    activate_and_mul(kernels, Activation::GeluTanh, gate_up, inner, out);
}

/// x = f(x), in place.
pub fn activate(kernels: &Kernels, f: Activation, x: &mut [f32]) {
    let rows = x.len().div_ceil(LANES);
    for_row_runs(kernels.pool(), x, rows, LANES, VALUES_PER_TASK / LANES, |_, _, x| {
        dispatch(kernels, ActivateInPlace { f, x });
    });
}

/// x += y.
pub fn add_assign(kernels: &Kernels, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "lengths of the sum's sides");
    let rows = x.len().div_ceil(LANES);
    for_row_runs(kernels.pool(), x, rows, LANES, 4 * VALUES_PER_TASK / LANES, |first, _, x| {
        let y = &y[first * LANES..][..x.len()];
        dispatch(kernels, AddAssign { x, y });
    });
}

#[inline(always)]
pub(crate) fn apply<S: Simd>(s: S, f: Activation, x: S::F) -> S::F {
    match f {
        Activation::Silu => simd::silu(s, x),
        Activation::GeluTanh => simd::gelu_tanh(s, x),
    }
}

struct ActivateAndMul<'a> {
    f: Activation,
    gate_up: &'a [f32],
    inner: usize,
    out: &'a mut [f32],
}

impl Op for ActivateAndMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.gate_up.chunks_exact(2 * self.inner).zip(self.out.chunks_exact_mut(self.inner));
        for (row, out) in rows {
            let (gate, up) = row.split_at(self.inner);
            for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
                let active = apply(s, self.f, s.load_partial(gate, 0.0));
                s.store_partial(s.mul(active, s.load_partial(up, 0.0)), out);
            }
        }
    }
}

struct ActivateInPlace<'a> {
    f: Activation,
    x: &'a mut [f32],
}

impl Op for ActivateInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            s.store_partial(apply(s, self.f, s.load_partial(x, 0.0)), x);
        }
    }
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Op for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_mut(LANES).zip(self.y.chunks(LANES)) {
            s.store_partial(s.add(s.load_partial(x, 0.0), s.load_partial(y, 0.0)), x);
        }
    }
}
