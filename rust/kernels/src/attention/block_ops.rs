//! The two products of attention for a few rows and one block of floats or value codes.
//!
//! ```text
//!     qk              scores [R][32]        = q [R][head_dim] times keys
//!     accumulate_pv   acc [R][head_dim]     = acc * rescale + weights [R][32] times values
//! ```
//!
//! Each is an op of its own, compiled once for an element type and a number R of rows.

use std::ops::Range;

use super::kv_cache::{HALVES, KvElement, MATRIX_DEPTH, padded};
use super::params::BLOCK_SIZE;
use crate::context::Kernels;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Rows of a task over blocks without a matrix unit: few enough that queries and sums stay in the first-level cache.
pub(super) const ROWS_PER_TASK: usize = 32;
/// Rows that are computed together at most.
pub(super) const GROUP_ROWS: usize = 4;
/// int8 blocks whose softmax masses are estimated together at most.
pub(super) const GROUP_BLOCKS: usize = 4;
/// Offsets of tokens in a block, as numbers to compare with.
pub(super) const TOKEN_OFFSETS: [f32; BLOCK_SIZE] = {
    let mut offsets = [0.0; BLOCK_SIZE];
    let mut offset = 0;
    while offset < BLOCK_SIZE {
        offsets[offset] = offset as f32;
        offset += 1;
    }
    offsets
};

/// Prefetches chunk `index` of `size` elements into the second-level cache.
#[inline(always)]
pub(super) fn prefetch<S: Simd, T>(s: S, pages: &[T], index: usize, size: usize) {
    for i in (0..size).step_by(64 / size_of::<T>()) {
        s.prefetch_l2(pages.as_ptr().wrapping_add(index * size + i));
    }
}

/// Scores of one to four rows of q, `[rows][padded head_dim]`, against a block of keys: `to` is `[rows][32]`.
#[inline(always)]
pub(super) fn qk<E: KvElement>(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    keys: &[[E; LANES]],
    head_dim: usize,
    prefetch_at: *const u8,
    to: &mut [[f32; BLOCK_SIZE]],
) {
    match rows {
        4 => dispatch(kernels, QkOp::<E, 4> { q, keys, head_dim, prefetch_at, to }),
        3 => dispatch(kernels, QkOp::<E, 3> { q, keys, head_dim, prefetch_at, to }),
        2 => dispatch(kernels, QkOp::<E, 2> { q, keys, head_dim, prefetch_at, to }),
        _ => dispatch(kernels, QkOp::<E, 1> { q, keys, head_dim, prefetch_at, to }),
    }
}

struct QkOp<'a, E, const R: usize> {
    q: &'a [[f32; LANES]],
    keys: &'a [[E; LANES]],
    head_dim: usize,
    prefetch_at: *const u8,
    to: &'a mut [[f32; BLOCK_SIZE]],
}

impl<E: KvElement, const R: usize> Op for QkOp<'_, E, R> {
    type Output = ();

    /// One chain of sums over channels for each key. Of elements in pairs two chains for each [`MATRIX_DEPTH`]
    /// channels.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let QkOp { q, keys, head_dim, prefetch_at, to } = self;
        let stride = padded(head_dim);
        assert!(q.len() * LANES == R * stride && to.len() == R);
        assert!(keys.len() == HALVES * E::key_width(head_dim));
        let mut acc = [[s.zero(); HALVES]; R];
        if E::PAIRS {
            let pairs = head_dim.div_ceil(2);
            for first in (0..pairs).step_by(MATRIX_DEPTH / 2) {
                let pairs = first..pairs.min(first + MATRIX_DEPTH / 2);
                // SAFETY: pairs of channels below head_dim rounded up to even, which `padded` covers.
                let even = unsafe { chains::<S, E, R, 0>(s, q, stride, keys, pairs.clone(), prefetch_at) };
                // SAFETY: as above.
                let odd = unsafe { chains::<S, E, R, 1>(s, q, stride, keys, pairs, prefetch_at) };
                for r in 0..R {
                    for half in 0..HALVES {
                        acc[r][half] = s.add(acc[r][half], s.add(even[r][half], odd[r][half]));
                    }
                }
            }
        } else {
            // SAFETY: channels below head_dim.
            acc = unsafe { chains::<S, E, R, 0>(s, q, stride, keys, 0..head_dim, prefetch_at) };
        }
        for (to, acc) in to.iter_mut().zip(acc) {
            for (to, acc) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                s.store(acc, to);
            }
        }
    }
}

