//! The products with keys' codes by the instructions of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{BLOCK_SIZE, CENTRE, LANES, Products, ROWS, Rounding, UNIT, UNIT_BYTES, slots};

impl<const R: usize, const LOW: bool> Rounding<'_, R, LOW> {
    /// # Safety
    /// The machine has AVX2. Lengths are as `run` checks them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(self) {
        let vectors = self.step.len();
        // Of eight channels the even ones, then the odd ones: so they stand in the halves of pairs of bytes below.
        #[rustfmt::skip]
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        ));
        let (half, high_bits, one) = (_mm256_set1_epi16(128), _mm256_set1_epi16(!0xff), _mm256_set1_epi16(1));
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
                    _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse))
                };
                let both = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(round(0), round(8)));
                // The high part times 256, and what is left.
                let high = _mm256_and_si256(_mm256_add_epi16(both, half), high_bits);
                let low = _mm256_sub_epi16(both, high);
                let taken = if LOW { both } else { high };
                let parts = [taken, _mm256_abs_epi16(low), _mm256_srli_epi16::<8>(_mm256_abs_epi16(high))];
                for (sum, part) in sums.iter_mut().zip(parts) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(part, one));
                }
                // SAFETY: 16 numbers are written.
                unsafe {
                    _mm256_storeu_si256(whole.as_mut_ptr().cast(), _mm256_shuffle_epi8(taken, order));
                }
            }
            let sums = sums.map(|sum| {
                let mut lanes = [0_i32; 8];
                // SAFETY: eight numbers are written.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
                lanes.iter().fold(0, |a: i32, &b| a.wrapping_add(b))
            });
            [row.sum, row.low, row.high] = sums;
        }
    }

    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI. Lengths are as `run` checks them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn avx512(self) {
        let vectors = self.step.len();
        // Of eight numbers of 16 bits the low bytes, then the high ones. Half of the range of a low part is added first: that
        // carries into the high part, and turns the sign of the low one, which is turned back.
        #[rustfmt::skip]
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
        ));
        let turned = _mm512_broadcast_i32x4(_mm_set_epi64x(0, i64::from_ne_bytes([0x80; 8])));
        let (carry, one) = (_mm512_set1_epi16(128), _mm512_set1_epi8(1));
        let widen = |step: &[u16; LANES]| {
            // SAFETY: 16 steps are read.
            let step = unsafe { _mm256_loadu_si256(step.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(step)))
        };
        // Sums of the parts and of their magnitudes, four channels in a lane: two lanes of low parts, two of high ones.
        let mut sums = [[_mm512_setzero_si512(); 2]; R];
        for (pair, step) in self.step.chunks(2).enumerate() {
            let steps = [widen(&step[0]), step.get(1).map_or(_mm512_setzero_ps(), widen)];
            for r in 0..R {
                let inverse = _mm512_set1_ps(self.rows[r].inverse);
                let round = |n: usize| {
                    // SAFETY: 16 floats are read.
                    let q = unsafe { _mm512_loadu_ps(self.q[r * vectors + 2 * pair + n].as_ptr()) };
                    _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(q, steps[n]), inverse))
                };
                let last = if step.len() > 1 { round(1) } else { _mm512_setzero_si512() };
                let both = _mm512_packs_epi32(round(0), last);
                let parts = _mm512_shuffle_epi8(_mm512_add_epi16(both, carry), order);
                let parts = _mm512_xor_si512(parts, turned);
                sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], one, parts);
                sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], _mm512_abs_epi8(parts), one);
                // SAFETY: a row has whole pairs of vectors, 32 numbers each.
                unsafe {
                    let whole = self.whole[r * slots(vectors) + 2 * pair..].as_mut_ptr();
                    _mm512_storeu_si512(whole.cast(), parts);
                }
            }
        }
        for (row, [parts, magnitudes]) in self.rows.iter_mut().zip(sums) {
            let fold = |sums| {
                let sums =
                    _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
                _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
            };
            let sums = _mm_hadd_epi32(fold(parts), fold(magnitudes));
            let mut lanes = [0; 4];
            // SAFETY: four numbers are written.
            unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), sums) };
            let [low, high, low_magnitude, high_magnitude] = lanes;
            row.sum = if LOW { 256 * high + low } else { 256 * high };
            (row.low, row.high) = (low_magnitude, high_magnitude);
        }
    }
}

impl<const R: usize, const LOW: bool, const KEYS: bool> Products<'_, R, LOW, KEYS> {
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
                let line = if KEYS {
                    2 * unit * UNIT_BYTES + quarter * 64
                } else {
                    unit * UNIT_BYTES + quarter * 32
                };
                _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(line).cast());
                let load = |plane: &[u8]| {
                    // SAFETY: planes hold a unit for every eight channels.
                    unsafe { _mm256_loadu_si256(plane.as_ptr().add(at).cast()) }
                };
                let (h, l) = (load(self.high), if KEYS { load(self.low) } else { _mm256_setzero_si256() });
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
        // Sums of products with the high and with the low parts of the queries.
        let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; R];
        for unit in 0..vectors * LANES / UNIT {
            let lines = if KEYS { 4 } else { 2 };
            for line in lines * unit..lines * (unit + 1) {
                _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(64 * line).cast());
            }
            let mut codes = [[_mm512_setzero_si512(); 2]; 2];
            for half in 0..2 {
                let at = unit * UNIT_BYTES + half * 64;
                let load = |plane: &[u8]| {
                    // SAFETY: planes hold a unit for every eight channels.
                    unsafe { _mm512_loadu_si512(plane.as_ptr().add(at).cast()) }
                };
                let h = load(self.high);
                let first = _mm512_and_si512(_mm512_slli_epi16::<4>(h), f0);
                codes[half] = if KEYS {
                    let l = load(self.low);
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
            for r in 0..R {
                // Of two vectors, the four channels at 4 q of the one and those of the other: low parts, then high ones.
                let pair = self.whole[r * slots(vectors) + unit / 4 * 2..].as_ptr().cast::<i32>();
                for four in 0..2 {
                    let at = unit % 2 * 8 + four * 4 + unit / 2 % 2;
                    for part in 0..if LOW { 2 } else { 1 } {
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
                // Without LOW there is nothing in the second.
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
                // SAFETY: 16 floats of 32.
                unsafe { _mm512_storeu_ps(to[r].as_mut_ptr().add(half * LANES), sum) };
            }
        }
    }
}
