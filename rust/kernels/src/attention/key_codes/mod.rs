//! Scores against int8 keys: the query, rounded to 16 bits block by block, times the codes, in integers.
//!
//! With x = q * step of a block and `unit` = the largest |x| over [`levels`],
//!
//! ```text
//!     q . key = q . (lo + 128 step) + unit * sum of round(x / unit) * (code - 128) + error,
//!     |error| <= unit / 2 * 128 * head_dim
//! ```
//!
//! which [`score_error`] bounds; it is a hundredth of what rounding the keys to codes does to a score. Sums of integers
//! are exact in any order, so each instruction set takes the instructions and the order that suit it.
//!
//! [`exact`] gives scores by all 16 bits; [`look`] gives softmax masses of blocks by 8 of them, within known limits.

mod exact;
mod look;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use exact::code_scores;
pub(super) use look::{Look, Seen};

use std::ops::Range;

use half::bf16;

use super::BLOCK_SIZE;
use super::int8::Int8Head;
use super::source::Ahead;
use super::tile::ROWS;
use crate::isa::Isa;
use crate::simd::{LANES, Simd};

/// Blocks that are computed together at most.
pub(super) const BLOCKS: usize = 4;
/// Codes are taken from here on.
const CENTRE: f32 = 128.0;
/// Below this the largest |x| of a block counts as 0: what it could add to a score vanishes in rounding.
const NOTHING: f32 = 1e-30;
/// Channels that lie together in a plane.
const UNIT: usize = 8;
/// Bytes of a unit in one plane.
const UNIT_BYTES: usize = BLOCK_SIZE * UNIT / 2;
/// Largest number of 16 bits whose parts `256 * high + low` are both numbers of 8 bits with a sign.
const MOST: usize = 127 * 256 + 127;

/// Largest number that a query is rounded to: two parts of 8 bits hold it, and no sum over the channels exceeds 32 bits.
#[inline(always)]
fn levels(padded: usize) -> f32 {
    (i32::MAX as usize / (255 * padded)).min(MOST) as f32
}

/// Bound on the error of scores that comes from rounding queries, where no |q * step| of a block exceeds `peak`.
#[inline(always)]
pub(super) fn score_error(head_dim: usize, padded: usize, peak: f32) -> f32 {
    // 0.501: the quotient and the product round too.
    0.501 * peak.max(NOTHING * levels(padded)) / levels(padded) * CENTRE * head_dim as f32
}

/// The place of a channel's code of `token` in a plane: a byte, and the bits to shift by.
///
/// Eight channels lie together in four bytes for each token, the first four in the low halves and the others in the high ones: four
/// neighbours are what instructions for products of 8 bits take.
#[inline(always)]
pub(super) fn place(channel: usize, token: usize) -> (usize, u32) {
    let (unit, inner) = (channel / UNIT, channel % UNIT);
    (unit * UNIT_BYTES + token * 4 + inner % 4, 4 * (inner / 4) as u32)
}

/// 1.5 * 2^23: the sum with a number below 2^22 is rounded to a whole one, which stands in its low bits (as in Hacker's Delight).
const SHIFT: f32 = 12_582_912.0;

/// Vectors that a row of whole numbers has room for: four are rounded together.
#[inline(always)]
fn slots(vectors: usize) -> usize {
    vectors.next_multiple_of(4)
}

/// Memory for the queries of a few rows in the measures of a few blocks.
#[derive(Default)]
pub(super) struct Rounded {
    /// q * step in whole numbers, each level as its instructions take them, `[blocks][rows][slots]`.
    whole: Vec<[i16; LANES]>,
    rows: [[Row; ROWS]; BLOCKS],
    /// Sums of products.
    sums: [[[f32; BLOCK_SIZE]; ROWS]; BLOCKS],
}

/// A query in the measure of a block.
#[derive(Default, Clone, Copy)]
struct Row {
    /// q . (lo + 128 step).
    base: f32,
    /// What one of the whole numbers counts.
    unit: f32,
    /// What makes them; 0 where they are all 0.
    inverse: f32,
    /// The sum of what products take of them.
    sum: i32,
    /// Where products do without the low parts, the sum of their magnitudes.
    low: i32,
    /// Where they do without the low halves of keys, the sum of the high parts' magnitudes. They count 256 each.
    high: i32,
}

