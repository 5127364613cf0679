//! Small functions of rows and of single values: factors, soft caps, sigmoid, softmax.

use crate::context::Kernels;
use crate::parallel::for_row_runs;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// Minimum values of one task.
const VALUES_PER_TASK: usize = 8 << 10;

/// x = factor * x.
pub fn scale(kernels: &Kernels, x: &mut [f32], factor: f32) {
    apply_function(kernels, x, Function::Scale(factor));
}

/// x = cap * tanh(x / cap).
pub fn soft_cap(kernels: &Kernels, x: &mut [f32], cap: f32) {
    apply_function(kernels, x, Function::SoftCap(cap));
}

/// x = 1 / (1 + e^-x).
pub fn sigmoid(kernels: &Kernels, x: &mut [f32]) {
    apply_function(kernels, x, Function::Sigmoid);
}

/// Softmax of each row of `width` values, in place.
pub fn softmax(kernels: &Kernels, x: &mut [f32], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let rows = x.len() / width;
    for_row_runs(kernels.pool(), x, rows, width, VALUES_PER_TASK.div_ceil(width), |_, _, x| {
        dispatch(kernels, Softmax { x, width });
    });
}

#[derive(Clone, Copy)]
enum Function {
    Scale(f32),
    SoftCap(f32),
    Sigmoid,
}

fn apply_function(kernels: &Kernels, x: &mut [f32], f: Function) {
    let rows = x.len().div_ceil(LANES);
    for_row_runs(kernels.pool(), x, rows, LANES, VALUES_PER_TASK / LANES, |_, _, x| {
        dispatch(kernels, ApplyFunction { x, f });
    });
}

struct ApplyFunction<'a> {
    x: &'a mut [f32],
    f: Function,
}

impl Op for ApplyFunction<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            let v = s.load_partial(x, 0.0);
            let y = match self.f {
                Function::Scale(factor) => s.mul(v, s.splat(factor)),
                Function::SoftCap(cap) => s.mul(s.splat(cap), simd::tanh(s, s.div(v, s.splat(cap)))),
                Function::Sigmoid => {
                    let one = s.splat(1.0);
                    s.div(one, s.add(one, simd::exp(s, s.sub(s.zero(), v))))
                }
            };
            s.store_partial(y, x);
        }
    }
}

struct Softmax<'a> {
    x: &'a mut [f32],
    width: usize,
}

impl Op for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_exact_mut(self.width) {
            let mut max = s.splat(f32::NEG_INFINITY);
            for part in x.chunks(LANES) {
                max = s.max(s.load_partial(part, f32::NEG_INFINITY), max);
            }
            let max = s.splat(s.reduce_max(max));
            let mut sum = s.zero();
            for part in x.chunks_mut(LANES) {
                let e = simd::exp(s, s.sub(s.load_partial(part, f32::NEG_INFINITY), max));
                sum = s.add(sum, e);
                s.store_partial(e, part);
            }
            let sum = s.splat(s.reduce_add(sum));
            for part in x.chunks_mut(LANES) {
                s.store_partial(s.div(s.load_partial(part, 0.0), sum), part);
            }
        }
    }
}
