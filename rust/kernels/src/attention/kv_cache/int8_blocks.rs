//! Full KV blocks in int8: the format.
//!
//! ```text
//!     keys     key[channel][token]   = lo[channel] + step[channel] * code,   code 0 ..= 255
//!     values   value[token][channel] = scale[token] * code,                  code -127 ..= 127
//! ```
//!
//! lo, step and scale are bf16, whose range is that of f32: no key or value overflows them. Keys have a range per
//! channel because they have channels with large offsets, on which a scale per token would spend its codes. `lo` is
//! rounded down and steps are rounded up, and codes are made from the rounded numbers. A block with a number that is
//! not finite reads as NaN.
//!
//! A key's code is split into two nibbles in two planes, high and low. Reading the high plane alone fixes each key to
//! `lo + step * (16 * high + 7.5 +- 7.5)`. A unit is eight channels of 32 tokens, 128 bytes of a plane: four bytes a
//! token, because instructions for products of bytes sum four neighbours.
//!
//! ```text
//!     one plane   unit 0 (channels 0-7)                   unit 1 (channels 8-15)          ...
//!                 [ token 0 ][ token 1 ] ... [ token 31 ][ token 0 ] ...
//!
//!     a token's   byte         0        1        2        3
//!     4 bytes     bits 0..4    chan 0   chan 1   chan 2   chan 3
//!                 bits 4..8    chan 4   chan 5   chan 6   chan 7
//! ```
//!
//! Beside them a block holds, for each KV head, bounds on its values and keys and a gate, which block selection uses.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::params::BLOCK_SIZE;
use super::float_blocks::{padded, value_block};
use crate::pages::{Pages, Plain};
use crate::simd::{LANES, Simd};

/// Channels that lie together in a plane.
pub(crate) const UNIT: usize = 8;
/// Bytes of a unit in one plane.
pub(crate) const UNIT_BYTES: usize = BLOCK_SIZE * UNIT / 2;

/// Position of a nibble in a plane: the byte, and the bits to shift by.
#[inline(always)]
pub(crate) fn nibble(channel: usize, token: usize) -> (usize, u32) {
    let (unit, inner) = (channel / UNIT, channel % UNIT);
    (unit * UNIT_BYTES + token * 4 + inner % 4, 4 * (inner / 4) as u32)
}

/// Blocks of one layer in int8, `[block][kv head]` each; the layout is drawn above.
#[derive(Debug)]
pub(crate) struct Int8Blocks {
    /// The plane of high nibbles, then the plane of low nibbles.
    pub(crate) planes: Pages<u8>,
    /// bf16, `[padded head_dim]`.
    pub(crate) key_lo: Pages<u16>,
    pub(crate) key_step: Pages<u16>,
    /// `[32][padded head_dim]`.
    pub(crate) values: Pages<i8>,
    /// bf16, `[32]`.
    pub(crate) value_scale: Pages<u16>,
    /// bf16, `[16]`: entry v is the largest step of vector v of channels, and of every sixteenth vector from there on.
    pub(crate) key_step_peaks: Pages<u16>,
    /// Upper bound on the norm of any stored value of the block.
    pub(crate) max_value_norm: Pages<f32>,
    /// Upper bound on the norm of `|lo| + 255 step` over the channels. Times the norm of a query it bounds the sum of
    /// the magnitudes of a score's terms, and with it the score's rounding error.
    pub(crate) key_reach: Pages<f32>,
    /// Gates: whether all queries of the block but the first read everything.
    gates: Vec<AtomicBool>,
}

/// Bytes of one plane of a block and head.
pub(crate) fn plane(head_dim: usize) -> usize {
    padded(head_dim) / 2 * BLOCK_SIZE
}

/// Bytes of one block and head.
pub(crate) fn bytes_per_head(head_dim: usize) -> usize {
    2 * plane(head_dim)
        + 4 * padded(head_dim)
        + 2 * LANES
        + value_block(head_dim)
        + 2 * BLOCK_SIZE
        + 2 * size_of::<f32>()
        + 1
}

/// Bytes of the values and their scales of one block and head.
pub(crate) fn value_bytes_per_head(head_dim: usize) -> usize {
    value_block(head_dim) + 2 * BLOCK_SIZE
}