impl Rounded {
    /// Makes room for rows of `vectors` vectors.
    pub(super) fn resize(&mut self, vectors: usize) {
        self.whole.resize(BLOCKS * ROWS * slots(vectors), [0; LANES]);
    }
}

/// Rows of queries in the measure of some blocks, and the sums of their products with codes: with LOW of all 16 bits of a query, else of the
/// high 8; with KEYS of whole codes, else of their high halves.
///
/// One thing after the other, each for all blocks: within a block each waits for the one before, from block to block none does.
struct Sums<'a, const R: usize, const LOW: bool, const KEYS: bool> {
    isa: Isa,
    /// `[rows][padded head_dim]`.
    q: &'a [[f32; LANES]],
    /// Of each row, as [`peaks_of`] gives them; only for looks.
    q_peaks: &'a [[f32; LANES]],
    heads: &'a [Int8Head<'a>],
    rounded: &'a mut Rounded,
    /// For each block where lines begin that will be read soon.
    ahead: &'a [Ahead],
    /// Rise to the largest |q * step| of each row.
    peaks: &'a mut [f32],
}

impl<const R: usize, const LOW: bool, const KEYS: bool> Sums<'_, R, LOW, KEYS> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sums { isa, q, heads, q_peaks, rounded: Rounded { whole, rows, sums }, ahead, peaks } = self;
        let vectors = heads[0].lo.len();
        let (blocks, slots) = (heads.len(), R * slots(vectors));
        let (q, peaks) = (&q[..R * vectors], &mut peaks[..R]);
        assert!(ahead.len() == blocks && blocks <= BLOCKS);
        // Lines of the next blocks are asked for in all three parts: memory would have nothing to do in the first two else.
        let lines = vectors * if KEYS { 2 } else { 1 };
        let fetch = |block: usize, lines: Range<usize>| {
            for line in lines {
                s.prefetch_l2(ahead[block].keys.wrapping_add(64 * line));
            }
        };
        for (n, head) in heads.iter().enumerate() {
            fetch(n, 0..lines);
            let peak = if LOW {
                largest::<S, R>(s, q, head.step)
            } else {
                bounds::<S, R>(s, q_peaks, head.step_peaks)
            };
            set_units(&mut rows[n], peak, peaks, levels(vectors * LANES));
        }
        for (n, head) in heads.iter().enumerate() {
            fetch(n, lines..2 * lines);
            let whole = &mut whole[n * slots..][..slots];
            Rounding::<R, LOW, KEYS> { q, lo: head.lo, step: head.step, whole, rows: &mut rows[n] }
                .run(s, isa);
        }
        for (n, head) in heads.iter().enumerate() {
            let whole = &whole[n * slots..][..slots];
            let ahead = ahead[n].keys.wrapping_add(64 * 2 * lines);
            let products =
                Products::<R, LOW, KEYS> { whole, rows: &rows[n], high: head.high, low: head.low, ahead };
            products.run(isa, &mut sums[n]);
        }
    }
}

/// The largest |q * step| of R rows.
#[inline(always)]
fn largest<S: Simd, const R: usize>(s: S, q: &[[f32; LANES]], step: &[[u16; LANES]]) -> [f32; R] {
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

/// Bounds on the largest |q * step| of R rows: the largest product of the largest |q| and the largest step of some channels each.
#[inline(always)]
fn bounds<S: Simd, const R: usize>(s: S, q_peaks: &[[f32; LANES]], step_peaks: &[u16; LANES]) -> [f32; R] {
    let steps = s.load_bf16(step_peaks);
    let mut peak = [s.zero(); R];
    for r in 0..R {
        peak[r] = s.mul(s.load(&q_peaks[r]), steps);
    }
    s.reduce_max_each(peak)
}

/// The largest magnitudes of a query's vectors, as a block has those of its steps: of vector v and every sixteenth from there on in
/// place v.
#[inline(always)]
pub(super) fn peaks_of<S: Simd>(s: S, q: &[[f32; LANES]]) -> [f32; LANES] {
    let mut peaks = [0.0_f32; LANES];
    for (vector, q) in q.iter().enumerate() {
        let peak = &mut peaks[vector % LANES];
        *peak = peak.max(s.reduce_max(s.abs(s.load(q))));
    }
    peaks
}

/// Sets what whole numbers count, where no |q * step| exceeds `peak`.
#[inline(always)]
fn set_units<const R: usize>(rows: &mut [Row; ROWS], peak: [f32; R], peaks: &mut [f32], levels: f32) {
    for r in 0..R {
        peaks[r] = peaks[r].max(peak[r]);
        rows[r].unit = peak[r] * (1.0 / levels);
        // Where a number is not finite the score is NaN, by its base or by an infinite unit.
        rows[r].inverse = if peak[r] > NOTHING && peak[r].is_finite() { levels / peak[r] } else { 0.0 };
    }
}

/// Sets the bases of R rows: q . (lo + 128 step).
#[inline(always)]
fn set_bases<S: Simd, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    lo: &[[u16; LANES]],
    step: &[[u16; LANES]],
    rows: &mut [Row; ROWS],
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

/// Makes bases and whole numbers of R rows in the measure of a block: round(q * step * inverse), without LOW to multiples of 256.
struct Rounding<'a, const R: usize, const LOW: bool, const KEYS: bool> {
    /// `[R][padded head_dim]`, a multiple of 16 each.
    q: &'a [[f32; LANES]],
    /// bf16.
    lo: &'a [[u16; LANES]],
    step: &'a [[u16; LANES]],
    /// `[R][slots]`.
    whole: &'a mut [[i16; LANES]],
    rows: &'a mut [Row; ROWS],
}

