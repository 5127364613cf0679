//! Passes over a row of logits: maximum, block maxima, softmax weights. Each pass reads the row once.

use crate::context::Kernels;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// Values that share one of [`block_peaks`].
pub const PEAK_BLOCK: usize = 64;
/// Values that share one of [`weight_sums`].
pub const SUM_BLOCK: usize = 1024;

/// The maximum of a row and its index: the lowest index among equal values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Index of the maximum; 0 when no value is above -inf.
    pub index: usize,
    /// -inf for an empty row.
    pub value: f32,
    /// Whether every value is below +inf and none is NaN: the row can be sampled.
    pub sound: bool,
}

/// The maximum of `row`; NaN is ignored.
pub fn peak(kernels: &Kernels, row: &[f32]) -> Peak {
    dispatch(kernels, FindPeak { row })
}

/// Index of the maximum: the lowest among equal values. NaN is ignored; 0 when there is no other value.
pub fn argmax(kernels: &Kernels, row: &[f32]) -> usize {
    peak(kernels, row).index
}

/// The largest value of each block of [`PEAK_BLOCK`] values, the last of which may be short, into `peaks`. NaN never is.
pub fn block_peaks(kernels: &Kernels, row: &[f32], peaks: &mut Vec<f32>) {
    peaks.resize(row.len().div_ceil(PEAK_BLOCK), 0.0);
    dispatch(kernels, BlockPeaks { row, peaks });
}

/// Weight of a logit x: e^((x - largest) / temperature), 0 for x below `limit`.
#[derive(Debug, Clone, Copy)]
pub struct Weighting {
    /// Maximum of the row: weights are at most 1.
    pub largest: f32,
    /// Above 0.
    pub temperature: f32,
    /// Logits below it exp_weight nothing.
    pub limit: f32,
}

/// The weight of each logit, with a relative error of at most 2e-7 (0 where it is below 1e-38).
pub fn weights(kernels: &Kernels, row: &[f32], weighting: Weighting, out: &mut Vec<f32>) {
    out.resize(row.len(), 0.0);
    dispatch(kernels, ExpWeights { row, weighting, out });
}

/// The sum of the weights of each block of [`SUM_BLOCK`] logits, the last of which may be short, into `sums`.
pub fn weight_sums(kernels: &Kernels, row: &[f32], weighting: Weighting, sums: &mut Vec<f64>) {
    sums.clear();
    dispatch(kernels, WeightSums { row, weighting, sums });
}

/// ln of the sum of e^x; -inf for an empty row or one of -inf only, NaN where the row holds NaN or +inf.
pub fn log_sum_exp(kernels: &Kernels, row: &[f32]) -> f32 {
    let largest = peak(kernels, row).value;
    if largest == f32::NEG_INFINITY && !row.iter().any(|x| x.is_nan()) {
        return largest;
    }
    largest + dispatch(kernels, SumExp { row, largest }).ln()
}

struct FindPeak<'a> {
    row: &'a [f32],
}

impl Op for FindPeak<'_> {
    type Output = Peak;

    /// Keeps the block of the maximum: its index needs no second pass.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Peak {
        let (mut block, mut value) = (0, f32::NEG_INFINITY);
        let (infinity, nan) = (s.splat(f32::INFINITY), s.splat(f32::NAN));
        // Stays zero, or turns into NaN at the first NaN or +inf.
        let mut fault = s.zero();
        for (index, part) in self.row.chunks(SUM_BLOCK).enumerate() {
            let (quads, rest) = part.as_chunks::<{ 4 * LANES }>();
            let mut largest = [s.splat(f32::NEG_INFINITY); 4];
            for quad in quads {
                for (i, x) in quad.as_chunks::<LANES>().0.iter().enumerate() {
                    let v = s.load(x);
                    largest[i] = s.max(v, largest[i]);
                    fault = s.select_lt(v, infinity, fault, nan);
                }
            }
            for x in rest.chunks(LANES) {
                let v = s.load_partial(x, f32::NEG_INFINITY);
                largest[0] = s.max(v, largest[0]);
                fault = s.select_lt(v, infinity, fault, nan);
            }
            let largest = s.max(s.max(largest[0], largest[1]), s.max(largest[2], largest[3]));
            let largest = s.reduce_max(largest);
            if largest > value {
                (block, value) = (index, largest);
            }
        }
        let start = block * SUM_BLOCK;
        let index = self.row[start..].iter().position(|&x| x == value).map_or(0, |at| start + at);
        Peak { index, value, sound: !s.reduce_add(fault).is_nan() }
    }
}

struct BlockPeaks<'a> {
    row: &'a [f32],
    peaks: &'a mut [f32],
}

impl Op for BlockPeaks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, peak) in self.row.chunks(PEAK_BLOCK).zip(self.peaks) {
            let mut largest = s.splat(f32::NEG_INFINITY);
            for part in block.chunks(LANES) {
                largest = s.max(s.load_partial(part, f32::NEG_INFINITY), largest);
            }
            *peak = s.reduce_max(largest);
        }
    }
}

#[inline(always)]
fn exp_weight<S: Simd>(s: S, x: S::F, w: Weighting) -> S::F {
    let e = simd::exp(s, s.div(s.sub(x, s.splat(w.largest)), s.splat(w.temperature)));
    s.select_lt(x, s.splat(w.limit), s.zero(), e)
}

struct ExpWeights<'a> {
    row: &'a [f32],
    weighting: Weighting,
    out: &'a mut [f32],
}

impl Op for ExpWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.row.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            s.store_partial(exp_weight(s, s.load_partial(x, 0.0), self.weighting), out);
        }
    }
}

struct WeightSums<'a> {
    row: &'a [f32],
    weighting: Weighting,
    sums: &'a mut Vec<f64>,
}

impl Op for WeightSums<'_> {
    type Output = ();

    /// Lanes are summed in f64: the error of a sum is only the error of its weights.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for block in self.row.chunks(SUM_BLOCK) {
            let mut sums = [0.0; LANES];
            for part in block.chunks(LANES) {
                let mut lanes = [0.0; LANES];
                s.store(exp_weight(s, s.load_partial(part, f32::NEG_INFINITY), self.weighting), &mut lanes);
                for lane in 0..LANES {
                    sums[lane] += f64::from(lanes[lane]);
                }
            }
            self.sums.push(sums.iter().sum());
        }
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
