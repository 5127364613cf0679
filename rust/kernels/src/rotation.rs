//! The rotation of a group of 128 columns: spreads outliers over the whole group before it is quantised.
//!
//! ```text
//! x [128] -> signs -> Hadamard matrix H, 128 x 128, entries +-1 -> H S x
//! ```
//!
//! Activations become H S x, weights H S w / 128. H S has orthogonal rows of length sqrt(128): products of both keep their
//! values, and 1 / 128 is exact. After it, the values of a group are close to normally distributed: the error of rounding them
//! to int8 no longer depends on a few large channels. QuaRot (arXiv 2404.00456) rotates whole rows; a group alone needs no
//! other group, hence the pass that makes a group can rotate it.

use crate::quant_scheme::GROUP;
use crate::simd::{LANES, Simd};

/// Vectors of a group.
const VECTORS: usize = GROUP / LANES;
/// What the weights are multiplied by: 1 / 128, exact.
pub(crate) const WEIGHT_SCALE: f32 = 1.0 / GROUP as f32;
/// Signs of the columns of a group. Without them, a constant group would become one outlier.
const SIGNS: [[f32; LANES]; VECTORS] = signs();
/// For each distance 1, 2, 4, 8: -1 in the lanes whose partner is the first operand of the difference.
const PARTNERS: [[f32; LANES]; 4] = partners();

/// The high bits of a linear congruential generator (Knuth's MMIX constants).
const fn signs() -> [[f32; LANES]; VECTORS] {
    let mut out = [[1.0; LANES]; VECTORS];
    let mut state = 0x0c7a_0128_u64;
    let mut at = 0;
    while at < GROUP {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 1 {
            out[at / LANES][at % LANES] = -1.0;
        }
        at += 1;
    }
    out
}

const fn partners() -> [[f32; LANES]; 4] {
    let mut out = [[1.0; LANES]; 4];
    let mut stage = 0;
    while stage < 4 {
        let mut lane = 0;
        while lane < LANES {
            if lane >> stage & 1 == 1 {
                out[stage][lane] = -1.0;
            }
            lane += 1;
        }
        stage += 1;
    }
    out
}

/// H S x of up to 128 values; those that are missing count as zeros.
#[inline(always)]
pub(crate) fn rotate<S: Simd>(s: S, x: &[f32]) -> [f32; GROUP] {
    let mut v = [s.zero(); VECTORS];
    match x.first_chunk::<GROUP>() {
        Some(whole) => {
            for (at, part) in whole.as_chunks::<LANES>().0.iter().enumerate() {
                v[at] = s.mul(s.load(part), s.load(&SIGNS[at]));
            }
        }
        None => {
            for (at, part) in x.chunks(LANES).enumerate() {
                v[at] = s.mul(s.load_partial(part, 0.0), s.load(&SIGNS[at]));
            }
        }
    }
    store(s, hadamard(s, v))
}

/// S H x, which takes back [`rotate`] of values that were multiplied by 1 / 128.
#[inline(always)]
pub(crate) fn rotate_back<S: Simd>(s: S, x: &[f32; GROUP]) -> [f32; GROUP] {
    let mut v = [s.zero(); VECTORS];
    for (v, part) in v.iter_mut().zip(x.as_chunks::<LANES>().0) {
        *v = s.load(part);
    }
    v = hadamard(s, v);
    for (v, signs) in v.iter_mut().zip(&SIGNS) {
        *v = s.mul(*v, s.load(signs));
    }
    store(s, v)
}

