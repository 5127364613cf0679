//! Rounding of queries to 16-bit integers, in the units of a block.

use std::marker::PhantomData;

use half::bf16;

use super::super::block_ops::{GROUP_BLOCKS, GROUP_ROWS};
use super::super::params::BLOCK_SIZE;
use crate::isa::Isa;
use crate::simd::{LANES, Simd};

/// Key codes count from here.
pub(super) const CENTRE: f32 = 128.0;
/// A block whose largest |x| is below this counts as 0: its part of a score vanishes in rounding.
const NEGLIGIBLE: f32 = 1e-30;
/// Largest integer of 16 bits whose parts `256 * high + low` are both signed bytes.
const MAX_LEVEL: usize = 127 * 256 + 127;
/// 1.5 * 2^23: its sum with a number below 2^22 is rounded to an integer, which stands in its low bits (Hacker's
/// Delight).
pub(super) const SHIFT: f32 = 12_582_912.0;

/// Parts of queries and keys that integer products use.
///
/// ```text
///     query, 16 bits = 256 * high byte + low byte       key code, 8 bits = 16 * high nibble + low nibble
/// ```
pub(crate) trait Precision {
    /// Whether products use the low bytes of queries.
    const LOW_QUERY: bool;
    /// Whether products use the low nibbles of key codes.
    const LOW_KEY: bool;
}

/// All bits: exact scores.
pub(super) struct AllBits;
/// High bytes of queries, all bits of keys.
pub(super) struct HighQuery;
/// High bytes of queries, high nibbles of keys.
pub(super) struct HighQueryHighKey;

impl Precision for AllBits {
    const LOW_QUERY: bool = true;
    const LOW_KEY: bool = true;
}

impl Precision for HighQuery {
    const LOW_QUERY: bool = false;
    const LOW_KEY: bool = true;
}

impl Precision for HighQueryHighKey {
    const LOW_QUERY: bool = false;
    const LOW_KEY: bool = false;
}

/// Largest integer that a query is rounded to: two bytes hold it, and no sum over the channels exceeds 32 bits.
#[inline(always)]
pub(super) fn levels(padded: usize) -> f32 {
    (i32::MAX as usize / (255 * padded)).min(MAX_LEVEL) as f32
}

/// Bound on the error of scores from rounding queries, where no |q * step| of a block exceeds `peak`.
#[inline(always)]
pub(crate) fn score_error(head_dim: usize, padded: usize, peak: f32) -> f32 {
    // 0.501: the quotient and the product round too.
    0.501 * peak.max(NEGLIGIBLE * levels(padded)) / levels(padded) * CENTRE * head_dim as f32
}

/// Vectors of the buffer of a row of integers: four are rounded together.
#[inline(always)]
pub(super) fn slots(vectors: usize) -> usize {
    vectors.next_multiple_of(4)
}

/// Buffers for a few rows of queries against a few blocks.
#[derive(Default)]
pub(crate) struct RoundedQueries {
    /// q * step in units, `[blocks][rows][slots]`, in the order that the instruction set's products need.
    pub(super) whole: Vec<[i16; LANES]>,
    pub(super) rows: [[RoundedRow; GROUP_ROWS]; GROUP_BLOCKS],
    /// Integer products of rows and keys.
    pub(super) sums: [[[f32; BLOCK_SIZE]; GROUP_ROWS]; GROUP_BLOCKS],
}

/// A query's scale for a block: q . key = base + unit * integer product.
#[derive(Default, Clone, Copy)]
pub(super) struct RoundedRow {
    /// q . (lo + 128 step).
    pub(super) base: f32,
    /// Value of the integer 1.
    pub(super) unit: f32,
    /// 1 / unit; 0 where all integers are 0.
    pub(super) inverse: f32,
    /// Sum of the integers that products use.
    pub(super) sum: i32,
    /// Without low query bytes: sum of their magnitudes.
    pub(super) low: i32,
    /// Without low key nibbles: sum of the magnitudes of the high query bytes, in 256 units each.
    pub(super) high: i32,
}

impl RoundedQueries {
    /// Grows the buffers for rows of `vectors` vectors.
    pub(crate) fn resize(&mut self, vectors: usize) {
        self.whole.resize(GROUP_BLOCKS * GROUP_ROWS * slots(vectors), [0; LANES]);
    }
}

/// Rounds R rows for one block to integers round(q * step * inverse), without [`Precision::LOW_QUERY`] to multiples of
/// 256, and computes their bases.
pub(super) struct QueryRounding<'a, const R: usize, P: Precision> {
    /// `[R][padded head_dim]`, a multiple of 16 each.
    pub(super) q: &'a [[f32; LANES]],
    /// bf16.
    pub(super) lo: &'a [[u16; LANES]],
    pub(super) step: &'a [[u16; LANES]],
    /// `[R][slots]`.
    pub(super) whole: &'a mut [[i16; LANES]],
    pub(super) rows: &'a mut [RoundedRow; GROUP_ROWS],
    pub(super) precision: PhantomData<P>,
}

