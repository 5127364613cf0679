//! The two products of attention for a few rows and one block: queries times keys, weights times values.
//!
//! Each is an op of its own, compiled once for an element and a number of rows, whatever attention asks for it.

use super::BLOCK_SIZE;
use super::kv::padded;
use super::tile::Tile;
use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::pages::Plain;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Vectors of keys in a block.
pub(super) const HALVES: usize = BLOCK_SIZE / LANES;

/// A stored key or value.
pub(super) trait Element: Plain {
    /// Whether products are summed as bf16 tiles sum them: at most [`TILE_DEPTH`] at a time, one half of them, the other half, then
    /// both. The halves are the even and the odd channels of keys, the first and the last sixteen tokens of values.
    const PAIRED: bool;

    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;

    /// Rows (a query position times a query head of one KV head) that a task holds at most, if one position fits.
    fn rows_per_task(_: &Kernels) -> usize {
        ROWS_PER_TASK
    }

    /// Runs the task on tiles, if the machine has them for this type and the task fills them. Says whether it did.
    fn on_tiles(_: &Tile<'_, Self>) -> bool {
        false
    }
}

/// Few enough that their queries and sums stay in the first-level cache.
const ROWS_PER_TASK: usize = 32;
/// Products of bf16 that one instruction on tiles sums up.
pub(super) const TILE_DEPTH: usize = 32;

impl Element for f32 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

/// bf16 bits.
impl Element for u16 {
    const PAIRED: bool = true;

    #[cfg(target_arch = "x86_64")]
    fn rows_per_task(kernels: &Kernels) -> usize {
        if kernels.isa() == Isa::Amx { super::tiles::ROWS_PER_TASK } else { ROWS_PER_TASK }
    }

    #[cfg(target_arch = "x86_64")]
    fn on_tiles(tile: &Tile<'_, u16>) -> bool {
        super::tiles::run(tile)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_bf16(from)
    }
}

/// Codes of values.
impl Element for i8 {
    const PAIRED: bool = false;

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

    /// One chain over channels for each key; paired, two in each stretch of channels.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scores { q, keys, head_dim, ahead, to } = self;
        let stride = padded(head_dim);
        assert!(q.len() * LANES == R * stride && keys.len() >= HALVES * head_dim && to.len() == R);
        let (depth, step) = if E::PAIRED { (TILE_DEPTH, 2) } else { (head_dim, 1) };
        let mut acc = [[s.zero(); HALVES]; R];
        let mut start = 0;
        while start < head_dim {
            let end = head_dim.min(start + depth);
            let mut sums = [[[s.zero(); HALVES]; R]; 2];
            for parity in 0..step {
                let channels = Channels { first: start + parity, end, step };
                // SAFETY: channels below head_dim, and q and keys of the lengths checked above.
                sums[parity] = unsafe { channels.chains::<S, E, R>(s, q, stride, keys, ahead) };
            }
            for r in 0..R {
                for half in 0..HALVES {
                    acc[r][half] = if E::PAIRED {
                        s.add(acc[r][half], s.add(sums[0][r][half], sums[1][r][half]))
                    } else {
                        sums[0][r][half]
                    };
                }
            }
            start = end;
        }
        for (to, acc) in to.iter_mut().zip(acc) {
            for (to, acc) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                s.store(acc, to);
            }
        }
    }
}

/// Every `step`th channel from `first` on.
struct Channels {
    first: usize,
    end: usize,
    step: usize,
}

impl Channels {
    /// R rows of q times the keys of a block, over these channels.
    ///
    /// # Safety
    /// q holds R rows of `stride` values and keys `end` channels; `end` is at most `stride`.
    #[inline(always)]
    unsafe fn chains<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        q: &[[f32; LANES]],
        stride: usize,
        keys: &[[E; LANES]],
        ahead: *const u8,
    ) -> [[S::F; HALVES]; R] {
        let q = q.as_flattened().as_ptr();
        let mut acc = [[s.zero(); HALVES]; R];
        let fetch = |channel: usize| {
            s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
        };
        if S::WIDE {
            for channel in (self.first..self.end).step_by(self.step) {
                fetch(channel);
                for half in 0..HALVES {
                    // SAFETY: channel < end and half < 2, within the length promised.
                    let key = E::load(s, unsafe { keys.get_unchecked(channel * HALVES + half) });
                    for r in 0..R {
                        // SAFETY: r < R and channel < end, within the length promised.
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
            for channel in (self.first..self.end).step_by(self.step) {
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
        acc
    }
}

/// acc = acc * rescale + weights times values, for at most four rows of acc, `[rows][padded head_dim]`.
///
/// One chain over the tokens that are seen, in order; paired, one over those of the first sixteen and one over the others. Tokens
/// that are not seen are not read: their places may hold anything, even NaN.
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
        let (from, to) = self.seen;
        if E::PAIRED {
            let zeros = [[s.zero(); N]; R];
            let first = self.chains::<S, N>(s, vectors, vector, from..to.min(LANES), zeros);
            let others = self.chains::<S, N>(s, vectors, vector, from.max(LANES)..to, zeros);
            for r in 0..R {
                for n in 0..N {
                    sums[r][n] = s.add(sums[r][n], s.add(first[r][n], others[r][n]));
                }
            }
        } else {
            sums = self.chains::<S, N>(s, vectors, vector, from..to, sums);
        }
        for r in 0..R {
            for n in 0..N {
                s.store(sums[r][n], &mut self.acc[r * vectors + vector + n]);
            }
        }
    }

    /// Goes on with the sums of N vectors of each row over some of the tokens that are seen.
    #[inline(always)]
    fn chains<S: Simd, const N: usize>(
        &self,
        s: S,
        vectors: usize,
        vector: usize,
        tokens: impl Iterator<Item = usize>,
        mut sums: [[S::F; N]; R],
    ) -> [[S::F; N]; R] {
        for token in tokens {
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
        sums
    }
}
