//! RMS norm: y = x / sqrt(mean(x^2) + eps) * (weight + offset).

use crate::context::Kernels;
use crate::parallel::for_row_runs;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Minimum values of one task.
const VALUES_PER_TASK: usize = 16 << 10;

/// The parameters of an RMS norm over rows of `weight.len()` values.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// One weight per column.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to every weight: 0, or 1 where a family stores weight - 1.
    pub offset: f32,
}

/// Normalises the rows of `x` (each `norm.weight.len()` long) into `out`, of the same shape.
pub fn rms_norm(kernels: &Kernels, x: &[f32], norm: RmsNorm<'_>, out: &mut [f32]) {
    let width = norm.weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    assert_eq!(out.len(), x.len(), "length of out");
    let rows = x.len() / width;
    for_row_runs(kernels.pool(), out, rows, width, VALUES_PER_TASK.div_ceil(width), |first, count, out| {
        let x = &x[first * width..(first + count) * width];
        dispatch(kernels, RmsNormRows { x, norm, out });
    });
}

/// Normalises in place, head by head: the first `heads * norm.weight.len()` values of each row of `x`, rows `stride`
/// apart. This is the norm of queries and keys.
pub fn rms_norm_heads(kernels: &Kernels, x: &mut [f32], stride: usize, heads: usize, norm: RmsNorm<'_>) {
    let width = heads * norm.weight.len();
    assert!(width > 0 && width <= stride, "{heads} heads of {} in rows of {stride}", norm.weight.len());
    if x.is_empty() {
        return;
    }
    let rows = x.len().div_ceil(stride);
    assert!(x.len() >= (rows - 1) * stride + width, "the last row is short: {} values in x", x.len());
    for_row_runs(kernels.pool(), x, rows, stride, VALUES_PER_TASK.div_ceil(width), |_, _, rows| {
        for row in rows.chunks_mut(stride) {
            dispatch(kernels, RmsNormInPlace { x: &mut row[..width], norm });
        }
    });
}

struct RmsNormRows<'a> {
    x: &'a [f32],
    norm: RmsNorm<'a>,
    out: &'a mut [f32],
}

impl Op for RmsNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.norm.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let factor = s.splat(inverse_rms(s, x, self.norm.eps));
            let weights = self.norm.weight.chunks(LANES);
            for ((x, out), weight) in x.chunks(LANES).zip(out.chunks_mut(LANES)).zip(weights) {
                let y = scaled(s, s.load_partial(x, 0.0), factor, weight, self.norm.offset);
                s.store_partial(y, out);
            }
        }
    }
}

struct RmsNormInPlace<'a> {
    x: &'a mut [f32],
    norm: RmsNorm<'a>,
}

impl Op for RmsNormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_exact_mut(self.norm.weight.len()) {
            let factor = s.splat(inverse_rms(s, x, self.norm.eps));
            for (x, weight) in x.chunks_mut(LANES).zip(self.norm.weight.chunks(LANES)) {
                let y = scaled(s, s.load_partial(x, 0.0), factor, weight, self.norm.offset);
                s.store_partial(y, x);
            }
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps); 16 chains of squares, folded at the end.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut sum = s.zero();
    for part in x.chunks(LANES) {
        let v = s.load_partial(part, 0.0);
        sum = s.fma(v, v, sum);
    }
    1.0 / (s.reduce_add(sum) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn scaled<S: Simd>(s: S, x: S::F, factor: S::F, weight: &[f32], offset: f32) -> S::F {
    let weight = s.add(s.load_partial(weight, 0.0), s.splat(offset));
    s.mul(s.mul(x, factor), weight)
}