/// H x: sums and differences at the distances 16, 32 and 64, then 1, 2, 4 and 8. Every level adds in this order.
#[inline(always)]
fn hadamard<S: Simd>(s: S, mut v: [S::F; VECTORS]) -> [S::F; VECTORS] {
    for distance in [1, 2, 4] {
        for at in 0..VECTORS {
            if at & distance == 0 {
                let (a, b) = (v[at], v[at + distance]);
                v[at] = s.add(a, b);
                v[at + distance] = s.sub(a, b);
            }
        }
    }
    v = stage::<S, 1>(s, v, &PARTNERS[0]);
    v = stage::<S, 2>(s, v, &PARTNERS[1]);
    v = stage::<S, 4>(s, v, &PARTNERS[2]);
    stage::<S, 8>(s, v, &PARTNERS[3])
}

/// Sums and differences of the lanes at a distance. A product with +-1 is exact, so the fma rounds as the sum does.
///
/// A loop and not `map`: a closure in a function of the library would not be compiled for the level.
#[inline(always)]
fn stage<S: Simd, const DISTANCE: usize>(
    s: S,
    mut v: [S::F; VECTORS],
    signs: &[f32; LANES],
) -> [S::F; VECTORS] {
    let signs = s.load(signs);
    for at in 0..VECTORS {
        v[at] = s.fma(v[at], signs, s.partner::<DISTANCE>(v[at]));
    }
    v
}

#[inline(always)]
fn store<S: Simd>(s: S, v: [S::F; VECTORS]) -> [f32; GROUP] {
    let mut out = [0.0; GROUP];
    for (at, to) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        s.store(v[at], to);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Op, dispatch};
    use crate::{Isa, Kernels};

    struct Both<'a>(&'a [f32]);

    impl Op for Both<'_> {
        type Output = ([f32; GROUP], [f32; GROUP]);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let there = rotate(s, self.0);
            (there, rotate_back(s, &there.map(|x| x * WEIGHT_SCALE)))
        }
    }

    fn every_level(x: &[f32]) -> Vec<([f32; GROUP], [f32; GROUP])> {
        let kernels = |isa| Kernels::new(1, Some(isa)).expect("a level of this machine");
        Isa::available().into_iter().map(|isa| dispatch(&kernels(isa), Both(x))).collect()
    }

    fn values(count: usize) -> Vec<f32> {
        let mut state = 9_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Against the definition: entry (i, j) of H is -1 where i and j have an odd number of common bits.
    #[test]
    fn rotation_is_a_hadamard_matrix_behind_signs() {
        for count in [1, 16, 17, 100, 128] {
            let x = values(count);
            let sign = |j: usize| f64::from(SIGNS[j / LANES][j % LANES]);
            let want = |i: usize| {
                let entry = |j: usize| if (i & j).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
                x.iter().enumerate().map(|(j, v)| entry(j) * sign(j) * f64::from(*v)).sum::<f64>()
            };
            for (there, back) in every_level(&x) {
                for (i, value) in there.iter().enumerate() {
                    assert!((f64::from(*value) - want(i)).abs() < 1e-5, "{count} values: {i}: {value}");
                }
                for (i, value) in back.iter().enumerate() {
                    let want = x.get(i).copied().unwrap_or(0.0);
                    assert!((value - want).abs() < 1e-6, "{count} values: {i}: {value}, not {want}");
                }
            }
        }
    }

    #[test]
    fn every_level_has_the_same_bits() {
        let bits = |(a, b): ([f32; GROUP], [f32; GROUP])| [a.map(f32::to_bits), b.map(f32::to_bits)];
        let all: Vec<_> = every_level(&values(GROUP)).into_iter().map(bits).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }

    /// One large channel, and a constant group: no value of the result stands out.
    #[test]
    fn outliers_are_spread() {
        let mut outlier = vec![0.01; GROUP];
        outlier[37] = 100.0;
        for x in [outlier, vec![1.0; GROUP]] {
            let length = x.iter().map(|v| v * v).sum::<f32>().sqrt();
            for (there, _) in every_level(&x) {
                let largest = there.iter().fold(0.0_f32, |top, v| top.max(v.abs()));
                assert!(largest < 4.0 * length, "{largest} of a group of length {length}");
            }
        }
    }
}
