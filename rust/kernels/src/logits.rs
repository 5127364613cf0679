//! Reductions over a row of logits, in a fixed order.

use crate::context::Kernels;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// The place of the largest value; the lowest one among equals. NaN never wins; 0 where nothing else is there.
pub fn argmax(kernels: &Kernels, row: &[f32]) -> usize {
    let largest = dispatch(kernels, Largest { row });
    row.iter().position(|&x| x == largest).unwrap_or(0)
}

/// ln of the sum of e^x; -inf for an empty row or one of -inf only, NaN where the row holds NaN or +inf.
pub fn log_sum_exp(kernels: &Kernels, row: &[f32]) -> f32 {
    let largest = dispatch(kernels, Largest { row });
    if largest == f32::NEG_INFINITY && !row.iter().any(|x| x.is_nan()) {
        return largest;
    }
    largest + dispatch(kernels, SumExp { row, largest }).ln()
}

struct Largest<'a> {
    row: &'a [f32],
}

impl Op for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut largest = s.splat(f32::NEG_INFINITY);
        for part in self.row.chunks(LANES) {
            largest = s.max(s.load_partial(part, f32::NEG_INFINITY), largest);
        }
        s.reduce_max(largest)
    }
}

struct SumExp<'a> {
    row: &'a [f32],
    largest: f32,
}

impl Op for SumExp<'_> {
    type Output = f32;

    /// 16 chains, folded at the end.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sum = s.zero();
        for part in self.row.chunks(LANES) {
            let shifted = s.sub(s.load_partial(part, f32::NEG_INFINITY), s.splat(self.largest));
            sum = s.add(sum, simd::exp(s, shifted));
        }
        s.reduce_add(sum)
    }
}
