//! The KV cache of one layer.

use super::float_blocks::FloatBlocks;
use super::int8_blocks::{Int8Blocks, bytes_per_head};
use crate::pages::Plain;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvDtype {
    /// f32.
    F32,
    /// bf16, rounded to nearest, ties to even.
    Bf16,
    /// Full blocks in int8; blocks that are not full, and those that a step fills, in open blocks of this float type.
    Int8(OpenDtype),
}

impl KvDtype {
    /// Bytes of a number that is held as a float; of an int8 layer, in open blocks.
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

/// KV cache of one layer, in blocks of 32 tokens.
///
/// A layer of floats holds [`FloatBlocks`]. An int8 layer holds full blocks as [`Int8Blocks`]. An *open block* is the
/// floats beside an int8 block that is not full; the step that fills the block *seals* it, which is to quantise the
/// open block. A query reads its own block from the open block and every earlier block in int8, so the form depends
/// on positions only:
///
/// ```text
///     block of the sequence     0      1      2      3 = the query's own
///     int8 block                full   full   full   -
///     open block                -      -      -      t0 .. t17
/// ```
#[derive(Debug)]
pub struct KvLayer {
    pub(crate) num_blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) store: KvStore,
}

#[derive(Debug)]
pub(crate) enum KvStore {
    F32(FloatBlocks<f32>),
    Bf16(FloatBlocks<u16>),
    Int8F32(Int8Blocks, Vec<FloatBlocks<f32>>),
    Int8Bf16(Int8Blocks, Vec<FloatBlocks<u16>>),
}

/// Copies one open block onto another.
fn copy_open<T: Plain>(open: &mut [FloatBlocks<T>], from: usize, to: usize) {
    let count = open.len();
    let Ok([from, to]) = open.get_disjoint_mut([from, to]) else {
        panic!("copy of open block {from} to {to}: two open blocks below {count} are wanted");
    };
    to.keys.copy_from_slice(&from.keys);
    to.values.copy_from_slice(&from.values);
}

impl KvLayer {
    /// Storage for `num_blocks` blocks. The system assigns memory when blocks are first written.
    pub fn new(num_blocks: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> KvLayer {
        assert!(kv_heads > 0 && head_dim > 0, "{kv_heads} KV heads of {head_dim}");
        let int8 = || Int8Blocks::new(num_blocks, kv_heads, head_dim);
        let store = match dtype {
            KvDtype::F32 => KvStore::F32(FloatBlocks::new(num_blocks, kv_heads, head_dim)),
            KvDtype::Bf16 => KvStore::Bf16(FloatBlocks::new(num_blocks, kv_heads, head_dim)),
            KvDtype::Int8(OpenDtype::F32) => KvStore::Int8F32(int8(), Vec::new()),
            KvDtype::Int8(OpenDtype::Bf16) => KvStore::Int8Bf16(int8(), Vec::new()),
        };
        KvLayer { num_blocks, kv_heads, head_dim, store }
    }

    /// Bytes of one block of such a layer, without its open block.
    pub fn bytes_per_block(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        match dtype {
            KvDtype::F32 => kv_heads * FloatBlocks::<f32>::bytes_per_head(head_dim),
            KvDtype::Bf16 => kv_heads * FloatBlocks::<u16>::bytes_per_head(head_dim),
            KvDtype::Int8(_) => kv_heads * bytes_per_head(head_dim),
        }
    }

    /// Bytes of one open block of such a layer; 0 if it has none.
    pub fn bytes_per_open_block(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        match dtype {
            KvDtype::F32 | KvDtype::Bf16 => 0,
            KvDtype::Int8(OpenDtype::F32) => kv_heads * FloatBlocks::<f32>::bytes_per_head(head_dim),
            KvDtype::Int8(OpenDtype::Bf16) => kv_heads * FloatBlocks::<u16>::bytes_per_head(head_dim),
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
            KvStore::F32(_) | KvStore::Bf16(_) => 0,
            KvStore::Int8F32(_, open) => open.len(),
            KvStore::Int8Bf16(_, open) => open.len(),
        }
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> KvDtype {
        match self.store {
            KvStore::F32(_) => KvDtype::F32,
            KvStore::Bf16(_) => KvDtype::Bf16,
            KvStore::Int8F32(..) => KvDtype::Int8(OpenDtype::F32),
            KvStore::Int8Bf16(..) => KvDtype::Int8(OpenDtype::Bf16),
        }
    }

    /// Grows the open blocks to at least `count`. Layers that are not int8 have none.
    pub fn grow_open_blocks(&mut self, count: usize) {
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        match &mut self.store {
            KvStore::F32(_) | KvStore::Bf16(_) => {}
            KvStore::Int8F32(_, open) if open.len() < count => {
                open.resize_with(count, || FloatBlocks::new(1, kv_heads, head_dim));
            }
            KvStore::Int8Bf16(_, open) if open.len() < count => {
                open.resize_with(count, || FloatBlocks::new(1, kv_heads, head_dim));
            }
            KvStore::Int8F32(..) | KvStore::Int8Bf16(..) => {}
        }
    }

    /// Copies block `from` onto block `to`; of an int8 layer the int8 form and the gates.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        assert!(
            from < self.num_blocks && to < self.num_blocks,
            "copy {from} -> {to} of {} blocks",
            self.num_blocks
        );
        let (kv_heads, head_dim) = (self.kv_heads, self.head_dim);
        match &mut self.store {
            KvStore::F32(pair) => pair.copy_block(from, to, kv_heads, head_dim),
            KvStore::Bf16(pair) => pair.copy_block(from, to, kv_heads, head_dim),
            KvStore::Int8F32(blocks, _) | KvStore::Int8Bf16(blocks, _) => {
                blocks.copy_block(from, to, kv_heads, head_dim);
            }
        }
    }

    /// Copies open block `from` onto open block `to`.
    pub fn copy_open_block(&mut self, from: usize, to: usize) {
        match &mut self.store {
            KvStore::F32(_) | KvStore::Bf16(_) => panic!("only int8 layers have open blocks"),
            KvStore::Int8F32(_, open) => copy_open(open, from, to),
            KvStore::Int8Bf16(_, open) => copy_open(open, from, to),
        }
    }
}
