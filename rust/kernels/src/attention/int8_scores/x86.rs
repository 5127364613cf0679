//! Rounding and integer products with the instructions of AVX2 and AVX-512.
//!
//! Products take a token's four bytes of a plane, which hold eight channels, in the steps that instructions allow. The
//! integers of a query are stored in the same order.
//!
//! ```text
//!     a token's bytes           0     1     2     3
//!     low nibbles               c0    c1    c2    c3
//!     high nibbles              c4    c5    c6    c7
//!
//!     AVX2, pairs of words      step 0: c0 c2     1: c4 c6     2: c1 c3     3: c5 c7
//!     query, 16 bytes           c0 c2 c4 c6 c1 c3 c5 c7
//!
//!     AVX-512, four bytes       step 0: c0 c1 c2 c3            1: c4 c5 c6 c7
//!     query, 128 bytes          64 high bytes, then 64 low bytes; units of 8 channels in the order 0 4 1 5 2 6 3 7
//! ```

use std::arch::x86_64::*;

use super::super::block_ops::GROUP_ROWS;
use super::super::kv_cache::{UNIT, UNIT_BYTES};
use super::super::params::BLOCK_SIZE;
use super::dots::CodeProducts;
use super::rounding::{CENTRE, Precision, QueryRounding, SHIFT, slots};
use crate::simd::{Avx512, LANES, Simd};

