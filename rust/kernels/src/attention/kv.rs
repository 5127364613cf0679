//! The keys and values of one layer, in blocks of 32 tokens.

use super::BLOCK_SIZE;
use super::int8::{self, Int8Blocks};
use super::rows::Element;
use crate::pages::{Pages, Plain};
use crate::simd::LANES;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvDtype {
    /// f32.
    F32,
    /// bf16, rounded to nearest, ties to even.
    Bf16,
    /// Full blocks in int8; partly filled ones, and those a step is filling, in open blocks of this float type.
    Int8(OpenDtype),
}

impl KvDtype {
    /// Bytes of a key or value that is held as a float: of all of them, or of those in open blocks.
    pub fn float_bytes(self) -> usize {
        match self {
            KvDtype::F32 | KvDtype::Int8(OpenDtype::F32) => 4,
            KvDtype::Bf16 | KvDtype::Int8(OpenDtype::Bf16) => 2,
        }
    }
}

/// The float type of open blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenDtype {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

/// The stored keys and values of one layer.
///
/// Keys of f32 lie channel-major, `[block][kv head][head_dim][32 tokens]`: scores of 32 keys come from a broadcast per
/// channel. Values lie token-major, `[block][kv head][32 tokens][padded head_dim]`, padded to whole vectors. Those of bf16 lie in
/// pairs, as products of bf16 take them: keys `[head_dim / 2][32 tokens][2 channels]`, with the head_dim rounded up to 32, and
/// values `[16][padded head_dim][2 tokens, sixteen apart]`.
///
/// An int8 layer keeps its full blocks as [`int8`](super::int8) says. New tokens go to an *open block*, a block of floats that
/// exists while the block is not full and in the step that fills it. Which form a query reads depends on
/// positions only: its own block as floats, every earlier one in int8.
#[derive(Debug)]
pub struct KvLayer {
    pub(super) num_blocks: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) store: Store,
}

#[derive(Debug)]
pub(super) enum Store {
    F32(Pair<f32>),
    Bf16(Pair<u16>),
    Int8F32(Int8Blocks, Vec<Pair<f32>>),
    Int8Bf16(Int8Blocks, Vec<Pair<u16>>),
}

/// Keys and values of one element type.
#[derive(Debug)]
pub(super) struct Pair<T> {
    pub(super) keys: Pages<T>,
    pub(super) values: Pages<T>,
}

impl<T: Element> Pair<T> {
    fn new(blocks: usize, kv_heads: usize, head_dim: usize) -> Pair<T> {
        let heads = blocks * kv_heads;
        Pair {
            keys: Pages::zeroed(heads * key_block::<T>(head_dim)),
            values: Pages::zeroed(heads * value_block(head_dim)),
        }
    }

    /// Keys and values of block and head `place`.
    #[inline(always)]
    pub(super) fn head(&self, place: usize, head_dim: usize) -> (&[[T; LANES]], &[[T; LANES]]) {
        let (keys, values) = (key_block::<T>(head_dim), value_block(head_dim));
        let (keys, values) = (place * keys..(place + 1) * keys, place * values..(place + 1) * values);
        (self.keys[keys].as_chunks().0, self.values[values].as_chunks().0)
    }

    fn copy_block(&mut self, from: usize, to: usize, kv_heads: usize, head_dim: usize) {
        let (key_size, value_size) = (kv_heads * key_block::<T>(head_dim), kv_heads * value_block(head_dim));
        self.keys.copy_within(from * key_size..(from + 1) * key_size, to * key_size);
        self.values.copy_within(from * value_size..(from + 1) * value_size, to * value_size);
    }
}

/// Copies one open block onto another.
fn copy_open<T: Plain>(open: &mut [Pair<T>], from: usize, to: usize) {
    let count = open.len();
    let Ok([from, to]) = open.get_disjoint_mut([from, to]) else {
        panic!("copy of open block {from} to {to}: two open blocks below {count} are wanted");
    };
    to.keys.copy_from_slice(&from.keys);
    to.values.copy_from_slice(&from.values);
}

