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

#[cfg(target_arch = "x86_64")]
mod x86;

use super::BLOCK_SIZE;
use super::int8::Int8Head;
use super::source::Ahead;
use super::tile::ROWS;
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{LANES, Op, Simd, dispatch};

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

/// Vectors that a row of whole numbers has room for: two are rounded together.
#[inline(always)]
fn slots(vectors: usize) -> usize {
    vectors.next_multiple_of(2)
}

/// Memory for the queries of a few rows in the measures of a few blocks.
#[derive(Default)]
pub(super) struct Rounded {
    /// q * step, `[blocks][rows][padded head_dim]`.
    x: Vec<[f32; LANES]>,
    /// The same in whole numbers, each level as its instructions take them.
    whole: Vec<[i16; LANES]>,
    rows: [[Row; ROWS]; BLOCKS],
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
    /// The sum of them.
    sum: i32,
}

impl Rounded {
    /// Makes room for rows of `vectors` vectors.
    pub(super) fn resize(&mut self, vectors: usize) {
        self.x.resize(BLOCKS * ROWS * vectors, [0.0; LANES]);
        self.whole.resize(BLOCKS * ROWS * slots(vectors), [0; LANES]);
    }
}

/// Scores of at most four rows in at most [`BLOCKS`] blocks: `q` is `[rows][padded head_dim]`, a row of `to[block]` a query's scores.
///
/// `ahead` says for each block where lines begin that will be read soon. `peaks` rise to the largest |q * step| of each row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn code_scores(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    heads: &[Int8Head<'_>],
    rounded: &mut Rounded,
    ahead: &[Ahead],
    peaks: &mut [f32],
    to: &mut [[[f32; BLOCK_SIZE]; ROWS]],
) {
    let isa = kernels.isa();
    macro_rules! rows {
        ($n:literal) => {
            dispatch(kernels, CodeScores::<$n> { isa, q, heads, rounded, ahead, peaks, to })
        };
    }
    match rows {
        4 => rows!(4),
        3 => rows!(3),
        2 => rows!(2),
        _ => rows!(1),
    }
}

struct CodeScores<'a, const R: usize> {
    isa: Isa,
    q: &'a [[f32; LANES]],
    heads: &'a [Int8Head<'a>],
    rounded: &'a mut Rounded,
    ahead: &'a [Ahead],
    peaks: &'a mut [f32],
    to: &'a mut [[[f32; BLOCK_SIZE]; ROWS]],
}

impl<const R: usize> Op for CodeScores<'_, R> {
    type Output = ();

    /// One thing after the other, each for all blocks: within a block each waits for the one before, from block to block none does.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CodeScores { isa, q, heads, rounded: Rounded { x, whole, rows }, ahead, peaks, to } = self;
        let vectors = heads[0].lo.len();
        let (blocks, size, slots) = (heads.len(), R * vectors, R * slots(vectors));
        let (q, peaks) = (&q[..size], &mut peaks[..R]);
        assert!(ahead.len() == blocks && to.len() == blocks);
        for (n, head) in heads.iter().enumerate() {
            measure::<S, R>(s, q, head, &mut x[n * size..][..size], &mut rows[n], peaks);
        }
        for n in 0..blocks {
            let (x, whole) = (&x[n * size..][..size], &mut whole[n * slots..][..slots]);
            Rounding::<R> { x, whole, rows: &mut rows[n] }.run(isa);
        }
        for (n, head) in heads.iter().enumerate() {
            let (whole, ahead) = (&whole[n * slots..][..slots], ahead[n].keys);
            let products = Products::<R> { whole, rows: &rows[n], high: head.high, low: head.low, ahead };
            products.run(isa, &mut to[n]);
        }
        for (rows, to) in rows.iter().zip(to) {
            for (row, to) in rows.iter().zip(to).take(R) {
                for part in to.as_chunks_mut::<LANES>().0 {
                    s.store(s.fma(s.splat(row.unit), s.load(part), s.splat(row.base)), part);
                }
            }
        }
    }
}

/// What R queries are in the measure of a block, but for their whole numbers.
#[inline(always)]
fn measure<S: Simd, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    head: &Int8Head<'_>,
    x: &mut [[f32; LANES]],
    rows: &mut [Row; ROWS],
    peaks: &mut [f32],
) {
    let vectors = x.len() / R;
    let (mut base, mut peak) = ([s.zero(); R], [s.zero(); R]);
    for (vector, (lo, step)) in head.lo.iter().zip(head.step).enumerate() {
        let step = s.load_bf16(step);
        let centre = s.fma(step, s.splat(CENTRE), s.load_bf16(lo));
        for r in 0..R {
            let q = s.load(&q[r * vectors + vector]);
            base[r] = s.fma(q, centre, base[r]);
            let product = s.mul(q, step);
            peak[r] = s.max(s.abs(product), peak[r]);
            s.store(product, &mut x[r * vectors + vector]);
        }
    }
    let levels = levels(vectors * LANES);
    let (base, peak) = (s.reduce_add_each(base), s.reduce_max_each(peak));
    for r in 0..R {
        peaks[r] = peaks[r].max(peak[r]);
        rows[r].base = base[r];
        rows[r].unit = peak[r] / levels;
        // Where a number is not finite the score is NaN, by its base or by an infinite unit.
        rows[r].inverse = if peak[r] > NOTHING && peak[r].is_finite() { levels / peak[r] } else { 0.0 };
    }
}

