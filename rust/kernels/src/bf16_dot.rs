//! The dot instruction of AVX-512 BF16 (Intel SDM volume 2, VDPBF16PS): two products of bfloat16 a lane, twice the rate of those of f32.

use std::arch::x86_64::*;
use std::mem::transmute;
use std::sync::OnceLock;

use half::bf16;

use crate::isa::Isa;
use crate::simd::LANES;

/// Whether this level has the instruction, and the instruction adds in the order of [`dot`].
pub(crate) fn available(isa: Isa) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    isa >= Isa::Avx512
        && *FOUND.get_or_init(|| {
            // SAFETY: the level has AVX-512.
            is_x86_feature_detected!("avx512bf16") && unsafe { adds_in_order(1, 512) }
        })
}

/// acc + a[odd] * b[odd], then + a[even] * b[even], each sum rounded once to f32: lane i has numbers 2 i and 2 i + 1. Denormal
/// numbers count as zero.
///
/// # Safety
/// The machine has AVX-512 BF16.
#[inline(always)]
pub(crate) unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: the caller's promise; the two types of 64 bytes differ in name only.
    unsafe {
        let (a, b) = (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b));
        _mm512_dpbf16_ps(acc, a, b)
    }
}

/// Whether [`dot`] adds in its documented order, in random cases whose last digits show the order and the roundings.
///
/// Intel's manual gives the order; AMD's leaves it open.
#[target_feature(enable = "avx512f,avx512bf16")]
fn adds_in_order(seed: u32, cases: usize) -> bool {
    let mut numbers = numbers(seed);
    let mut number = || numbers.next().unwrap_or_default();
    let widen = |bits| bf16::from_bits(bits).to_f32();
    (0..cases).all(|_| {
        let mut a = [[0_u16; 2]; LANES];
        let mut b = a;
        let mut acc = [0.0_f32; LANES];
        for lane in 0..LANES {
            a[lane] = [number(), number()];
            b[lane] = [number(), number()];
            acc[lane] = widen(number()) * 1.234_567;
        }
        let mut sums = [0.0; LANES];
        // SAFETY: arrays of 64 bytes.
        unsafe {
            let (a, b) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
            _mm512_storeu_ps(sums.as_mut_ptr(), dot(_mm512_loadu_ps(acc.as_ptr()), a, b));
        }
        (0..LANES).all(|lane| {
            let ([even_a, odd_a], [even_b, odd_b]) = (a[lane].map(widen), b[lane].map(widen));
            // Products of two bfloat16 are exact in f32: only sums are rounded.
            let want = acc[lane] + odd_a * odd_b + even_a * even_b;
            sums[lane].to_bits() == want.to_bits()
        })
    })
}

/// Bits of bfloat16 numbers of some magnitudes and both signs.
pub(crate) fn numbers(seed: u32) -> impl Iterator<Item = u16> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let exponent = 115 + (state >> 8) % 16;
        ((state & 1) << 15 | exponent << 7 | (state >> 16) & 127) as u16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_is_used_it_adds_in_order() {
        if !available(Isa::detect()) {
            eprintln!("skipped: this machine lacks avx512bf16, or adds in another order");
            return;
        }
        for seed in 2..200 {
            // SAFETY: the machine has AVX-512 BF16.
            assert!(unsafe { adds_in_order(seed * 7919, 100) }, "seed {seed}");
        }
    }
}