impl KvLayer {
    /// Storage for `num_blocks` blocks. Memory is taken from the system as blocks are first written.
    pub fn new(num_blocks: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> KvLayer {
        assert!(kv_heads > 0 && head_dim > 0, "{kv_heads} KV heads of {head_dim}");
        let int8 = || Int8Blocks::new(num_blocks, kv_heads, head_dim);
        let store = match dtype {
            KvDtype::F32 => Store::F32(Pair::new(num_blocks, kv_heads, head_dim)),
            KvDtype::Bf16 => Store::Bf16(Pair::new(num_blocks, kv_heads, head_dim)),
            KvDtype::Int8(OpenDtype::F32) => Store::Int8F32(int8(), Vec::new()),
            KvDtype::Int8(OpenDtype::Bf16) => Store::Int8Bf16(int8(), Vec::new()),
        };
        KvLayer { num_blocks, kv_heads, head_dim, store }
    }

    /// Bytes that one block of such a layer takes, without its open block.
    pub fn bytes_per_block(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        match dtype {
            KvDtype::F32 => kv_heads * float_bytes_per_head::<f32>(head_dim),
            KvDtype::Bf16 => kv_heads * float_bytes_per_head::<u16>(head_dim),
            KvDtype::Int8(_) => kv_heads * int8::bytes_per_head(head_dim),
        }
    }

    /// Bytes of one open block of such a layer; 0 if it has none.
    pub fn bytes_per_open_block(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        match dtype {
            KvDtype::F32 | KvDtype::Bf16 => 0,
            KvDtype::Int8(OpenDtype::F32) => kv_heads * float_bytes_per_head::<f32>(head_dim),
            KvDtype::Int8(OpenDtype::Bf16) => kv_heads * float_bytes_per_head::<u16>(head_dim),
        }
    }

    /// Bytes of the whole layer, its open blocks included.
    pub fn bytes(&self) -> usize {
        self.num_blocks * KvLayer::bytes_per_block(self.kv_heads, self.head_dim, self.dtype())
            + self.num_open_blocks()
                * KvLayer::bytes_per_open_block(self.kv_heads, self.head_dim, self.dtype())
    }

    /// The number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// The number of open blocks; 0 if the layer is not int8.
    pub fn num_open_blocks(&self) -> usize {
        match &self.store {
            Store::F32(_) | Store::Bf16(_) => 0,
            Store::Int8F32(_, open_blocks) => open_blocks.len(),
            Store::Int8Bf16(_, open_blocks) => open_blocks.len(),
        }
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> KvDtype {
        match self.store {
            Store::F32(_) => KvDtype::F32,
            Store::Bf16(_) => KvDtype::Bf16,
            Store::Int8F32(..) => KvDtype::Int8(OpenDtype::F32),
            Store::Int8Bf16(..) => KvDtype::Int8(OpenDtype::Bf16),
        }
    }

    /// Makes sure that there are at least `count` open blocks. Layers that are not int8 have none.
    pub fn grow_open_blocks(&mut self, count: usize) {
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        match &mut self.store {
            Store::F32(_) | Store::Bf16(_) => {}
            Store::Int8F32(_, open_blocks) if open_blocks.len() < count => {
                open_blocks.resize_with(count, || Pair::new(1, kv_heads, head_dim));
            }
            Store::Int8Bf16(_, open_blocks) if open_blocks.len() < count => {
                open_blocks.resize_with(count, || Pair::new(1, kv_heads, head_dim));
            }
            Store::Int8F32(..) | Store::Int8Bf16(..) => {}
        }
    }

    /// Copies block `from` onto block `to`. Of an int8 layer this is the int8 form.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        assert!(
            from < self.num_blocks && to < self.num_blocks,
            "copy {from} -> {to} of {} blocks",
            self.num_blocks
        );
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        match &mut self.store {
            Store::F32(pair) => pair.copy_block(from, to, kv_heads, head_dim),
            Store::Bf16(pair) => pair.copy_block(from, to, kv_heads, head_dim),
            Store::Int8F32(blocks, _) | Store::Int8Bf16(blocks, _) => {
                blocks.copy_block(from, to, kv_heads, head_dim);
            }
        }
    }

    /// Copies open block `from` onto open block `to`. [`copy_block`](Self::copy_block) copies what belongs to its block.
    pub fn copy_open_block(&mut self, from: usize, to: usize) {
        match &mut self.store {
            Store::F32(_) | Store::Bf16(_) => panic!("only int8 layers have open blocks"),
            Store::Int8F32(_, open) => copy_open(open, from, to),
            Store::Int8Bf16(_, open) => copy_open(open, from, to),
        }
    }
}

/// Bytes of one block and head as floats.
fn float_bytes_per_head<T: Element>(head_dim: usize) -> usize {
    (key_block::<T>(head_dim) + value_block(head_dim)) * size_of::<T>()
}

/// Key values of one block and head.
pub(super) fn key_block<T: Element>(head_dim: usize) -> usize {
    T::key_width(head_dim) * BLOCK_SIZE
}

/// Stored values of one token and head: whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Stored values of one block and head.
pub(super) fn value_block(head_dim: usize) -> usize {
    BLOCK_SIZE * padded(head_dim)
}