impl Int8Blocks {
    pub(crate) fn new(num_blocks: usize, kv_heads: usize, head_dim: usize) -> Int8Blocks {
        let heads = num_blocks * kv_heads;
        Int8Blocks {
            planes: Pages::zeroed(heads * 2 * plane(head_dim)),
            key_lo: Pages::zeroed(heads * padded(head_dim)),
            key_step: Pages::zeroed(heads * padded(head_dim)),
            values: Pages::zeroed(heads * value_block(head_dim)),
            value_scale: Pages::zeroed(heads * BLOCK_SIZE),
            key_step_peaks: Pages::zeroed(heads * LANES),
            max_value_norm: Pages::zeroed(heads),
            key_reach: Pages::zeroed(heads),
            gates: (0..heads).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// The gate of one block and head.
    pub(crate) fn gate(&self, block_head: usize) -> bool {
        self.gates[block_head].load(Ordering::Relaxed)
    }

    /// Sets a gate. The end of the thread pool's run orders this before later reads.
    pub(crate) fn set_gate(&self, block_head: usize, dense: bool) {
        self.gates[block_head].store(dense, Ordering::Relaxed);
    }

    /// Copies the gates of block `from` to block `to`.
    pub(crate) fn copy_gates(&self, from: usize, to: usize, kv_heads: usize) {
        for head in 0..kv_heads {
            self.set_gate(to * kv_heads + head, self.gate(from * kv_heads + head));
        }
    }

    pub(crate) fn copy_block(&mut self, from: usize, to: usize, kv_heads: usize, head_dim: usize) {
        fn copy<T: Plain>(pages: &mut Pages<T>, from: usize, to: usize, size: usize) {
            pages.copy_within(from * size..(from + 1) * size, to * size);
        }
        copy(&mut self.planes, from, to, kv_heads * 2 * plane(head_dim));
        copy(&mut self.key_lo, from, to, kv_heads * padded(head_dim));
        copy(&mut self.key_step, from, to, kv_heads * padded(head_dim));
        copy(&mut self.values, from, to, kv_heads * value_block(head_dim));
        copy(&mut self.value_scale, from, to, kv_heads * BLOCK_SIZE);
        copy(&mut self.key_step_peaks, from, to, kv_heads * LANES);
        copy(&mut self.max_value_norm, from, to, kv_heads);
        copy(&mut self.key_reach, from, to, kv_heads);
        self.copy_gates(from, to, kv_heads);
    }

    /// One block and head as attention reads it.
    #[inline(always)]
    pub(crate) fn head(&self, block_head: usize, head_dim: usize) -> Int8Head<'_> {
        let (plane, padded, values) = (plane(head_dim), padded(head_dim), value_block(head_dim));
        let (high, low) = self.planes[2 * block_head * plane..2 * (block_head + 1) * plane].split_at(plane);
        Int8Head {
            high,
            low,
            lo: self.key_lo[block_head * padded..(block_head + 1) * padded].as_chunks().0,
            step: self.key_step[block_head * padded..(block_head + 1) * padded].as_chunks().0,
            step_peaks: &self.key_step_peaks.as_chunks().0[block_head],
            values: self.values[block_head * values..(block_head + 1) * values].as_chunks().0,
            scale: self.value_scale[block_head * BLOCK_SIZE..(block_head + 1) * BLOCK_SIZE].as_chunks().0,
        }
    }
}

/// One block and head as attention reads it.
#[derive(Clone, Copy)]
pub(crate) struct Int8Head<'a> {
    pub(crate) high: &'a [u8],
    pub(crate) low: &'a [u8],
    pub(crate) lo: &'a [[u16; LANES]],
    pub(crate) step: &'a [[u16; LANES]],
    pub(crate) step_peaks: &'a [u16; LANES],
    pub(crate) values: &'a [[i8; LANES]],
    scale: &'a [[u16; LANES]],
}

impl Int8Head<'_> {
    /// Turns weights of values into weights of their codes: times the tokens' scales.
    #[inline(always)]
    pub(crate) fn scale_weights<S: Simd>(&self, s: S, weights: &mut [f32; BLOCK_SIZE]) {
        for (weights, scale) in weights.as_chunks_mut::<LANES>().0.iter_mut().zip(self.scale) {
            s.store(s.mul(s.load(weights), s.load_bf16(scale)), weights);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every channel and token of a unit has four bits of its own.
    #[test]
    fn nibbles_do_not_overlap() {
        let mut seen = std::collections::HashSet::new();
        for channel in 0..3 * UNIT {
            for token in 0..BLOCK_SIZE {
                let (byte, shift) = nibble(channel, token);
                assert!(byte < 3 * UNIT_BYTES && (shift == 0 || shift == 4));
                assert!(seen.insert((byte, shift)), "channel {channel} of token {token}");
            }
        }
    }
}
