//! AVX2 with FMA and F16C: a vector of 16 lanes is two registers.

use std::arch::x86_64::*;

use super::vector::{LANES, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

/// Intrinsics for which the token is the licence.
macro_rules! intrinsics {
    ($e:expr) => {
        // SAFETY: an `Avx2` value exists only where the features do; pointers come from references of the full size.
        unsafe { $e }
    };
}

/// One intrinsic of two operands on both halves.
macro_rules! both {
    ($f:ident, $a:expr, $b:expr) => {
        intrinsics!([$f($a[0], $b[0]), $f($a[1], $b[1])])
    };
}

/// Lanes 8..16 folded onto 0..8 by the caller, the rest here: 4 onto 4, 2 onto 2, 1 onto 1.
#[inline(always)]
pub(super) fn fold_add(a: __m256) -> f32 {
    intrinsics!({
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    })
}

/// As [`fold_add`], with the maximum.
#[inline(always)]
pub(super) fn fold_max(a: __m256) -> f32 {
    intrinsics!({
        let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    })
}

/// Eight bf16 values as f32.
#[inline(always)]
fn widen(half: __m128i) -> __m256 {
    intrinsics!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))))
}

/// (codes as i8) . x for 8 rows, added to `acc`.
///
/// maddubs needs one unsigned side and saturates at i16. |x| * (w with the sign of x) is the same product. The sum of
/// two products is at most 2 * 127 * 127 = 32258.
#[inline(always)]
fn dot_half(acc: __m256i, w: __m256i, x: __m256i, x_abs: __m256i) -> __m256i {
    intrinsics!({
        let pairs = _mm256_maddubs_epi16(x_abs, _mm256_sign_epi8(w, x));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    })
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];
    /// The codes and their absolute values.
    type Q = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        intrinsics!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        intrinsics!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        intrinsics!({
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        let p: *const __m128i = x.as_ptr().cast();
        intrinsics!([widen(_mm_loadu_si128(p)), widen(_mm_loadu_si128(p.add(1)))])
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        let p: *const __m128i = x.as_ptr().cast();
        intrinsics!({
            let (low, high) = (_mm_loadl_epi64(p), _mm_loadl_epi64(p.byte_add(8)));
            [low, high].map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half)))
        })
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u16; 2 * LANES]) -> (Self::F, Self::F) {
        let p: *const __m256i = x.as_ptr().cast();
        intrinsics!({
            let (a, b) = (_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)));
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = [_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b)];
            let odd = [_mm256_and_si256(a, high), _mm256_and_si256(b, high)];
            (even.map(|v| _mm256_castsi256_ps(v)), odd.map(|v| _mm256_castsi256_ps(v)))
        })
    }

    #[inline(always)]
    fn store_bf16_pairs(self, (even, odd): (Self::F, Self::F), to: &mut [u16; 2 * LANES]) {
        let p: *mut __m256i = to.as_mut_ptr().cast();
        for half in 0..2 {
            intrinsics!({
                let even = _mm256_srli_epi32::<16>(_mm256_castps_si256(even[half]));
                _mm256_storeu_si256(p.add(half), _mm256_or_si256(even, _mm256_castps_si256(odd[half])));
            });
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        intrinsics!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        intrinsics!([
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
        ])
    }
    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        let less =
            |half: usize| intrinsics!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a[half], b[half])));
        less(0) | less(1) != 0
    }
    #[inline(always)]
    fn partner<const DISTANCE: usize>(self, a: Self::F) -> Self::F {
        intrinsics!(match DISTANCE {
            1 => [_mm256_permute_ps::<0b10_11_00_01>(a[0]), _mm256_permute_ps::<0b10_11_00_01>(a[1])],
            2 => [_mm256_permute_ps::<0b01_00_11_10>(a[0]), _mm256_permute_ps::<0b01_00_11_10>(a[1])],
            4 => [_mm256_permute2f128_ps::<1>(a[0], a[0]), _mm256_permute2f128_ps::<1>(a[1], a[1])],
            8 => [a[1], a[0]],
            _ => unreachable!("a distance of {DISTANCE}"),
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        fold_max(intrinsics!(_mm256_max_ps(a[0], a[1])))
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::F) -> f32 {
        fold_add(intrinsics!(_mm256_add_ps(a[0], a[1])))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        intrinsics!([_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])])
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        intrinsics!([_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])])
    }
    #[inline(always)]
    fn nearest(self, a: Self::F) -> Self::F {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        intrinsics!([_mm256_round_ps::<MODE>(a[0]), _mm256_round_ps::<MODE>(a[1])])
    }
    #[inline(always)]
    fn times_exp2(self, a: Self::F, n: Self::F) -> Self::F {
        let power = |n| {
            // 2^n by its exponent bits.
            let biased = intrinsics!(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
            intrinsics!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        };
        self.mul(a, [power(n[0]), power(n[1])])
    }
    #[inline(always)]
    fn store_i8(self, a: Self::I, to: &mut [i8; LANES]) {
        intrinsics!({
            // Packing works within 128-bit halves: the permutation puts the quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a[0], a[1]));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
        })
    }

    #[inline(always)]
    fn weights(self, codes: &[u8; 4 * LANES]) -> Self::W {
        let p: *const __m256i = codes.as_ptr().cast();
        intrinsics!({
            let flip = _mm256_set1_epi8(-128);
            [
                _mm256_xor_si256(_mm256_loadu_si256(p), flip),
                _mm256_xor_si256(_mm256_loadu_si256(p.add(1)), flip),
            ]
        })
    }
    #[inline(always)]
    fn quad(self, codes: &[i8; 4]) -> Self::Q {
        let bits = i32::from_le_bytes(codes.map(|code| code as u8));
        intrinsics!({
            let x = _mm256_set1_epi32(bits);
            [x, _mm256_abs_epi8(x)]
        })
    }
    #[inline(always)]
    fn dot_start(self, _sum: i32) -> Self::I {
        intrinsics!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::W, x: Self::Q) -> Self::I {
        [dot_half(acc[0], w[0], x[0], x[1]), dot_half(acc[1], w[1], x[0], x[1])]
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn prefetch_l2<T>(self, p: *const T) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
}
