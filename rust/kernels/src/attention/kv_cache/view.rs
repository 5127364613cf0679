//! Read access to a KV cache: a whole layer, one block of a head, addresses to prefetch.

use super::float_blocks::{FloatBlocks, KvElement};
use super::int8_blocks::{Int8Blocks, Int8Head};
use crate::simd::LANES;

/// Keys and values of a layer.
#[derive(Clone, Copy)]
pub(crate) enum KvSource<'a, E> {
    /// All blocks as floats.
    Float(&'a FloatBlocks<E>),
    /// Each query's own block as floats, every earlier block in int8.
    Int8 { blocks: &'a Int8Blocks, open_blocks: &'a [FloatBlocks<E>] },
}

/// Keys and values of one block and head, in the form in which a group of rows reads it.
#[derive(Clone, Copy)]
pub(crate) enum BlockView<'a, E> {
    Float { keys: &'a [[E; LANES]], values: &'a [[E; LANES]] },
    Int8(Int8Head<'a>),
}

impl<'a, E: KvElement> BlockView<'a, E> {
    #[inline(always)]
    pub(crate) fn float(blocks: &'a FloatBlocks<E>, block_head: usize, head_dim: usize) -> Self {
        let (keys, values) = blocks.head(block_head, head_dim);
        BlockView::Float { keys, values }
    }
}

/// Addresses of keys and values to prefetch while a block is computed.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchPtrs {
    pub(crate) keys: *const u8,
    pub(crate) values: *const u8,
}
