//! The plain Rust level: the definition that the others must match.

use super::vector::{LANES, Simd};

/// Plain Rust; needs no feature.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = a;
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

/// Folds lane i with lane i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
fn fold(mut a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            a[lane] = f(a[lane], a[lane + half]);
        }
        half /= 2;
    }
    a[0]
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W = [[i8; 4]; LANES];
    type Q = [i8; 4];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            out[lane] = f32::from_bits(u32::from(x[lane]) << 16);
        }
        out
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        x.map(f32::from)
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u16; 2 * LANES]) -> (Self::F, Self::F) {
        let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            even[lane] = f32::from_bits(u32::from(x[2 * lane]) << 16);
            odd[lane] = f32::from_bits(u32::from(x[2 * lane + 1]) << 16);
        }
        (even, odd)
    }
    #[inline(always)]
    fn store_bf16_pairs(self, (even, odd): (Self::F, Self::F), to: &mut [u16; 2 * LANES]) {
        for lane in 0..LANES {
            to[2 * lane] = (even[lane].to_bits() >> 16) as u16;
            to[2 * lane + 1] = (odd[lane].to_bits() >> 16) as u16;
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for lane in 0..LANES {
            out[lane] = a[lane].mul_add(b[lane], c[lane]);
        }
        out
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let mut out = y;
        for lane in 0..LANES {
            out[lane] = if a[lane] < b[lane] { x[lane] } else { y[lane] };
        }
        out
    }
    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        a.iter().zip(&b).any(|(a, b)| a < b)
    }
    #[inline(always)]
    fn partner<const DISTANCE: usize>(self, a: Self::F) -> Self::F {
        let mut out = a;
        for lane in 0..LANES {
            out[lane] = a[lane ^ DISTANCE];
        }
        out
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::F) -> f32 {
        fold(a, |a, b| a + b)
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        a.map(|x| {
            let nearest = x.round_ties_even();
            if (-2_147_483_648.0..2_147_483_648.0).contains(&nearest) { nearest as i32 } else { i32::MIN }
        })
    }
    #[inline(always)]
    fn nearest(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn times_exp2(self, a: Self::F, n: Self::F) -> Self::F {
        // 2^n by its exponent bits.
        self.mul(a, n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)))
    }
    #[inline(always)]
    fn store_i8(self, a: Self::I, to: &mut [i8; LANES]) {
        *to = a.map(|x| x as i8);
    }

    #[inline(always)]
    fn weights(self, codes: &[u8; 4 * LANES]) -> Self::W {
        let mut out = [[0; 4]; LANES];
        for row in 0..LANES {
            for column in 0..4 {
                out[row][column] = (codes[4 * row + column] ^ 0x80) as i8;
            }
        }
        out
    }
    #[inline(always)]
    fn quad(self, codes: &[i8; 4]) -> Self::Q {
        *codes
    }
    #[inline(always)]
    fn dot_start(self, _sum: i32) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::W, x: Self::Q) -> Self::I {
        let mut out = acc;
        for row in 0..LANES {
            for column in 0..4 {
                out[row] += i32::from(w[row][column]) * i32::from(x[column]);
            }
        }
        out
    }

    #[inline(always)]
    fn prefetch<T>(self, _p: *const T) {}
    #[inline(always)]
    fn prefetch_l2<T>(self, _p: *const T) {}
}
