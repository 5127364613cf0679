//! The products with keys' codes by the instructions of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{BLOCK_SIZE, CENTRE, LANES, Products, ROWS, Rounding, UNIT, UNIT_BYTES, slots};

impl<const R: usize> Rounding<'_, R> {
    /// # Safety
    /// The machine has AVX2. Lengths are as `run` checks them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(self) {
        let vectors = self.x.len() / R;
        // Of eight channels the even ones, then the odd ones: so they stand in the halves of pairs of bytes below.
        #[rustfmt::skip]
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        ));
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            let inverse = _mm256_set1_ps(row.inverse);
            row.sum = 0;
            for vector in 0..vectors {
                let x = self.x[r * vectors + vector].as_ptr();
                let whole = &mut self.whole[r * slots(vectors) + vector];
                // SAFETY: 16 floats are read and 16 numbers written.
                unsafe {
                    let a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
                    let b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.add(8)), inverse));
                    let both = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b));
                    _mm256_storeu_si256(whole.as_mut_ptr().cast(), _mm256_shuffle_epi8(both, order));
                }
                row.sum = whole.iter().fold(row.sum, |sum, &x| sum.wrapping_add(i32::from(x)));
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI. Lengths are as `run` checks them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(self) {
        let vectors = self.x.len() / R;
        // Of eight numbers of 16 bits the low bytes, then the high ones. Half of the range of a low part is added first: that
        // carries into the high part, and turns the sign of the low one, which is turned back.
        #[rustfmt::skip]
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
        ));
        let turned = _mm512_broadcast_i32x4(_mm_set_epi64x(0, i64::from_ne_bytes([0x80; 8])));
        let (carry, one) = (_mm512_set1_epi16(128), _mm512_set1_epi16(1));
        for (r, row) in self.rows.iter_mut().enumerate().take(R) {
            let inverse = _mm512_set1_ps(row.inverse);
            let mut sum = _mm512_setzero_si512();
            let x = &self.x[r * vectors..(r + 1) * vectors];
            let whole = self.whole[r * slots(vectors)..].as_chunks_mut::<2>().0;
            for (x, whole) in x.chunks(2).zip(whole) {
                // SAFETY: 16 floats are read each time, and 32 numbers written.
                unsafe {
                    let round = |x: &[f32; LANES]| {
                        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), inverse))
                    };
                    let last = x.get(1).map_or(_mm512_setzero_si512(), round);
                    let both = _mm512_packs_epi32(round(&x[0]), last);
                    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(both, one));
                    let parts = _mm512_shuffle_epi8(_mm512_add_epi16(both, carry), order);
                    _mm512_storeu_si512(whole.as_mut_ptr().cast(), _mm512_xor_si512(parts, turned));
                }
            }
            row.sum = _mm512_reduce_add_epi32(sum);
        }
    }
}

impl<const R: usize> Products<'_, R> {
    /// # Safety
    /// The machine has AVX2. Lengths are as `run` checks them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; ROWS]) {
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
    pub(super) unsafe fn avx512(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; ROWS]) {
        let (f, f0) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0xf0_u8 as i8));
        // Sums of products with the high and with the low parts.
        let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; R];
        for unit in 0..vectors * LANES / UNIT {
            for line in 0..4 {
                let line = 2 * unit * UNIT_BYTES + line * 64;
                _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(line).cast());
            }
            let mut codes = [[_mm512_setzero_si512(); 2]; 2];
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
                let first = _mm512_and_si512(_mm512_slli_epi16::<4>(h), f0);
                let others = _mm512_and_si512(_mm512_srli_epi16::<4>(l), f);
                codes[half] = [
                    _mm512_ternarylogic_epi32::<0xf8>(first, l, f),
                    _mm512_ternarylogic_epi32::<0xea>(h, f0, others),
                ];
            }
            for r in 0..R {
                // Of two vectors, the four channels at 4 q of the one and those of the other: low parts, then high ones.
                let pair = self.whole[r * slots(vectors) + unit / 4 * 2..].as_ptr().cast::<i32>();
                for four in 0..2 {
                    let at = unit % 2 * 8 + four * 4 + unit / 2 % 2;
                    for part in 0..2 {
                        // SAFETY: a pair has 64 bytes, sixteen times four.
                        let x = unsafe { pair.add(at + 2 - 2 * part).read_unaligned() };
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
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
                // SAFETY: 16 floats of 32.
                unsafe { _mm512_storeu_ps(to[r].as_mut_ptr().add(half * LANES), sum) };
            }
        }
    }
}
