//! AVX-512 F, BW, VL and VNNI: a vector of 16 lanes is one register.

use std::arch::x86_64::*;

use super::avx2::{fold_add, fold_max};
use super::vector::{LANES, Simd};

/// Proof that the machine has AVX-512 F, BW, VL and VNNI, and all of AVX2's level.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, VL and VNNI, and AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx512 {
        Avx512(())
    }
}

/// Intrinsics for which the token is the licence.
macro_rules! intrinsics {
    ($e:expr) => {
        // SAFETY: an `Avx512` value exists only where the features do; pointers come from references of the full size.
        unsafe { $e }
    };
}

/// Lanes 0..8 and 8..16.
#[inline(always)]
fn halves(a: __m512) -> (__m256, __m256) {
    intrinsics!({
        let high = _mm512_extracti64x4_epi64::<1>(_mm512_castps_si512(a));
        (_mm512_castps512_ps256(a), _mm256_castsi256_ps(high))
    })
}

/// Four folds side by side, each in the order of `fold_add`: lanes i and i + 8 of every vector first.
macro_rules! fold_four {
    ($a:expr, $op:ident) => {
        intrinsics!({
            let halved = |a, b| {
                $op(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
            };
            let [a, b, c, d] = $a;
            let (ab, cd) = (halved(a, b), halved(c, d));
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let four = $op(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
            let two = $op(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            let one = $op(two, _mm512_permute_ps::<0b10_11_00_01>(two));
            // A vector's result is in every lane of its quarter.
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
            let mut out = [0.0_f32; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one)));
            out
        })
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type Q = __m512i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        intrinsics!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        intrinsics!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(to.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        intrinsics!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        intrinsics!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u16; 2 * LANES]) -> (Self::F, Self::F) {
        intrinsics!({
            let pairs = _mm512_loadu_si512(x.as_ptr().cast());
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let even = _mm512_slli_epi32::<16>(pairs);
            (_mm512_castsi512_ps(even), _mm512_castsi512_ps(_mm512_and_si512(pairs, high)))
        })
    }
    #[inline(always)]
    fn store_bf16_pairs(self, (even, odd): (Self::F, Self::F), to: &mut [u16; 2 * LANES]) {
        intrinsics!({
            let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_or_si512(even, _mm512_castps_si512(odd)));
        });
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        intrinsics!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        // A mask blend takes its second operand where the bit is set.
        intrinsics!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b)) != 0
    }
    #[inline(always)]
    fn partner<const DISTANCE: usize>(self, a: Self::F) -> Self::F {
        intrinsics!(match DISTANCE {
            1 => _mm512_permute_ps::<0b10_11_00_01>(a),
            2 => _mm512_permute_ps::<0b01_00_11_10>(a),
            4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a),
            8 => _mm512_shuffle_f32x4::<0b01_00_11_10>(a, a),
            _ => unreachable!("a distance of {DISTANCE}"),
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        let (low, high) = halves(a);
        fold_max(intrinsics!(_mm256_max_ps(low, high)))
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::F) -> f32 {
        let (low, high) = halves(a);
        fold_add(intrinsics!(_mm256_add_ps(low, high)))
    }
    #[inline(always)]
    fn reduce_max_each<const N: usize>(self, a: [Self::F; N]) -> [f32; N] {
        if let Some(four) = a.first_chunk::<4>()
            && N == 4
        {
            let out = fold_four!(*four, _mm512_max_ps);
            return std::array::from_fn(|n| out[n]);
        }
        a.map(|a| self.reduce_max(a))
    }
    #[inline(always)]
    fn reduce_add_each<const N: usize>(self, a: [Self::F; N]) -> [f32; N] {
        if let Some(four) = a.first_chunk::<4>()
            && N == 4
        {
            let out = fold_four!(*four, _mm512_add_ps);
            return std::array::from_fn(|n| out[n]);
        }
        a.map(|a| self.reduce_add(a))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        intrinsics!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        intrinsics!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn nearest(self, a: Self::F) -> Self::F {
        intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn times_exp2(self, a: Self::F, n: Self::F) -> Self::F {
        intrinsics!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn store_i8(self, a: Self::I, to: &mut [i8; LANES]) {
        intrinsics!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(a)))
    }

    #[inline(always)]
    fn weights(self, codes: &[u8; 4 * LANES]) -> Self::W {
        intrinsics!(_mm512_loadu_si512(codes.as_ptr().cast()))
    }
    #[inline(always)]
    fn quad(self, codes: &[i8; 4]) -> Self::Q {
        intrinsics!(_mm512_set1_epi32(i32::from_le_bytes(codes.map(|code| code as u8))))
    }
    /// Weights stay unsigned (code + 128): a chain starts at -128 * (sum of the activation codes).
    #[inline(always)]
    fn dot_start(self, sum: i32) -> Self::I {
        intrinsics!(_mm512_set1_epi32(-128 * sum))
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::W, x: Self::Q) -> Self::I {
        intrinsics!(_mm512_dpbusd_epi32(acc, w, x))
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