impl<const R: usize, P: Precision> QueryRounding<'_, R, P> {
    /// # Safety
    /// The machine has AVX2 and FMA. Lengths are as `run` checks them.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(self) {
        let vectors = self.step.len();
        // The order of a query's words, drawn above.
        #[rustfmt::skip]
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        ));
        let (half, high_bits, one) = (_mm256_set1_epi16(128), _mm256_set1_epi16(!0xff), _mm256_set1_epi16(1));
        let wanted = 1 + usize::from(!P::LOW_QUERY) + usize::from(!P::LOW_KEY);
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            let inverse = _mm256_set1_ps(row.inverse);
            let mut sums = [_mm256_setzero_si256(); 3];
            for (vector, step) in self.step.iter().enumerate() {
                let q = self.q[r * vectors + vector].as_ptr();
                let whole = &mut self.whole[r * slots(vectors) + vector];
                // SAFETY: 16 floats and 16 steps are read.
                let round = |from: usize| unsafe {
                    let step = _mm256_cvtepu16_epi32(_mm_loadu_si128(step.as_ptr().add(from).cast()));
                    let step = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(step));
                    let x = _mm256_mul_ps(_mm256_loadu_ps(q.add(from)), step);
                    let shifted = _mm256_fmadd_ps(x, inverse, _mm256_set1_ps(SHIFT));
                    _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(SHIFT.to_bits() as i32))
                };
                let both = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(round(0), round(8)));
                // The high part times 256, and what is left.
                let high = _mm256_and_si256(_mm256_add_epi16(both, half), high_bits);
                let low = _mm256_sub_epi16(both, high);
                let taken = if P::LOW_QUERY { both } else { high };
                let parts = [taken, _mm256_abs_epi16(low), _mm256_srli_epi16::<8>(_mm256_abs_epi16(high))];
                for (sum, part) in sums.iter_mut().zip(parts).take(wanted) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(part, one));
                }
                // SAFETY: 16 numbers are written.
                unsafe {
                    _mm256_storeu_si256(whole.as_mut_ptr().cast(), _mm256_shuffle_epi8(taken, order));
                }
            }
            [row.sum, row.low, row.high] = sums.map(|sum| {
                let mut lanes = [0_i32; 8];
                // SAFETY: eight numbers are written.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
                lanes.iter().fold(0, |a: i32, &b| a.wrapping_add(b))
            });
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI. Lengths are as `run` checks them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(self) {
        let vectors = self.step.len();
        // The low words of two vectors, in order. Hidden from the compiler, which would take slower instructions for
        // this order.
        let words: [u16; 32] = std::hint::black_box(std::array::from_fn(|n| 2 * n as u16));
        // SAFETY: 64 bytes are read.
        let words = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        // Of eight words the low bytes, then the high ones.
        #[rustfmt::skip]
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
        ));
        // With half the range of a low part added a high part is rounded, and the sign of the low part turned.
        let shift = _mm512_set1_ps(SHIFT + 128.0);
        let turned = _mm512_set1_epi8(-128);
        let one = _mm512_set1_epi8(1);
        let widen = |step: &[u16; LANES]| {
            // SAFETY: 16 steps are read.
            let step = unsafe { _mm256_loadu_si256(step.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(step)))
        };
        let mut inverses = [_mm512_setzero_ps(); R];
        inverses.iter_mut().zip(&*self.rows).for_each(|(to, row)| *to = _mm512_set1_ps(row.inverse));
        let (q, whole) = (self.q.as_ptr(), self.whole.as_mut_ptr());
        // SAFETY: the machine has what this function asks for.
        let s = unsafe { Avx512::new() };
        let mut base = [_mm512_setzero_ps(); R];
        // Sums of high and of low parts, and of the magnitudes of either.
        let mut sums = [[_mm512_setzero_si512(); GROUP_ROWS]; 4];
        for group in 0..vectors.div_ceil(4) {
            let at = |n: usize| (4 * group + n).min(vectors - 1);
            let (mut steps, mut centres) = ([_mm512_setzero_ps(); 4], [_mm512_setzero_ps(); 4]);
            for n in 0..4 {
                // A step and a centre of 0 where there is no vector.
                if 4 * group + n < vectors {
                    steps[n] = widen(&self.step[4 * group + n]);
                    let lo = widen(&self.lo[4 * group + n]);
                    centres[n] = _mm512_fmadd_ps(steps[n], _mm512_set1_ps(CENTRE), lo);
                }
            }
            for r in 0..R {
                let mut whole_numbers = [_mm512_setzero_si512(); 4];
                for n in 0..4 {
                    // SAFETY: a row of q has `vectors` vectors of 16 floats.
                    let q = unsafe { _mm512_loadu_ps(q.add(r * vectors + at(n)).cast()) };
                    base[r] = _mm512_fmadd_ps(q, centres[n], base[r]);
                    let x = _mm512_mul_ps(q, steps[n]);
                    whole_numbers[n] = _mm512_castps_si512(_mm512_fmadd_ps(x, inverses[r], shift));
                }
                let pair = |n: usize| {
                    let both = _mm512_permutex2var_epi16(whole_numbers[n], words, whole_numbers[n + 1]);
                    _mm512_shuffle_epi8(both, order)
                };
                let pairs = [pair(0), pair(2)];
                let high = _mm512_unpackhi_epi64(pairs[0], pairs[1]);
                let low = _mm512_xor_si512(_mm512_unpacklo_epi64(pairs[0], pairs[1]), turned);
                sums[0][r] = _mm512_dpbusd_epi32(sums[0][r], one, high);
                // SAFETY: a row has room for whole groups, 128 bytes each.
                unsafe {
                    let whole = whole.add(r * slots(vectors) + 4 * group);
                    _mm512_storeu_si512(whole.cast(), high);
                    if P::LOW_QUERY {
                        sums[1][r] = _mm512_dpbusd_epi32(sums[1][r], one, low);
                        _mm512_storeu_si512(whole.add(2).cast(), low);
                    } else {
                        sums[2][r] = _mm512_dpbusd_epi32(sums[2][r], _mm512_abs_epi8(low), one);
                    }
                    if !P::LOW_KEY {
                        sums[3][r] = _mm512_dpbusd_epi32(sums[3][r], _mm512_abs_epi8(high), one);
                    }
                }
            }
        }
        let [high, low, low_magnitudes, high_magnitudes] = sums.map(|sums| {
            let mut lanes = [0_i32; GROUP_ROWS];
            // SAFETY: four numbers are written.
            unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), fold(sums)) };
            lanes
        });
        let base = s.reduce_add_each(base);
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            row.base = base[r];
            row.sum = high[r].wrapping_mul(256).wrapping_add(low[r]);
            (row.low, row.high) = (low_magnitudes[r], high_magnitudes[r]);
        }
    }
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fold([a, b, c, d]: [__m512i; 4]) -> __m128i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

