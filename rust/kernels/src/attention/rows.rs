//! The two products of attention for a few rows and one block: queries times keys, weights times values.
//!
//! Each is an op of its own, compiled once for an element and a number of rows, whatever attention asks for it.

use std::ops::Range;

use super::BLOCK_SIZE;
use super::kv::padded;
use super::tile::Tile;
use crate::context::Kernels;
use crate::pages::Plain;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Vectors of keys in a block.
pub(super) const HALVES: usize = BLOCK_SIZE / LANES;

/// A stored key or value.
pub(super) trait Element: Plain {
    /// Whether products are summed as bf16 tiles sum them: at most [`TILE_DEPTH`] at a time, one half of them, the other half, then
    /// both. The halves are the even and the odd channels of keys, the first and the last sixteen tokens of values.
    const PAIRED: bool;

    /// Channels of keys that have a place in a block.
    fn key_width(head_dim: usize) -> usize {
        head_dim
    }

    /// The place of a key's channel in a block.
    fn key_place(channel: usize, token: usize) -> usize {
        channel * BLOCK_SIZE + token
    }

    /// The place of a value's channel in a block whose values have `width` places.
    fn value_place(token: usize, channel: usize, width: usize) -> usize {
        token * width + channel
    }

    /// Sixteen numbers of a block, side by side with sixteen others where they are paired: those of number SIDE in pair of lines `place`,
    /// or line `place`.
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[Self; LANES]], place: usize) -> S::F;

    /// A channel of the first (`half` 0) or the last sixteen keys of a block: number SIDE of pair `pair` of channels, or channel `pair`.
    #[inline(always)]
    fn load_key<S: Simd, const SIDE: usize>(s: S, keys: &[[Self; LANES]], pair: usize, half: usize) -> S::F {
        Self::load::<S, SIDE>(s, keys, pair * HALVES + half)
    }

    /// Sixteen channels, the `vector`th of `vectors`, of a value: number SIDE of pair `pair` of tokens, or token `pair`.
    #[inline(always)]
    fn load_value<S: Simd, const SIDE: usize>(
        s: S,
        values: &[[Self; LANES]],
        pair: usize,
        vector: usize,
        vectors: usize,
    ) -> S::F {
        Self::load::<S, SIDE>(s, values, pair * vectors + vector)
    }

    /// As `load_key`, of any channel.
    #[inline(always)]
    fn key<S: Simd>(s: S, keys: &[[Self; LANES]], channel: usize, half: usize) -> S::F {
        match (Self::PAIRED, channel % 2) {
            (false, _) => Self::load_key::<S, 0>(s, keys, channel, half),
            (true, 0) => Self::load_key::<S, 0>(s, keys, channel / 2, half),
            (true, _) => Self::load_key::<S, 1>(s, keys, channel / 2, half),
        }
    }

    /// As `load_value`, of any token.
    #[inline(always)]
    fn value<S: Simd>(s: S, values: &[[Self; LANES]], token: usize, vector: usize, vectors: usize) -> S::F {
        if Self::PAIRED && token >= LANES {
            Self::load_value::<S, 1>(s, values, token - LANES, vector, vectors)
        } else {
            Self::load_value::<S, 0>(s, values, token, vector, vectors)
        }
    }

    /// Rows (a query position times a query head of one KV head) that a task over blocks of this type holds at most, if one position
    /// fits.
    fn rows_per_task(_: &Kernels) -> usize {
        ROWS_PER_TASK
    }

    /// Runs the task by products of pairs, if the machine has them for this type and the task fills them. Says whether it did.
    fn in_pairs(_: &Tile<'_, Self>) -> bool {
        false
    }
}

/// Few enough that their queries and sums stay in the first-level cache.
pub(super) const ROWS_PER_TASK: usize = 32;
/// Products of bf16 that one instruction on tiles sums up.
pub(super) const TILE_DEPTH: usize = 32;

impl Element for f32 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[f32; LANES]], place: usize) -> S::F {
        s.load(&lines[place])
    }
}

