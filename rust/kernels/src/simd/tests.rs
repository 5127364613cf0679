//! Every vector method against the portable level, bit by bit, one test a method.
#![allow(clippy::unwrap_used)]

use super::{LANES, Op, Simd, dispatch};
use crate::{Isa, Kernels};

/// Ordinary, tied, extreme and special values, three vectors at a time.
const INPUTS: [[f32; LANES]; 4] = [
    [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.3, -3.7, 100.4, -100.6, 1e-3, -1e-3, 7.0, 8.0, 9.0, 10.0],
    [0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30, -1e-30, 3e9, -3e9, 126.5, -126.5, 127.0, -127.0, 0.1, 0.7],
    [
        1.0e-40, -1.0e-40, 3.4e38, -3.4e38, 2.0, -2.0, 0.3, 0.9, 11.0, -12.0, 13.0, -14.0, 15.0, -16.0, 17.0,
        18.0,
    ],
    [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        1.0,
        f32::NAN,
        5.0,
        -5.0,
        f32::INFINITY,
        2.0,
        3.0,
        4.0,
        -6.0,
        -7.0,
        8.5,
        9.5,
    ],
];

/// Bits of the lanes; every NaN alike.
fn bits<S: Simd>(s: S, v: S::F) -> Vec<u32> {
    let mut out = [0.0; LANES];
    s.store(v, &mut out);
    out.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

macro_rules! each_level_agrees {
    ($($name:ident: |$s:ident, $a:ident, $b:ident, $c:ident| $body:expr;)+) => {$(
        #[test]
        fn $name() {
            struct Case([[f32; LANES]; 3]);
            impl Op for Case {
                type Output = Vec<u32>;
                #[inline(always)]
                #[allow(unused_variables)]
                fn run<S: Simd>(self, $s: S) -> Vec<u32> {
                    let ($a, $b, $c) = ($s.load(&self.0[0]), $s.load(&self.0[1]), $s.load(&self.0[2]));
                    bits($s, $body)
                }
            }
            let portable = Kernels::new(1, Some(Isa::Portable)).unwrap();
            for isa in Isa::available() {
                let kernels = Kernels::new(1, Some(isa)).unwrap();
                for shift in 0..INPUTS.len() {
                    let input = std::array::from_fn(|place| INPUTS[(place + shift) % INPUTS.len()]);
                    assert_eq!(dispatch(&kernels, Case(input)), dispatch(&portable, Case(input)), "{isa} {shift}");
                }
            }
        }
    )+};
}

/// Lanes that are not NaN.
#[inline(always)]
fn number<S: Simd>(s: S, a: S::F) -> S::F {
    s.max(a, s.splat(-1e38))
}

/// Four numbers in the first lanes.
#[inline(always)]
fn four<S: Simd>(s: S, a: [f32; 4]) -> S::F {
    s.load_partial(&a, 0.0)
}

/// Lanes in -127..=127 and not NaN.
#[inline(always)]
fn code<S: Simd>(s: S, a: S::F) -> S::F {
    s.max(s.min(a, s.splat(127.0)), s.splat(-127.0))
}

/// The low halves of the lanes' bits, as bf16 bits and codes to play with.
#[inline(always)]
fn halves<S: Simd>(s: S, a: S::F) -> [u16; 2 * LANES] {
    let mut lanes = [0.0_f32; LANES];
    s.store(a, &mut lanes);
    std::array::from_fn(|place| (lanes[place / 2].to_bits() >> (16 * (place % 2))) as u16)
}

/// The upper halves of the lanes as stored pairs.
fn stored<S: Simd>(s: S, a: S::F, b: S::F) -> [u16; 2 * LANES] {
    let (mut even, mut odd, mut pairs) = ([0.0_f32; LANES], [0.0_f32; LANES], [0; 2 * LANES]);
    s.store(a, &mut even);
    s.store(b, &mut odd);
    let upper = |x: &f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    s.store_bf16_pairs((s.load(&even.each_ref().map(upper)), s.load(&odd.each_ref().map(upper))), &mut pairs);
    pairs
}

each_level_agrees! {
    splat: |s, a, b, c| s.splat(-2.5);
    add: |s, a, b, c| s.add(a, b);
    sub: |s, a, b, c| s.sub(a, b);
    mul: |s, a, b, c| s.mul(a, b);
    div: |s, a, b, c| s.div(a, b);
    fma: |s, a, b, c| s.fma(a, b, c);
    max: |s, a, b, c| s.max(a, b);
    min: |s, a, b, c| s.min(a, b);
    abs: |s, a, b, c| s.abs(a);
    select_lt: |s, a, b, c| s.select_lt(a, b, c, s.splat(42.0));
    any_lt: |s, a, b, c| s.splat(if s.any_lt(a, b) { 1.0 } else { 0.0 });
    any_lt_none: |s, a, b, c| s.splat(if s.any_lt(a, s.min(a, b)) { 1.0 } else { 0.0 });
    reduce_max: |s, a, b, c| s.splat(s.reduce_max(number(s, a)));
    reduce_add: |s, a, b, c| s.splat(s.reduce_add(a));
    reduce_max_four: |s, a, b, c| four(s, s.reduce_max_each([a, b, c, s.add(a, b)].map(|a| number(s, a))));
    reduce_add_four: |s, a, b, c| four(s, s.reduce_add_each([a, b, c, s.add(a, b)]));
    reduce_add_three: |s, a, b, c| {
        let [a, b, c] = s.reduce_add_each([a, b, c]);
        four(s, [a, b, c, 0.0])
    };
    partner_1: |s, a, b, c| s.partner::<1>(a);
    partner_2: |s, a, b, c| s.partner::<2>(a);
    partner_4: |s, a, b, c| s.partner::<4>(a);
    partner_8: |s, a, b, c| s.partner::<8>(a);
    round: |s, a, b, c| s.to_f32(s.round(a));
    nearest: |s, a, b, c| s.nearest(a);
    times_exp2: |s, a, b, c| s.times_exp2(b, s.nearest(s.max(code(s, a), s.splat(-126.0))));
    store_i8: |s, a, b, c| {
        let mut codes = [0; LANES];
        s.store_i8(s.round(code(s, a)), &mut codes);
        s.load(&codes.map(f32::from))
    };
    load_bf16: |s, a, b, c| s.load_bf16(halves(s, a).first_chunk().unwrap());
    load_bf16_even: |s, a, b, c| s.load_bf16_pairs(&halves(s, a)).0;
    load_bf16_odd: |s, a, b, c| s.load_bf16_pairs(&halves(s, a)).1;
    store_bf16_even: |s, a, b, c| s.load_bf16_pairs(&stored(s, a, b)).0;
    store_bf16_odd: |s, a, b, c| s.load_bf16_pairs(&stored(s, a, b)).1;
    weight_of_score: |s, a, b, c| super::weight(s, s.min(a, s.splat(3.0)), 3.0);
    load_i8: |s, a, b, c| s.load_i8(&halves(s, a).first_chunk::<LANES>().unwrap().map(|x| (x >> 5) as i8));
    dot: |s, a, b, c| {
        // Codes in -127..=127 on both sides, the extremes among them; a chain of three.
        let w: [u8; 4 * LANES] = std::array::from_fn(|i| match i % 5 {
            0 => 255,
            1 => 1,
            _ => ((i * 73 + 19) % 255 + 1) as u8,
        });
        let x: [[i8; 4]; 3] = [[3, -100, 0, 77], [127; 4], [-127, 127, -127, -127]];
        let sum = x.iter().flatten().map(|&code| i32::from(code)).sum();
        let mut acc = s.dot_start(sum);
        for x in &x {
            acc = s.dot(acc, s.weights(&w), s.quad(x));
        }
        s.to_f32(acc)
    };
    partial: |s, a, b, c| {
        let mut out = [7.0; 5];
        s.store_partial(a, &mut out);
        s.load_partial(&out, -1.0)
    };
}