impl<const R: usize, const LOW: bool, const KEYS: bool> Rounding<'_, R, LOW, KEYS> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S, isa: Isa) {
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
                let taken = if LOW { rounded } else { 256 * high };
                row.low += if LOW { 0 } else { low.abs() };
                row.high += if KEYS { 0 } else { high.abs() };
                row.sum += taken;
                *whole = taken as i16;
            }
        }
    }
}

/// Integer products of R rows with a block's codes, or without KEYS with their high halves.
struct Products<'a, const R: usize, const LOW: bool, const KEYS: bool> {
    whole: &'a [[i16; LANES]],
    rows: &'a [Row; ROWS],
    high: &'a [u8],
    low: &'a [u8],
    /// Two lines for each unit of channels, or without KEYS one.
    ahead: *const u8,
}

impl<const R: usize, const LOW: bool, const KEYS: bool> Products<'_, R, LOW, KEYS> {
    /// to = sums of whole * (code - 128), where without KEYS the low half of a code counts 0.
    #[inline(always)]
    fn run(self, isa: Isa, to: &mut [[f32; BLOCK_SIZE]; ROWS]) {
        let vectors = self.high.len() / (LANES / 2 * BLOCK_SIZE);
        assert!(self.high.len() == vectors * (LANES / 2 * BLOCK_SIZE) && self.low.len() == self.high.len());
        assert!(self.whole.len() == R * slots(vectors));
        match isa {
            Isa::Portable => self.portable(vectors, to),
            // SAFETY: a `Kernels` value exists only for a level that the machine has; lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.avx2(vectors, to) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { self.avx512(vectors, to) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.portable(vectors, to),
        }
    }

    /// The plain form, with which the others agree bit for bit.
    fn portable(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; ROWS]) {
        for (r, to) in to.iter_mut().enumerate().take(R) {
            let whole = &self.whole[r * slots(vectors)..][..vectors];
            for (token, to) in to.iter_mut().enumerate() {
                let mut sum = 0_i32;
                for (channel, &x) in whole.as_flattened().iter().enumerate() {
                    let (byte, shift) = place(channel, token);
                    let low = if KEYS { self.low[byte] >> shift & 15 } else { 0 };
                    let code = (self.high[byte] >> shift & 15) << 4 | low;
                    sum = sum.wrapping_add(i32::from(x) * (i32::from(code) - CENTRE as i32));
                }
                *to = sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Kernels;
    use crate::simd::{Op, dispatch};

    /// A stream of bits.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    struct Round<'a, const R: usize, const LOW: bool, const KEYS: bool>(Isa, Rounding<'a, R, LOW, KEYS>);

    impl<const R: usize, const LOW: bool, const KEYS: bool> Op for Round<'_, R, LOW, KEYS> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            self.1.run(s, self.0);
        }
    }

    /// What R rows of q, with steps of 1, come to on every level, against sums of 64 bits.
    fn agree<const R: usize, const LOW: bool, const KEYS: bool>(vectors: usize, seed: u64, extreme: bool) {
        let mut state = seed;
        let bytes = vectors * LANES / 2 * BLOCK_SIZE;
        let mut plane =
            || (0..bytes).map(|_| if extreme { 0xff } else { random(&mut state) as u8 }).collect();
        let (high, low): (Vec<u8>, Vec<u8>) = (plane(), plane());
        let levels = levels(vectors * LANES);
        let mut q = vec![[0.0_f32; LANES]; R * vectors];
        for x in q.as_flattened_mut() {
            *x =
                if extreme { levels } else { random(&mut state) as f32 / 2.0_f32.powi(30) * levels - levels };
        }
        let step = vec![[bf16::ONE.to_bits(); LANES]; vectors];
        let lo = vec![[bf16::from_f32(-128.0).to_bits(); LANES]; vectors];
        let mut want_rows = Vec::new();
        let mut want = vec![[0.0; BLOCK_SIZE]; R];
        for (want, q) in want.iter_mut().zip(q.chunks(vectors)) {
            let whole: Vec<i32> = q.as_flattened().iter().map(|x| x.round_ties_even() as i32).collect();
            let high_part = |x: i32| (x + 128).div_euclid(256);
            let taken = |x: i32| if LOW { x } else { 256 * high_part(x) };
            want_rows.push([
                whole.iter().map(|&x| taken(x)).sum::<i32>(),
                whole.iter().map(|&x| if LOW { 0 } else { (x - 256 * high_part(x)).abs() }).sum(),
                whole.iter().map(|&x| if KEYS { 0 } else { high_part(x).abs() }).sum(),
            ]);
            for (token, want) in want.iter_mut().enumerate() {
                let product = |(channel, &x): (usize, &i32)| {
                    let (byte, shift) = place(channel, token);
                    let low = if KEYS { (low[byte] >> shift) & 15 } else { 0 };
                    let code = i64::from((high[byte] >> shift) & 15) * 16 + i64::from(low);
                    i64::from(taken(x)) * (code - 128)
                };
                *want = whole.iter().enumerate().map(product).sum::<i64>() as f32;
            }
        }
        for isa in Isa::available() {
            let mut rows = [Row { inverse: 1.0, ..Row::default() }; ROWS];
            let mut whole = vec![[0; LANES]; R * slots(vectors)];
            let mut got = [[f32::NAN; BLOCK_SIZE]; ROWS];
            let rounding =
                Rounding::<R, LOW, KEYS> { q: &q, lo: &lo, step: &step, whole: &mut whole, rows: &mut rows };
            dispatch(&Kernels::new(1, Some(isa)).unwrap(), Round(isa, rounding));
            let products = Products::<R, LOW, KEYS> {
                whole: &whole,
                rows: &rows,
                high: &high,
                low: &low,
                ahead: std::ptr::null(),
            };
            products.run(isa, &mut got);
            let what = format!("{isa}: {R} rows of {vectors} vectors, seed {seed}, extreme: {extreme}");
            assert_eq!(got[..R], want[..], "{what}");
            let rows: Vec<_> = rows[..R].iter().map(|row| [row.sum, row.low, row.high]).collect();
            assert_eq!(rows, want_rows, "{what}");
        }
    }

    #[test]
    fn products_are_exact_on_every_level() {
        fn of_rows<const R: usize>(vectors: usize, seed: u64, extreme: bool) {
            agree::<R, true, true>(vectors, seed, extreme);
            agree::<R, false, true>(vectors, seed, extreme);
            agree::<R, false, false>(vectors, seed, extreme);
        }
        for vectors in [1, 2, 3, 5, 8, 16, 17, 32] {
            for seed in 0..4 {
                for extreme in [false, true] {
                    of_rows::<1>(vectors, seed, extreme);
                    of_rows::<2>(vectors, seed, extreme);
                    of_rows::<3>(vectors, seed, extreme);
                    of_rows::<4>(vectors, seed, extreme);
                }
            }
        }
    }

    /// Every channel and token of a unit has four bits of its own.
    #[test]
    fn places_do_not_overlap() {
        let mut seen = std::collections::HashSet::new();
        for channel in 0..3 * UNIT {
            for token in 0..BLOCK_SIZE {
                let (byte, shift) = place(channel, token);
                assert!(byte < 3 * UNIT_BYTES && (shift == 0 || shift == 4));
                assert!(seen.insert((byte, shift)), "channel {channel} of token {token}");
            }
        }
    }
}
