//! Blocks of keys and values as floats.
//!
//! A block of one KV head holds 32 tokens. Keys are channel-major: one vector register holds one channel of 16
//! tokens, so a broadcast of one query channel times two registers adds to 32 scores. Values are token-major, padded
//! to whole vectors of 16 channels.
//!
//! ```text
//!     f32 keys    [head_dim][32 tokens]             channel 0   t0  t1  t2 ... t31
//!                                                   channel 1   t0  t1  t2 ... t31
//!     f32 values  [32 tokens][padded head_dim]      token 0     c0  c1  c2 ...
//! ```
//!
//! bf16 numbers lie in pairs, as instructions for products of bf16 pairs (AMX, AVX-512 BF16) read them. A line is 64
//! bytes: 16 pairs. head_dim is rounded up to 32 channels for keys; the channels above it are 0.
//!
//! ```text
//!     bf16 keys   [head_dim / 2][32 tokens][2]      pair 0      t0:(c0 c1)  t1:(c0 c1)  ... t31:(c0 c1)
//!                 pairs of neighbouring channels    pair 1      t0:(c2 c3)  t1:(c2 c3)  ... t31:(c2 c3)
//!     bf16 values [16][padded head_dim][2]          pair 0      c0:(t0 t16) c1:(t0 t16) ...
//!                 pairs of tokens sixteen apart     pair 1      c0:(t1 t17) c1:(t1 t17) ...
//! ```

use super::super::params::BLOCK_SIZE;
use crate::pages::{Pages, Plain};
use crate::simd::{LANES, Simd};

/// Vectors of keys in a block.
pub(crate) const HALVES: usize = BLOCK_SIZE / LANES;
/// bf16 products that one matrix instruction sums.
pub(crate) const MATRIX_DEPTH: usize = 32;

/// Element type of stored keys or values.
pub(crate) trait KvElement: Plain {
    /// Whether elements lie in pairs. Then products are summed as a matrix unit sums them, at most [`MATRIX_DEPTH`]
    /// at a time: one half, the other half, then both. The halves are the even and the odd channels of keys, the
    /// first and the last sixteen tokens of values.
    const PAIRS: bool;

    /// Stored channels of a key.
    fn key_width(head_dim: usize) -> usize {
        head_dim
    }

    /// Index of a key's channel in a block.
    fn key_index(channel: usize, token: usize) -> usize {
        channel * BLOCK_SIZE + token
    }

    /// Index of a value's channel in a block whose values have `width` stored channels.
    fn value_index(token: usize, channel: usize, width: usize) -> usize {
        token * width + channel
    }

    /// Sixteen numbers: line `line`, or number SIDE of each pair in the pair of lines `line`.
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[Self; LANES]], line: usize) -> S::F;

    /// A channel of the first (`half` 0) or the last sixteen keys of a block: number SIDE of pair `pair` of channels,
    /// or channel `pair`.
    #[inline(always)]
    fn load_key<S: Simd, const SIDE: usize>(s: S, keys: &[[Self; LANES]], pair: usize, half: usize) -> S::F {
        Self::load::<S, SIDE>(s, keys, pair * HALVES + half)
    }

    /// Sixteen channels, the `vector`th of `vectors`, of a value: number SIDE of pair `pair` of tokens, or token
    /// `pair`.
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

    /// `load_key` by channel number.
    #[inline(always)]
    fn key<S: Simd>(s: S, keys: &[[Self; LANES]], channel: usize, half: usize) -> S::F {
        match (Self::PAIRS, channel % 2) {
            (false, _) => Self::load_key::<S, 0>(s, keys, channel, half),
            (true, 0) => Self::load_key::<S, 0>(s, keys, channel / 2, half),
            (true, _) => Self::load_key::<S, 1>(s, keys, channel / 2, half),
        }
    }

    /// `load_value` by token number.
    #[inline(always)]
    fn value<S: Simd>(s: S, values: &[[Self; LANES]], token: usize, vector: usize, vectors: usize) -> S::F {
        if Self::PAIRS && token >= LANES {
            Self::load_value::<S, 1>(s, values, token - LANES, vector, vectors)
        } else {
            Self::load_value::<S, 0>(s, values, token, vector, vectors)
        }
    }
}

impl KvElement for f32 {
    const PAIRS: bool = false;

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[f32; LANES]], line: usize) -> S::F {
        s.load(&lines[line])
    }
}

/// Bits of bf16.
impl KvElement for u16 {
    const PAIRS: bool = true;

    fn key_width(head_dim: usize) -> usize {
        head_dim.next_multiple_of(MATRIX_DEPTH)
    }

    fn key_index(channel: usize, token: usize) -> usize {
        (channel / 2 * BLOCK_SIZE + token) * 2 + channel % 2
    }

    fn value_index(token: usize, channel: usize, width: usize) -> usize {
        (token % LANES * width + channel) * 2 + token / LANES
    }

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[u16; LANES]], line: usize) -> S::F {
        let pair: &[u16] = lines.as_chunks::<2>().0[line].as_flattened();
        let (first, second) = s.load_bf16_pairs(pair.try_into().expect("twice sixteen are 32"));
        if SIDE == 0 { first } else { second }
    }
}

/// Codes of int8 values.
impl KvElement for i8 {
    const PAIRS: bool = false;

    #[inline(always)]
    fn load<S: Simd, const SIDE: usize>(s: S, lines: &[[i8; LANES]], line: usize) -> S::F {
        s.load_i8(&lines[line])
    }
}

/// Keys and values of some blocks, `[block][kv head]` each.
#[derive(Debug)]
pub(crate) struct FloatBlocks<T> {
    pub(crate) keys: Pages<T>,
    pub(crate) values: Pages<T>,
}

impl<T: KvElement> FloatBlocks<T> {
    pub(super) fn new(blocks: usize, kv_heads: usize, head_dim: usize) -> FloatBlocks<T> {
        let heads = blocks * kv_heads;
        FloatBlocks {
            keys: Pages::zeroed(heads * key_block::<T>(head_dim)),
            values: Pages::zeroed(heads * value_block(head_dim)),
        }
    }

    /// Bytes of one block and head.
    pub(super) fn bytes_per_head(head_dim: usize) -> usize {
        (key_block::<T>(head_dim) + value_block(head_dim)) * size_of::<T>()
    }

    /// Keys and values of one block and head.
    #[inline(always)]
    pub(crate) fn head(&self, block_head: usize, head_dim: usize) -> (&[[T; LANES]], &[[T; LANES]]) {
        let (keys, values) = (key_block::<T>(head_dim), value_block(head_dim));
        let keys = block_head * keys..(block_head + 1) * keys;
        let values = block_head * values..(block_head + 1) * values;
        (self.keys[keys].as_chunks().0, self.values[values].as_chunks().0)
    }

    pub(super) fn copy_block(&mut self, from: usize, to: usize, kv_heads: usize, head_dim: usize) {
        let (key_size, value_size) = (kv_heads * key_block::<T>(head_dim), kv_heads * value_block(head_dim));
        self.keys.copy_within(from * key_size..(from + 1) * key_size, to * key_size);
        self.values.copy_within(from * value_size..(from + 1) * value_size, to * value_size);
    }
}

/// Stored numbers of the keys of one block and head.
pub(crate) fn key_block<T: KvElement>(head_dim: usize) -> usize {
    T::key_width(head_dim) * BLOCK_SIZE
}

/// Stored channels of a value: whole vectors.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Stored numbers of the values of one block and head.
pub(crate) fn value_block(head_dim: usize) -> usize {
    BLOCK_SIZE * padded(head_dim)
}
