//! Elementary functions over vectors, the same on every level.

use super::vector::Simd;

/// Below this exp is 0: 2^-126, the smallest normal number.
const MIN_INPUT: f32 = -87.336_54;
/// Above this exp is +inf: the largest argument whose power of two fits the exponent.
const MAX_INPUT: f32 = 88.376_26;
/// ln 2 in two parts; the first has few enough bits that n * LN2_HIGH is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x with a relative error of at most 2e-7; 0 below -87.34, +inf above 88.37, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, then e^r by its Taylor sum up to r^7 / 7! (the rest is below 6e-9).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Constant first: a NaN in the second operand passes through.
    let bounded = s.max(s.splat(MIN_INPUT), s.min(s.splat(MAX_INPUT), x));
    let n = s.nearest(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), bounded);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut sum = s.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = s.fma(sum, r, s.splat(coefficient));
    }
    let value = s.times_exp2(sum, n);
    let value = s.select_lt(x, s.splat(MIN_INPUT), s.zero(), value);
    s.select_lt(s.splat(MAX_INPUT), x, s.splat(f32::INFINITY), value)
}

/// Base-2 logarithm below which [`weight`] is 0: products of smaller weights could be denormal, which AMX tiles treat as 0.
const MIN_WEIGHT_LOG2: f32 = -60.0;
/// 2^r for |r| <= 1/2 with the minimum relative error of its degree: 7.5e-5, a fiftieth of half a step of bf16.
const EXP2: [f32; 4] = [0.055_171_67, 0.242_611_13, 0.693_260_97, 0.999_928_06];

/// e^(score - reference) to the nearest bf16, or to the other one where both are about as near; 0 below 2^-60, NaN for NaN. For scores
/// at most 80 above the reference.
#[inline(always)]
pub(crate) fn weight<S: Simd>(s: S, score: S::F, reference: f32) -> S::F {
    let log = std::f32::consts::LOG2_E;
    let x = s.fma(score, s.splat(log), s.splat(-reference * log));
    let value = round_to_bf16(s, exp2(s, x));
    s.select_lt(x, s.splat(MIN_WEIGHT_LOG2), s.zero(), value)
}

/// Range of the argument of [`exp2_rough`]; values outside are clamped.
const EXP2_RANGE: [f32; 2] = [-125.0, 125.0];

/// 2^x with a relative error of at most 1e-4; 2^-125 below and 2^125 above that, NaN for NaN.
#[inline(always)]
pub(crate) fn exp2_rough<S: Simd>(s: S, x: S::F) -> S::F {
    // Constant first: a NaN in the second operand passes through.
    exp2(s, s.max(s.splat(EXP2_RANGE[0]), s.min(s.splat(EXP2_RANGE[1]), x)))
}

/// 2^x for x in -126..=127, by `EXP2`.
#[inline(always)]
fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    let n = s.nearest(x);
    let r = s.sub(x, n);
    let mut sum = s.splat(EXP2[0]);
    for coefficient in &EXP2[1..] {
        sum = s.fma(sum, r, s.splat(*coefficient));
    }
    s.times_exp2(sum, n)
}

/// x to the nearest bf16, either way when two are as near; NaN for infinities and beyond 5e33.
///
/// The difference of two rounded products has the upper half of x's digits (Dekker 1971, after Veltkamp).
#[inline(always)]
fn round_to_bf16<S: Simd>(s: S, x: S::F) -> S::F {
    let shifted = s.mul(x, s.splat(65_537.0));
    s.sub(shifted, s.sub(shifted, x))
}