/// bf16 bits, as products of tiles take them: two numbers side by side. Keys lie as pairs of neighbouring channels, values as pairs of
/// tokens, one of the first sixteen and the one sixteen places on.
impl Element for u16 {
    const PAIRED: bool = true;

    /// Whole tiles; channels beyond the head's are 0.
    fn key_width(head_dim: usize) -> usize {
        head_dim.next_multiple_of(TILE_DEPTH)
    }

    fn key_place(channel: usize, token: usize) -> usize {
        (channel / 2 * BLOCK_SIZE + token) * 2 + channel % 2
    }

    fn value_place(token: usize, channel: usize, width: usize) -> usize {
        (token % LANES * width + channel) * 2 + token / LANES
    }

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[u16; LANES]], place: usize) -> S::F {
        let pair: &[u16] = lines.as_chunks::<2>().0[place].as_flattened();
        let (first, second) = s.load_bf16_pairs(pair.try_into().expect("twice sixteen are 32"));
        if SIDE == 0 { first } else { second }
    }

    #[cfg(target_arch = "x86_64")]
    fn rows_per_task(kernels: &Kernels) -> usize {
        super::paired::rows_per_task(kernels.isa()).unwrap_or(ROWS_PER_TASK)
    }

    #[cfg(target_arch = "x86_64")]
    fn in_pairs(tile: &Tile<'_, u16>) -> bool {
        super::paired::run(tile)
    }
}

/// Codes of values.
impl Element for i8 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[i8; LANES]], place: usize) -> S::F {
        s.load_i8(&lines[place])
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
        assert!(q.len() * LANES == R * stride && to.len() == R);
        assert!(keys.len() == HALVES * E::key_width(head_dim));
        let mut acc = [[s.zero(); HALVES]; R];
        if E::PAIRED {
            let pairs = head_dim.div_ceil(2);
            for first in (0..pairs).step_by(TILE_DEPTH / 2) {
                let pairs = first..pairs.min(first + TILE_DEPTH / 2);
                // SAFETY: pairs of channels below head_dim rounded up to even, which `padded` covers.
                let even = unsafe { chains::<S, E, R, 0>(s, q, stride, keys, pairs.clone(), ahead) };
                // SAFETY: as above.
                let odd = unsafe { chains::<S, E, R, 1>(s, q, stride, keys, pairs, ahead) };
                for r in 0..R {
                    for half in 0..HALVES {
                        acc[r][half] = s.add(acc[r][half], s.add(even[r][half], odd[r][half]));
                    }
                }
            }
        } else {
            // SAFETY: channels below head_dim.
            acc = unsafe { chains::<S, E, R, 0>(s, q, stride, keys, 0..head_dim, ahead) };
        }
        for (to, acc) in to.iter_mut().zip(acc) {
            for (to, acc) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                s.store(acc, to);
            }
        }
    }
}

/// R rows of q times the keys of a block, over one channel of each of some pairs, or over some channels where none are paired.
///
/// # Safety
/// q holds R rows of `stride` values, which the channels are below.
#[inline(always)]
unsafe fn chains<S: Simd, E: Element, const R: usize, const SIDE: usize>(
    s: S,
    q: &[[f32; LANES]],
    stride: usize,
    keys: &[[E; LANES]],
    pairs: Range<usize>,
    ahead: *const u8,
) -> [[S::F; HALVES]; R] {
    let q = q.as_flattened().as_ptr();
    let side = if E::PAIRED { 2 } else { 1 };
    let mut acc = [[s.zero(); HALVES]; R];
    let fetch = |channel: usize| s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
    if S::WIDE {
        for pair in pairs {
            let channel = pair * side + SIDE;
            fetch(channel);
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
                fetch(channel);
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

    /// Goes on with the sums of N vectors of each row over one token of each of some pairs, or over some tokens where none are paired.
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
                    let place = token * vectors + vector + n;
                    s.prefetch_l2(self.ahead.wrapping_add(place * LANES * size_of::<E>()));
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
