//! The two products of attention for a few rows and one block: queries times keys, weights times values.
//!
//! Each is an op of its own, compiled once for an element and a number of rows, whatever attention asks for it.

use super::BLOCK_SIZE;
use super::kv::padded;
use crate::context::Kernels;
use crate::pages::Plain;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Vectors of keys in a block.
pub(super) const HALVES: usize = BLOCK_SIZE / LANES;

/// A stored key or value.
pub(super) trait Element: Plain {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

/// bf16 bits.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_bf16(from)
    }
}

/// Codes of values.
impl Element for i8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[i8; LANES]) -> S::F {
        s.load_i8(from)
    }
}

/// Asks for the `size` elements at `place`.
#[inline(always)]
pub(super) fn fetch<S: Simd, T>(s: S, pages: &[T], place: usize, size: usize) {
    for i in (0..size).step_by(64 / size_of::<T>()) {
        s.prefetch_l2(pages.as_ptr().wrapping_add(place * size + i));
    }
}

/// At most four rows of q, `[rows][padded head_dim]`, times a block of keys: a row of `to` is a query's scores.
#[inline(always)]
pub(super) fn scores<E: Element>(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    keys: &[[E; LANES]],
    head_dim: usize,
    ahead: *const u8,
    to: &mut [[f32; BLOCK_SIZE]],
) {
    match rows {
        4 => dispatch(kernels, Scores::<E, 4> { q, keys, head_dim, ahead, to }),
        3 => dispatch(kernels, Scores::<E, 3> { q, keys, head_dim, ahead, to }),
        2 => dispatch(kernels, Scores::<E, 2> { q, keys, head_dim, ahead, to }),
        _ => dispatch(kernels, Scores::<E, 1> { q, keys, head_dim, ahead, to }),
    }
}

struct Scores<'a, E, const R: usize> {
    q: &'a [[f32; LANES]],
    keys: &'a [[E; LANES]],
    head_dim: usize,
    ahead: *const u8,
    to: &'a mut [[f32; BLOCK_SIZE]],
}

impl<E: Element, const R: usize> Op for Scores<'_, E, R> {
    type Output = ();

    /// One chain over channels for each key.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scores { q, keys, head_dim, ahead, to } = self;
        let stride = padded(head_dim);
        assert!(q.len() * LANES == R * stride && keys.len() >= HALVES * head_dim && to.len() == R);
        let q = q.as_flattened().as_ptr();
        let mut acc = [[s.zero(); HALVES]; R];
        let fetch = |channel: usize| {
            s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
        };
        if S::WIDE {
            for channel in 0..head_dim {
                fetch(channel);
                for half in 0..HALVES {
                    // SAFETY: channel < head_dim and half < 2, within the length checked above.
                    let key = E::load(s, unsafe { keys.get_unchecked(channel * HALVES + half) });
                    for r in 0..R {
                        // SAFETY: r < R and channel < head_dim, within the length checked above.
                        let x = s.splat(unsafe { *q.add(r * stride + channel) });
                        acc[r][half] = s.fma(x, key, acc[r][half]);
                    }
                }
            }
        } else {
            // Few registers: one half after the other. Each chain is the same.
            for half in 0..HALVES {
                let mut part = [s.zero(); R];
                for channel in 0..head_dim {
                    if half == 0 {
                        fetch(channel);
                    }
                    // SAFETY: as above.
                    let key = E::load(s, unsafe { keys.get_unchecked(channel * HALVES + half) });
                    for r in 0..R {
                        // SAFETY: as above.
                        let x = s.splat(unsafe { *q.add(r * stride + channel) });
                        part[r] = s.fma(x, key, part[r]);
                    }
                }
                for r in 0..R {
                    acc[r][half] = part[r];
                }
            }
        }
        for (to, acc) in to.iter_mut().zip(acc) {
            for (to, acc) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                s.store(acc, to);
            }
        }
    }
}

/// acc = acc * rescale + weights times values, for at most four rows of acc, `[rows][padded head_dim]`.
///
/// One chain over the tokens that are seen, in order. Other tokens are not read: their places may hold anything, even NaN.
#[inline(always)]
pub(super) fn weigh<E: Element>(
    kernels: &Kernels,
    acc: &mut [[f32; LANES]],
    values: &[[E; LANES]],
    weights: &[[f32; BLOCK_SIZE]],
    rescale: &[f32],
    seen: (usize, usize),
    ahead: *const u8,
) {
    match weights.len() {
        4 => dispatch(kernels, Weigh::<E, 4> { acc, values, weights, rescale, seen, ahead }),
        3 => dispatch(kernels, Weigh::<E, 3> { acc, values, weights, rescale, seen, ahead }),
        2 => dispatch(kernels, Weigh::<E, 2> { acc, values, weights, rescale, seen, ahead }),
        _ => dispatch(kernels, Weigh::<E, 1> { acc, values, weights, rescale, seen, ahead }),
    }
}

struct Weigh<'a, E, const R: usize> {
    acc: &'a mut [[f32; LANES]],
    values: &'a [[E; LANES]],
    weights: &'a [[f32; BLOCK_SIZE]],
    rescale: &'a [f32],
    seen: (usize, usize),
    ahead: *const u8,
}

impl<E: Element, const R: usize> Op for Weigh<'_, E, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let vectors = self.acc.len() / R;
        assert!(self.values.len() == BLOCK_SIZE * vectors && self.seen.1 <= BLOCK_SIZE);
        assert!(self.acc.len() == R * vectors && self.weights.len() == R && self.rescale.len() == R);
        let mut vector = 0;
        // Four vectors of four rows keep the units busy while each chain waits for its last sum.
        while S::WIDE && vector + 4 <= vectors {
            self.columns::<S, 4>(s, vectors, vector);
            vector += 4;
        }
        while vector < vectors {
            self.columns::<S, 1>(s, vectors, vector);
            vector += 1;
        }
    }
}

impl<E: Element, const R: usize> Weigh<'_, E, R> {
    /// N vectors of each row from `vector` on.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, s: S, vectors: usize, vector: usize) {
        let mut sums = [[s.zero(); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.mul(s.load(&self.acc[r * vectors + vector + n]), s.splat(self.rescale[r]));
            }
        }
        for token in self.seen.0..self.seen.1 {
            let first = token * vectors + vector;
            let values: [S::F; N] = std::array::from_fn(|n| {
                // One hint a line of 64 bytes.
                if (n * LANES * size_of::<E>()).is_multiple_of(64) {
                    s.prefetch_l2(self.ahead.wrapping_add((first + n) * LANES * size_of::<E>()));
                }
                // SAFETY: token < 32 and vector + n < vectors, within the length checked in `run`.
                E::load(s, unsafe { self.values.get_unchecked(first + n) })
            });
            for r in 0..R {
                let weight = s.splat(self.weights[r][token]);
                for n in 0..N {
                    sums[r][n] = s.fma(weight, values[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                s.store(sums[r][n], &mut self.acc[r * vectors + vector + n]);
            }
        }
    }
}