/// Makes whole numbers of R rows in the measure of a block.
struct Rounding<'a, const R: usize> {
    /// `[R][padded head_dim]`, a multiple of 16 each.
    x: &'a [[f32; LANES]],
    /// `[R][slots]`.
    whole: &'a mut [[i16; LANES]],
    rows: &'a mut [Row; ROWS],
}

impl<const R: usize> Rounding<'_, R> {
    /// whole = round(x * inverse).
    #[inline(always)]
    fn run(self, isa: Isa) {
        assert!(self.x.len().is_multiple_of(R) && self.whole.len() == R * slots(self.x.len() / R));
        match isa {
            Isa::Portable => self.portable(),
            // SAFETY: a `Kernels` value exists only for a level that the machine has; lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.avx2() },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { self.avx512() },
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.portable(),
        }
    }

    /// Channel by channel.
    fn portable(self) {
        let vectors = self.x.len() / R;
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            let whole = &mut self.whole[r * slots(vectors)..][..vectors];
            for (whole, x) in whole.iter_mut().zip(&self.x[r * vectors..]) {
                *whole = x.map(|x| (x * row.inverse).round_ties_even() as i16);
            }
            row.sum = whole.as_flattened().iter().map(|&x| i32::from(x)).sum();
        }
    }
}

/// Integer products of R rows with a block's codes.
struct Products<'a, const R: usize> {
    whole: &'a [[i16; LANES]],
    rows: &'a [Row; ROWS],
    high: &'a [u8],
    low: &'a [u8],
    ahead: *const u8,
}

impl<const R: usize> Products<'_, R> {
    /// to = sums of whole * (code - 128).
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
                    let code = (self.high[byte] >> shift & 15) << 4 | (self.low[byte] >> shift & 15);
                    sum = sum.wrapping_add(i32::from(x) * (i32::from(code) - CENTRE as i32));
                }
                *to = sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of bits.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    /// The products of R rows on every level, against sums of 64 bits.
    fn agree<const R: usize>(vectors: usize, seed: u64, extreme: bool) {
        let mut state = seed;
        let bytes = vectors * LANES / 2 * BLOCK_SIZE;
        let mut plane =
            || (0..bytes).map(|_| if extreme { 0xff } else { random(&mut state) as u8 }).collect();
        let (high, low): (Vec<u8>, Vec<u8>) = (plane(), plane());
        let levels = levels(vectors * LANES);
        let mut x = vec![[0.0_f32; LANES]; R * vectors];
        for x in x.as_flattened_mut() {
            *x =
                if extreme { levels } else { random(&mut state) as f32 / 2.0_f32.powi(30) * levels - levels };
        }
        let mut rows = [Row { inverse: 1.0, ..Row::default() }; ROWS];
        let mut want = vec![[0.0; BLOCK_SIZE]; R];
        for (want, x) in want.iter_mut().zip(x.chunks(vectors)) {
            for (token, want) in want.iter_mut().enumerate() {
                let product = |(channel, &x): (usize, &f32)| {
                    let (byte, shift) = place(channel, token);
                    let code =
                        i64::from((high[byte] >> shift) & 15) * 16 + i64::from((low[byte] >> shift) & 15);
                    i64::from(x.round_ties_even() as i32) * (code - 128)
                };
                *want = x.as_flattened().iter().enumerate().map(product).sum::<i64>() as f32;
            }
        }
        for isa in Isa::available() {
            let mut whole = vec![[0; LANES]; R * slots(vectors)];
            let mut got = [[f32::NAN; BLOCK_SIZE]; ROWS];
            Rounding::<R> { x: &x, whole: &mut whole, rows: &mut rows }.run(isa);
            let (whole, rows, high, low) = (&whole, &rows, &high, &low);
            Products::<R> { whole, rows, high, low, ahead: std::ptr::null() }.run(isa, &mut got);
            assert_eq!(
                got[..R],
                want[..],
                "{isa}: {R} rows of {vectors} vectors, seed {seed}, extreme: {extreme}"
            );
        }
    }

    #[test]
    fn products_are_exact_on_every_level() {
        for vectors in [1, 2, 3, 5, 8, 16, 17, 32] {
            for seed in 0..4 {
                for extreme in [false, true] {
                    agree::<1>(vectors, seed, extreme);
                    agree::<2>(vectors, seed, extreme);
                    agree::<3>(vectors, seed, extreme);
                    agree::<4>(vectors, seed, extreme);
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
