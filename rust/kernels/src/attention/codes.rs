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

use super::BLOCK_SIZE;
use super::int8::Int8Head;
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Codes are taken from here on.
const CENTRE: f32 = 128.0;
/// Below this the largest |x| of a block counts as 0: what it could add to a score vanishes in rounding.
const NOTHING: f32 = 1e-30;
/// Channels that lie together in a plane.
const UNIT: usize = 8;
/// Bytes of a unit in one plane.
const UNIT_BYTES: usize = BLOCK_SIZE * UNIT / 2;

/// Largest number that a query is rounded to: what 16 bits hold, and no sum over the channels exceeds 32 bits.
#[inline(always)]
fn levels(padded: usize) -> f32 {
    (i32::MAX as usize / (255 * padded)).min(i16::MAX as usize) as f32
}

/// Bound on the error of scores that comes from rounding queries, where no |q * step| of a block exceeds `peak`.
#[inline(always)]
pub(super) fn score_error(head_dim: usize, padded: usize, peak: f32) -> f32 {
    // 0.501: the quotient and the product round too.
    0.501 * peak.max(NOTHING * levels(padded)) / levels(padded) * CENTRE * head_dim as f32
}

/// The place of a channel's code of `token` in a plane: a byte, and the bits to shift by.
///
/// Eight channels lie together in four bytes for each token: read as two numbers of 16 bits, the first one holds the
/// even channels and the second the odd ones. One shift and one mask then make pairs of neighbours, which is what
/// instructions for products of 16 bits take.
#[inline(always)]
pub(super) fn place(channel: usize, token: usize) -> (usize, u32) {
    let (unit, inner) = (channel / UNIT, channel % UNIT);
    let nibble = inner / 2;
    (unit * UNIT_BYTES + token * 4 + 2 * (inner % 2) + nibble / 2, 4 * (nibble % 2) as u32)
}

/// Memory for the queries of a few rows in the measure of a block.
#[derive(Default)]
pub(super) struct Rounded {
    /// q * step, `[rows][padded head_dim]`.
    x: Vec<[f32; LANES]>,
    /// The same in whole numbers.
    whole: Vec<[i16; LANES]>,
}

impl Rounded {
    /// Makes room for `rows` rows of `vectors` vectors.
    pub(super) fn resize(&mut self, rows: usize, vectors: usize) {
        self.x.resize(rows * vectors, [0.0; LANES]);
        self.whole.resize(rows * vectors, [0; LANES]);
    }
}

/// Scores of at most four rows: `q` is `[rows][padded head_dim]`, a row of `to` a query's scores.
///
/// `peaks` rise to the largest |q * step| of each row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn code_scores(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    head: Int8Head<'_>,
    rounded: &mut Rounded,
    ahead: *const u8,
    peaks: &mut [f32],
    to: &mut [[f32; BLOCK_SIZE]],
) {
    let isa = kernels.isa();
    macro_rules! rows {
        ($n:literal) => {
            dispatch(kernels, CodeScores::<$n> { isa, q, head, rounded, ahead, peaks, to })
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
    head: Int8Head<'a>,
    rounded: &'a mut Rounded,
    ahead: *const u8,
    peaks: &'a mut [f32],
    to: &'a mut [[f32; BLOCK_SIZE]],
}

impl<const R: usize> Op for CodeScores<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CodeScores { isa, q, head, rounded, ahead, peaks, to } = self;
        let (q, to, peaks) = (&q[..R * head.lo.len()], &mut to[..R], &mut peaks[..R]);
        let vectors = head.lo.len();
        let x = &mut rounded.x[..R * vectors];
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
        let (mut units, mut inverses) = ([0.0; R], [0.0; R]);
        for r in 0..R {
            let peak = s.reduce_max(peak[r]);
            peaks[r] = peaks[r].max(peak);
            units[r] = peak / levels;
            // Where a number is not finite the score is NaN, by its base or by an infinite unit.
            inverses[r] = if peak > NOTHING && peak.is_finite() { levels / peak } else { 0.0 };
        }
        let task = Products { x, inverses: &inverses, high: head.high, low: head.low, ahead };
        task.run(isa, &mut rounded.whole[..R * vectors], to);
        for r in 0..R {
            let (unit, base) = (s.splat(units[r]), s.splat(s.reduce_add(base[r])));
            for part in to[r].as_chunks_mut::<LANES>().0 {
                s.store(s.fma(unit, s.load(part), base), part);
            }
        }
    }
}

/// Integer products of R rows with a block's codes.
struct Products<'a, const R: usize> {
    /// `[R][padded head_dim]`, a multiple of 16 each.
    x: &'a [[f32; LANES]],
    /// What makes whole numbers of them.
    inverses: &'a [f32; R],
    high: &'a [u8],
    low: &'a [u8],
    ahead: *const u8,
}