/// tanh x = 1 - 2 / (e^2x + 1), with an absolute error of at most 2e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.add(x, x));
    let one = s.splat(1.0);
    s.sub(one, s.div(s.splat(2.0), s.add(e, one)))
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.zero(), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// x / 2 * (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const MINUS_TWO_ROOT: f32 = -1.595_769;
    let cubic = s.mul(s.mul(s.splat(0.044715), x), s.mul(x, x));
    let e = exp(s, s.mul(s.splat(MINUS_TWO_ROOT), s.add(x, cubic)));
    s.div(x, s.add(s.splat(1.0), e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::simd::{LANES, Op, dispatch};
    use crate::{Isa, Kernels};

    /// e^x and tanh x of every lane.
    struct Both(Vec<f32>);

    impl Op for Both {
        type Output = Vec<(f32, f32, f32)>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for x in self.0.as_chunks::<LANES>().0 {
                let (mut e, mut t) = ([0.0; LANES], [0.0; LANES]);
                s.store(exp(s, s.load(x)), &mut e);
                s.store(tanh(s, s.load(x)), &mut t);
                out.extend((0..LANES).map(|lane| (x[lane], e[lane], t[lane])));
            }
            out
        }
    }

    #[test]
    fn errors_stay_below_what_is_promised() {
        for isa in Isa::available() {
            let kernels = Kernels::new(1, Some(isa)).unwrap();
            let inputs: Vec<f32> = (0..1 << 18).map(|i| (i as f32 - 131_072.0) * 6.7e-4).collect();
            for (x, e, t) in dispatch(&kernels, Both(inputs)) {
                let want = f64::from(x).exp();
                if x < MIN_INPUT {
                    assert_eq!(e, 0.0, "{isa}: e^{x}");
                } else {
                    let error = (f64::from(e) / want - 1.0).abs();
                    assert!(error <= 2e-7, "{isa}: e^{x} is off by {error:e}");
                }
                let error = (f64::from(t) - f64::from(x).tanh()).abs();
                assert!(error <= 2e-7, "{isa}: tanh {x} is off by {error:e}");
            }
        }
    }

    /// 2^x of every lane, roughly.
    struct Rough(Vec<f32>);

    impl Op for Rough {
        type Output = Vec<(f32, f32)>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for x in self.0.as_chunks::<LANES>().0 {
                let mut powers = [0.0; LANES];
                s.store(exp2_rough(s, s.load(x)), &mut powers);
                out.extend(x.iter().copied().zip(powers));
            }
            out
        }
    }

    #[test]
    fn rough_powers_are_as_close_as_promised_and_end_where_they_say() {
        for isa in Isa::available() {
            let kernels = Kernels::new(1, Some(isa)).unwrap();
            let inputs: Vec<f32> = (0..1 << 16).map(|i| (i as f32 - 32_768.0) * 6.1e-3).collect();
            for (x, power) in dispatch(&kernels, Rough(inputs)) {
                let want = f64::from(x.clamp(-125.0, 125.0)).exp2();
                let error = (f64::from(power) / want - 1.0).abs();
                assert!(error <= 1e-4, "{isa}: 2^{x} is off by {error:e}");
            }
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            let inputs: Vec<f32> = odd.into_iter().cycle().take(LANES).collect();
            let powers = dispatch(&kernels, Rough(inputs));
            assert!(
                powers[0].1.is_nan() && powers[1].1 > 2.0_f32.powi(124) && powers[2].1 > 0.0,
                "{isa}: {powers:?}"
            );
        }
    }

    /// Weights of every lane, relative to 1.
    struct Weights(Vec<f32>);

    impl Op for Weights {
        type Output = Vec<(f32, f32)>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for x in self.0.as_chunks::<LANES>().0 {
                let mut weights = [0.0; LANES];
                s.store(weight(s, s.load(x), 1.0), &mut weights);
                out.extend(x.iter().copied().zip(weights));
            }
            out
        }
    }

    #[test]
    fn weights_are_near_and_in_bf16() {
        for isa in Isa::available() {
            let kernels = Kernels::new(1, Some(isa)).unwrap();
            let scores: Vec<f32> = (0..1 << 18).map(|i| 9.0 - i as f32 * 2e-4).collect();
            for (x, w) in dispatch(&kernels, Weights(scores)) {
                let want = f64::from(x - 1.0).exp();
                // Half a step of bf16, and the polynomial.
                let error = (f64::from(w) / want - 1.0).abs();
                assert!(
                    error <= 2.0_f64.powi(-8) + 1e-4 || w == 0.0 && want < 8.7e-19,
                    "{isa}: {x} gives {w}"
                );
                assert_eq!(w.to_bits() & 0xffff, 0, "{isa}: {x} gives {w}");
            }
            let special = [f32::NEG_INFINITY, -3e38, f32::NAN, f32::NAN];
            let special: Vec<f32> = special.iter().copied().cycle().take(LANES).collect();
            let weights = dispatch(&kernels, Weights(special));
            assert!(weights[..2].iter().all(|(_, w)| w.to_bits() == 0), "{isa}: {weights:?}");
            assert!(weights[2..4].iter().all(|(_, w)| w.is_nan()), "{isa}: {weights:?}");
        }
    }

    #[test]
    fn special_values() {
        for isa in Isa::available() {
            let kernels = Kernels::new(1, Some(isa)).unwrap();
            let mut inputs = vec![0.0; LANES];
            inputs[..7].copy_from_slice(&[
                -0.0,
                f32::NEG_INFINITY,
                f32::INFINITY,
                -88.0,
                89.0,
                1e30,
                f32::NAN,
            ]);
            let out = dispatch(&kernels, Both(inputs));
            let e: Vec<f32> = out.iter().map(|v| v.1).collect();
            assert_eq!(e[..6], [1.0, 0.0, f32::INFINITY, 0.0, f32::INFINITY, f32::INFINITY], "{isa}");
            assert!(e[6].is_nan() && out[6].2.is_nan(), "{isa}");
            assert_eq!((out[1].2, out[2].2), (-1.0, 1.0), "{isa}");
        }
    }
}