impl<const R: usize, P: Precision> QueryRounding<'_, R, P> {
    #[inline(always)]
    pub(super) fn run<S: Simd>(self, s: S, isa: Isa) {
        let vectors = self.step.len();
        assert!(self.q.len() == R * vectors && self.whole.len() == R * slots(vectors));
        assert!(self.lo.len() == vectors);
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: a `Kernels` value exists only for a level that the machine has; lengths were checked.
            return unsafe { self.avx512() };
        }
        set_bases::<S, R>(s, self.q, self.lo, self.step, self.rows);
        match isa {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.avx2() },
            _ => self.portable(),
        }
    }

    /// Channel by channel.
    fn portable(self) {
        let vectors = self.step.len();
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            (row.sum, row.low, row.high) = (0, 0, 0);
            let whole = &mut self.whole[r * slots(vectors)..][..vectors];
            let q = self.q[r * vectors..].as_flattened();
            for ((whole, q), &step) in
                whole.as_flattened_mut().iter_mut().zip(q).zip(self.step.as_flattened())
            {
                let x = q * bf16::from_bits(step).to_f32();
                let rounded = x.mul_add(row.inverse, SHIFT).to_bits().wrapping_sub(SHIFT.to_bits());
                let rounded = i32::from(rounded as i16);
                let high = (rounded + 128) >> 8;
                let low = rounded - 256 * high;
                let taken = if P::LOW_QUERY { rounded } else { 256 * high };
                row.low += if P::LOW_QUERY { 0 } else { low.abs() };
                row.high += if P::LOW_KEY { 0 } else { high.abs() };
                row.sum += taken;
                *whole = taken as i16;
            }
        }
    }
}

/// The largest |q * step| of R rows.
#[inline(always)]
pub(super) fn largest_products<S: Simd, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    step: &[[u16; LANES]],
) -> [f32; R] {
    let q = rows_of::<R>(q, step.len());
    let mut peak = [s.zero(); R];
    for (vector, step) in step.iter().enumerate() {
        let step = s.load_bf16(step);
        for r in 0..R {
            peak[r] = s.max(s.abs(s.mul(s.load(&q[r][vector]), step)), peak[r]);
        }
    }
    s.reduce_max_each(peak)
}

/// Upper bounds on the largest |q * step| of R rows, from the peaks of both.
#[inline(always)]
pub(super) fn peak_bounds<S: Simd, const R: usize>(
    s: S,
    q_peaks: &[[f32; LANES]],
    step_peaks: &[u16; LANES],
) -> [f32; R] {
    let steps = s.load_bf16(step_peaks);
    let mut peak = [s.zero(); R];
    for r in 0..R {
        peak[r] = s.mul(s.load(&q_peaks[r]), steps);
    }
    s.reduce_max_each(peak)
}

/// Peaks of a query: lane v is the largest |q| in vector v of channels, and in every sixteenth vector from there on.
#[inline(always)]
pub(crate) fn peaks_of<S: Simd>(s: S, q: &[[f32; LANES]]) -> [f32; LANES] {
    let mut peaks = [0.0_f32; LANES];
    for (vector, q) in q.iter().enumerate() {
        let peak = &mut peaks[vector % LANES];
        *peak = peak.max(s.reduce_max(s.abs(s.load(q))));
    }
    peaks
}

/// Sets the units of R rows of which no |q * step| exceeds `peak`.
#[inline(always)]
pub(super) fn set_units<const R: usize>(
    rows: &mut [RoundedRow; GROUP_ROWS],
    peak: [f32; R],
    peaks: &mut [f32],
    levels: f32,
) {
    for r in 0..R {
        peaks[r] = peaks[r].max(peak[r]);
        rows[r].unit = peak[r] * (1.0 / levels);
        // Where a number is not finite the score is NaN, by its base or by an infinite unit.
        rows[r].inverse = if peak[r] > NEGLIGIBLE && peak[r].is_finite() { levels / peak[r] } else { 0.0 };
    }
}

/// Sets the bases of R rows: q . (lo + 128 step).
#[inline(always)]
fn set_bases<S: Simd, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    lo: &[[u16; LANES]],
    step: &[[u16; LANES]],
    rows: &mut [RoundedRow; GROUP_ROWS],
) {
    let q = rows_of::<R>(q, step.len());
    let mut base = [s.zero(); R];
    for (vector, (lo, step)) in lo.iter().zip(step).enumerate() {
        let centre = s.fma(s.load_bf16(step), s.splat(CENTRE), s.load_bf16(lo));
        for r in 0..R {
            base[r] = s.fma(s.load(&q[r][vector]), centre, base[r]);
        }
    }
    let base = s.reduce_add_each(base);
    (0..R).for_each(|r| rows[r].base = base[r]);
}

/// R rows of `vectors` vectors.
#[inline(always)]
fn rows_of<const R: usize>(q: &[[f32; LANES]], vectors: usize) -> [&[[f32; LANES]]; R] {
    let mut rows = [&q[..0]; R];
    for r in 0..R {
        rows[r] = &q[r * vectors..(r + 1) * vectors];
    }
    rows
}