impl<const R: usize> Products<'_, R> {
    /// to = sums of round(x * inverse) * (code - 128), `[R][32]`.
    #[inline(always)]
    fn run(self, isa: Isa, whole: &mut [[i16; LANES]], to: &mut [[f32; BLOCK_SIZE]]) {
        let bytes = self.x.len() / R * LANES / 2 * BLOCK_SIZE;
        assert!(self.high.len() == bytes && self.low.len() == bytes);
        assert!(whole.len() == self.x.len() && to.len() == R && self.x.len().is_multiple_of(R));
        match isa {
            Isa::Portable => self.portable(whole, to),
            // SAFETY: a `Kernels` value exists only for a level that the machine has; lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.avx2(whole, to) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { self.avx512(whole, to) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.portable(whole, to),
        }
    }

    /// The plain form, with which the others agree bit for bit.
    fn portable(&self, whole: &mut [[i16; LANES]], to: &mut [[f32; BLOCK_SIZE]]) {
        let vectors = self.x.len() / R;
        for (row, to) in to.iter_mut().enumerate() {
            let part = row * vectors..(row + 1) * vectors;
            for (whole, x) in whole[part.clone()].iter_mut().zip(&self.x[part.clone()]) {
                *whole = x.map(|x| (x * self.inverses[row]).round_ties_even() as i16);
            }
            for (token, to) in to.iter_mut().enumerate() {
                let mut sum = 0_i32;
                for (channel, &x) in whole[part.clone()].as_flattened().iter().enumerate() {
                    let (byte, shift) = place(channel, token);
                    let code = (self.high[byte] >> shift & 15) << 4 | (self.low[byte] >> shift & 15);
                    sum = sum.wrapping_add(i32::from(x) * (i32::from(code) - CENTRE as i32));
                }
                *to = sum as f32;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK_SIZE, CENTRE, LANES, Products, UNIT, UNIT_BYTES};

    impl<const R: usize> Products<'_, R> {
        /// # Safety
        /// The machine has AVX2. Lengths are as `run` checks them.
        #[target_feature(enable = "avx2")]
        pub(super) unsafe fn avx2(&self, whole: &mut [[i16; LANES]], to: &mut [[f32; BLOCK_SIZE]]) {
            let vectors = self.x.len() / R;
            let mut offsets = [_mm256_setzero_si256(); R];
            for r in 0..R {
                let inverse = _mm256_set1_ps(self.inverses[r]);
                let mut sum = 0_i32;
                for vector in r * vectors..(r + 1) * vectors {
                    let x = self.x[vector].as_ptr();
                    // SAFETY: 16 floats are read and 16 codes written.
                    unsafe {
                        let a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
                        let b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.add(8)), inverse));
                        let codes = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b));
                        _mm256_storeu_si256(whole[vector].as_mut_ptr().cast(), codes);
                    }
                    sum = whole[vector].iter().fold(sum, |sum, &x| sum.wrapping_add(i32::from(x)));
                }
                offsets[r] = _mm256_set1_epi32(sum.wrapping_mul(CENTRE as i32));
            }
            let (f, f0) = (_mm256_set1_epi16(0x0f), _mm256_set1_epi16(0xf0));
            // Few registers: eight tokens at a time.
            for quarter in 0..4 {
                let mut sums = [_mm256_setzero_si256(); R];
                for unit in 0..vectors * LANES / UNIT {
                    let at = unit * UNIT_BYTES + quarter * 32;
                    _mm_prefetch::<_MM_HINT_T1>(
                        self.ahead.wrapping_add(2 * unit * UNIT_BYTES + quarter * 64).cast(),
                    );
                    // SAFETY: planes hold a unit for every eight channels.
                    let (h, l) = unsafe {
                        (
                            _mm256_loadu_si256(self.high.as_ptr().add(at).cast()),
                            _mm256_loadu_si256(self.low.as_ptr().add(at).cast()),
                        )
                    };
                    let codes = [
                        _mm256_or_si256(
                            _mm256_and_si256(_mm256_slli_epi16::<4>(h), f0),
                            _mm256_and_si256(l, f),
                        ),
                        _mm256_or_si256(
                            _mm256_and_si256(h, f0),
                            _mm256_and_si256(_mm256_srli_epi16::<4>(l), f),
                        ),
                        _mm256_or_si256(
                            _mm256_and_si256(_mm256_srli_epi16::<4>(h), f0),
                            _mm256_and_si256(_mm256_srli_epi16::<8>(l), f),
                        ),
                        _mm256_or_si256(
                            _mm256_and_si256(_mm256_srli_epi16::<8>(h), f0),
                            _mm256_srli_epi16::<12>(l),
                        ),
                    ];
                    for (k, codes) in codes.into_iter().enumerate() {
                        for r in 0..R {
                            // SAFETY: a row holds `vectors` x 16 codes, two of them are read.
                            let pair = unsafe {
                                whole
                                    .as_ptr()
                                    .add(r * vectors)
                                    .cast::<i32>()
                                    .add(unit * UNIT / 2 + k)
                                    .read_unaligned()
                            };
                            let products = _mm256_madd_epi16(codes, _mm256_set1_epi32(pair));
                            sums[r] = _mm256_add_epi32(sums[r], products);
                        }
                    }
                }
                for r in 0..R {
                    let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[r], offsets[r]));
                    // SAFETY: eight floats of 32.
                    unsafe { _mm256_storeu_ps(to[r].as_mut_ptr().add(quarter * 8), sum) };
                }
            }
        }

        /// # Safety
        /// The machine has AVX-512 F, BW, VL and VNNI. Lengths are as `run` checks them.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        pub(super) unsafe fn avx512(&self, whole: &mut [[i16; LANES]], to: &mut [[f32; BLOCK_SIZE]]) {
            let vectors = self.x.len() / R;
            let mut offsets = [_mm512_setzero_si512(); R];
            for r in 0..R {
                let inverse = _mm512_set1_ps(self.inverses[r]);
                let mut sum = _mm512_setzero_si512();
                for vector in r * vectors..(r + 1) * vectors {
                    // SAFETY: 16 floats are read and 16 codes written.
                    unsafe {
                        let x = _mm512_mul_ps(_mm512_loadu_ps(self.x[vector].as_ptr()), inverse);
                        let codes = _mm512_cvtps_epi32(x);
                        sum = _mm512_add_epi32(sum, codes);
                        let codes = _mm512_cvtsepi32_epi16(codes);
                        _mm256_storeu_si256(whole[vector].as_mut_ptr().cast(), codes);
                    }
                }
                offsets[r] = _mm512_set1_epi32(_mm512_reduce_add_epi32(sum).wrapping_mul(CENTRE as i32));
            }
            let (f, f0) = (_mm512_set1_epi16(0x0f), _mm512_set1_epi16(0xf0));
            let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; R];
            for unit in 0..vectors * LANES / UNIT {
                for line in 0..4 {
                    let line = 2 * unit * UNIT_BYTES + line * 64;
                    _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(line).cast());
                }
                for half in 0..2 {
                    let at = unit * UNIT_BYTES + half * 64;
                    // SAFETY: planes hold a unit for every eight channels.
                    let (h, l) = unsafe {
                        (
                            _mm512_loadu_si512(self.high.as_ptr().add(at).cast()),
                            _mm512_loadu_si512(self.low.as_ptr().add(at).cast()),
                        )
                    };
                    // Truth tables: 0xf8 is a | (b & c), 0xea is (a & b) | c.
                    let codes = [
                        _mm512_ternarylogic_epi32::<0xf8>(
                            _mm512_and_si512(_mm512_slli_epi16::<4>(h), f0),
                            l,
                            f,
                        ),
                        _mm512_ternarylogic_epi32::<0xea>(
                            h,
                            f0,
                            _mm512_and_si512(_mm512_srli_epi16::<4>(l), f),
                        ),
                        _mm512_ternarylogic_epi32::<0xea>(
                            _mm512_srli_epi16::<4>(h),
                            f0,
                            _mm512_and_si512(_mm512_srli_epi16::<8>(l), f),
                        ),
                        _mm512_ternarylogic_epi32::<0xea>(
                            _mm512_srli_epi16::<8>(h),
                            f0,
                            _mm512_srli_epi16::<12>(l),
                        ),
                    ];
                    for (k, codes) in codes.into_iter().enumerate() {
                        for r in 0..R {
                            // SAFETY: a row holds `vectors` x 16 codes, two of them are read.
                            let pair = unsafe {
                                whole
                                    .as_ptr()
                                    .add(r * vectors)
                                    .cast::<i32>()
                                    .add(unit * UNIT / 2 + k)
                                    .read_unaligned()
                            };
                            let sum = &mut sums[r][half][k % 2];
                            *sum = _mm512_dpwssd_epi32(*sum, codes, _mm512_set1_epi32(pair));
                        }
                    }
                }
            }
            for r in 0..R {
                for half in 0..2 {
                    let sum = _mm512_add_epi32(sums[r][half][0], sums[r][half][1]);
                    let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offsets[r]));
                    // SAFETY: 16 floats of 32.
                    unsafe { _mm512_storeu_ps(to[r].as_mut_ptr().add(half * LANES), sum) };
                }
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
        let inverses = [1.0; R];
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
            let mut whole = vec![[0; LANES]; R * vectors];
            let mut got = vec![[f32::NAN; BLOCK_SIZE]; R];
            let task =
                Products { x: &x, inverses: &inverses, high: &high, low: &low, ahead: std::ptr::null() };
            task.run(isa, &mut whole, &mut got);
            assert_eq!(got, want, "{isa}: {R} rows of {vectors} vectors, seed {seed}, extreme: {extreme}");
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