impl<const R: usize, P: Precision> CodeProducts<'_, R, P> {
    /// # Safety
    /// The machine has AVX2. Lengths are as `run` checks them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; GROUP_ROWS]) {
        let (f, f0) = (_mm256_set1_epi16(0x0f), _mm256_set1_epi16(0xf0));
        // Few registers: eight tokens at a time.
        for quarter in 0..4 {
            let mut sums = [_mm256_setzero_si256(); R];
            for unit in 0..vectors * LANES / UNIT {
                let at = unit * UNIT_BYTES + quarter * 32;
                let line = 2 * unit + quarter;
                if P::LOW_KEY && quarter < 2 {
                    _mm_prefetch::<_MM_HINT_T1>(self.prefetch_at.wrapping_add(64 * line).cast());
                } else if quarter == 0 {
                    _mm_prefetch::<_MM_HINT_T1>(self.prefetch_at.wrapping_add(64 * unit).cast());
                }
                let load = |plane: &[u8]| {
                    // SAFETY: planes hold a unit for every eight channels.
                    unsafe { _mm256_loadu_si256(plane.as_ptr().add(at).cast()) }
                };
                let (h, l) =
                    (load(self.high), if P::LOW_KEY { load(self.low) } else { _mm256_setzero_si256() });
                let codes = [
                    _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16::<4>(h), f0), _mm256_and_si256(l, f)),
                    _mm256_or_si256(_mm256_and_si256(h, f0), _mm256_and_si256(_mm256_srli_epi16::<4>(l), f)),
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
                            self.whole
                                .as_ptr()
                                .add(r * slots(vectors))
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
                let offset = _mm256_set1_epi32(self.rows[r].sum.wrapping_mul(CENTRE as i32));
                let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[r], offset));
                // SAFETY: eight floats of 32.
                unsafe { _mm256_storeu_ps(to[r].as_mut_ptr().add(quarter * 8), sum) };
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI. Lengths are as `run` checks them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; GROUP_ROWS]) {
        let (f, f0) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0xf0_u8 as i8));
        let (high, low) = (self.high.as_ptr(), self.low.as_ptr());
        // Sums of products with the high and with the low parts of the queries.
        let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; R];
        for unit in 0..vectors * LANES / UNIT {
            let lines = if P::LOW_KEY { 2 } else { 1 };
            for line in lines * unit..lines * (unit + 1) {
                _mm_prefetch::<_MM_HINT_T1>(self.prefetch_at.wrapping_add(64 * line).cast());
            }
            let mut codes = [[_mm512_setzero_si512(); 2]; 2];
            for half in 0..2 {
                let at = unit * UNIT_BYTES + half * 64;
                // SAFETY: planes hold a unit for every eight channels.
                let load = |plane: *const u8| unsafe { _mm512_loadu_si512(plane.add(at).cast()) };
                let h = load(high);
                let first = _mm512_and_si512(_mm512_slli_epi16::<4>(h), f0);
                codes[half] = if P::LOW_KEY {
                    let l = load(low);
                    let others = _mm512_and_si512(_mm512_srli_epi16::<4>(l), f);
                    // Truth tables: 0xf8 is a | (b & c), 0xea is (a & b) | c.
                    [
                        _mm512_ternarylogic_epi32::<0xf8>(first, l, f),
                        _mm512_ternarylogic_epi32::<0xea>(h, f0, others),
                    ]
                } else {
                    [first, _mm512_and_si512(h, f0)]
                };
            }
            // Index of a unit's high bytes in a query, by 4 bytes.
            let at = unit / 8 * 32 + unit % 4 * 4 + unit / 4 % 2 * 2;
            for r in 0..R {
                for four in 0..2 {
                    for part in 0..if P::LOW_QUERY { 2 } else { 1 } {
                        // SAFETY: a row has a group of 128 bytes, 32 times four, for every eight units.
                        let x = unsafe {
                            let row = self.whole.as_ptr().add(r * slots(vectors)).cast::<i32>();
                            row.add(at + four + 16 * part).read_unaligned()
                        };
                        for half in 0..2 {
                            let sum = &mut sums[r][half][part];
                            *sum = _mm512_dpbusd_epi32(*sum, codes[half][four], _mm512_set1_epi32(x));
                        }
                    }
                }
            }
        }
        for r in 0..R {
            let offset = _mm512_set1_epi32(self.rows[r].sum.wrapping_mul(CENTRE as i32));
            for half in 0..2 {
                let [high, low] = sums[r][half];
                // Without P::LOW_QUERY there is nothing in the second.
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
                // SAFETY: 16 floats of 32.
                unsafe { _mm512_storeu_ps(to[r].as_mut_ptr().add(half * LANES), sum) };
            }
        }
    }
}