/// R rows of q times the keys of a block, over number SIDE of some pairs of channels, or over some channels.
///
/// # Safety
/// q holds R rows of `stride` values, which the channels are below.
#[inline(always)]
unsafe fn chains<S: Simd, E: KvElement, const R: usize, const SIDE: usize>(
    s: S,
    q: &[[f32; LANES]],
    stride: usize,
    keys: &[[E; LANES]],
    pairs: Range<usize>,
    prefetch_at: *const u8,
) -> [[S::F; HALVES]; R] {
    let q = q.as_flattened().as_ptr();
    let side = if E::PAIRS { 2 } else { 1 };
    let mut acc = [[s.zero(); HALVES]; R];
    let prefetch =
        |channel: usize| s.prefetch_l2(prefetch_at.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
    if S::WIDE {
        for pair in pairs {
            let channel = pair * side + SIDE;
            prefetch(channel);
            for half in 0..HALVES {
                let key = E::load_key::<S, SIDE>(s, keys, pair, half);
                for r in 0..R {
                    // SAFETY: r < R and channel < stride, within the length promised.
                    let x = s.splat(unsafe { *q.add(r * stride + channel) });
                    acc[r][half] = s.fma(x, key, acc[r][half]);
                }
            }
        }
        return acc;
    }
    // Few registers: one half after the other. Each chain is the same.
    for half in 0..HALVES {
        let mut part = [s.zero(); R];
        for pair in pairs.clone() {
            let channel = pair * side + SIDE;
            if half == 0 {
                prefetch(channel);
            }
            let key = E::load_key::<S, SIDE>(s, keys, pair, half);
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
    acc
}

/// acc = acc * rescale + weights times values, for one to four rows of acc, `[rows][padded head_dim]`.
///
/// One chain of sums over the visible tokens, in order. Of elements in pairs one chain over the first sixteen tokens
/// and one over the others. Tokens that are not visible are not read: their values may be anything, even NaN.
#[inline(always)]
pub(super) fn accumulate_pv<E: KvElement>(
    kernels: &Kernels,
    acc: &mut [[f32; LANES]],
    values: &[[E; LANES]],
    weights: &[[f32; BLOCK_SIZE]],
    rescale: &[f32],
    visible: (usize, usize),
    prefetch_at: *const u8,
) {
    match weights.len() {
        4 => dispatch(kernels, PvOp::<E, 4> { acc, values, weights, rescale, visible, prefetch_at }),
        3 => dispatch(kernels, PvOp::<E, 3> { acc, values, weights, rescale, visible, prefetch_at }),
        2 => dispatch(kernels, PvOp::<E, 2> { acc, values, weights, rescale, visible, prefetch_at }),
        _ => dispatch(kernels, PvOp::<E, 1> { acc, values, weights, rescale, visible, prefetch_at }),
    }
}

struct PvOp<'a, E, const R: usize> {
    acc: &'a mut [[f32; LANES]],
    values: &'a [[E; LANES]],
    weights: &'a [[f32; BLOCK_SIZE]],
    rescale: &'a [f32],
    visible: (usize, usize),
    prefetch_at: *const u8,
}

impl<E: KvElement, const R: usize> Op for PvOp<'_, E, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let vectors = self.acc.len() / R;
        assert!(self.values.len() == BLOCK_SIZE * vectors && self.visible.1 <= BLOCK_SIZE);
        assert!(self.acc.len() == R * vectors && self.weights.len() == R && self.rescale.len() == R);
        let mut vector = 0;
        // Four vectors of four rows: sixteen independent chains hide the latency of fused multiply-adds.
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

impl<E: KvElement, const R: usize> PvOp<'_, E, R> {
    /// N vectors of each row from `vector` on.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, s: S, vectors: usize, vector: usize) {
        let mut sums = [[s.zero(); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.mul(s.load(&self.acc[r * vectors + vector + n]), s.splat(self.rescale[r]));
            }
        }
        let (from, to) = self.visible;
        if E::PAIRS {
            let zeros = [[s.zero(); N]; R];
            let first = self.chains::<S, N, 0>(s, vectors, vector, from..to.min(LANES), zeros);
            let others = from.max(LANES) - LANES..to.max(LANES) - LANES;
            let others = self.chains::<S, N, 1>(s, vectors, vector, others, zeros);
            for r in 0..R {
                for n in 0..N {
                    sums[r][n] = s.add(sums[r][n], s.add(first[r][n], others[r][n]));
                }
            }
        } else {
            sums = self.chains::<S, N, 0>(s, vectors, vector, from..to, sums);
        }
        for r in 0..R {
            for n in 0..N {
                s.store(sums[r][n], &mut self.acc[r * vectors + vector + n]);
            }
        }
    }

    /// Adds to N vectors of each row over number SIDE of some pairs of tokens, or over some tokens.
    #[inline(always)]
    fn chains<S: Simd, const N: usize, const SIDE: usize>(
        &self,
        s: S,
        vectors: usize,
        vector: usize,
        pairs: Range<usize>,
        mut sums: [[S::F; N]; R],
    ) -> [[S::F; N]; R] {
        for pair in pairs {
            let token = pair + SIDE * LANES;
            let mut values = [s.zero(); N];
            for n in 0..N {
                // One hint a line of 64 bytes.
                if (n * LANES * size_of::<E>()).is_multiple_of(64) {
                    let line = token * vectors + vector + n;
                    s.prefetch_l2(self.prefetch_at.wrapping_add(line * LANES * size_of::<E>()));
                }
                values[n] = E::load_value::<S, SIDE>(s, self.values, pair, vector + n, vectors);
            }
            for r in 0..R {
                let weight = s.splat(self.weights[r][token]);
                for n in 0..N {
                    sums[r][n] = s.fma(weight, values[n], sums[r][n]);
                }
            }
        }
        sums
    }
}
