//! The two products of attention for a few rows and one block: queries times keys, weights times values.

use super::BLOCK_SIZE;
use super::kv::padded;
use crate::pages::Plain;
use crate::simd::{LANES, Simd};

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

/// Codes of keys.
impl Element for u8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8; LANES]) -> S::F {
        s.load_u8(from)
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

/// R rows of q, `[R][padded head_dim]`, times a block of keys, on top of `start`: one chain over channels for each key.
#[inline(always)]
pub(super) fn scores<S: Simd, E: Element, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    start: &[f32; R],
    keys: &[[E; LANES]],
    head_dim: usize,
    ahead: *const u8,
) -> [[S::F; HALVES]; R] {
    let stride = padded(head_dim);
    assert!(q.len() * LANES == R * stride && keys.len() >= HALVES * head_dim);
    let q = q.as_flattened().as_ptr();
    let mut acc = start.map(|start| [s.splat(start); HALVES]);
    if S::WIDE {
        for channel in 0..head_dim {
            s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
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
        return acc;
    }
    // Few registers: one half after the other. Each chain is the same.
    for half in 0..HALVES {
        let mut part = start.map(|start| s.splat(start));
        for channel in 0..head_dim {
            if half == 0 {
                s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
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

/// acc = acc * rescale + weights times values: one chain over the tokens that are seen, in order.
///
/// Other tokens are not read: their places may hold anything, even NaN.
#[inline(always)]
pub(super) fn weigh<S: Simd, E: Element, const R: usize>(
    s: S,
    acc: &mut [[f32; LANES]],
    values: &[[E; LANES]],
    weights: &[[f32; BLOCK_SIZE]; R],
    rescale: &[f32; R],
    seen: (usize, usize),
    ahead: *const u8,
) {
    let vectors = acc.len() / R;
    assert!(values.len() == BLOCK_SIZE * vectors && seen.1 <= BLOCK_SIZE);
    for vector in 0..vectors {
        let mut sums = [s.zero(); R];
        for r in 0..R {
            sums[r] = s.mul(s.load(&acc[r * vectors + vector]), s.splat(rescale[r]));
        }
        for token in seen.0..seen.1 {
            // SAFETY: token < 32 and vector < vectors, within the length checked above.
            let value = E::load(s, unsafe { values.get_unchecked(token * vectors + vector) });
            s.prefetch_l2(ahead.wrapping_add((token * vectors + vector) * LANES * size_of::<E>()));
            for r in 0..R {
                sums[r] = s.fma(s.splat(weights[r][token]), value, sums[r]);
            }
        }
        for r in 0..R {
            s.store(sums[r], &mut acc[r * vectors + vector]);
        }
    }
}
