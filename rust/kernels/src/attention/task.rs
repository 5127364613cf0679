//! A task of attention: its rows, the blocks that they see, and the addresses of those.
//!
//! Rows are (position, query head), position first. With 2 positions and a group of 3 query heads:
//!
//! ```text
//!     row             0     1     2     3     4     5
//!     position        p     p     p     p+1   p+1   p+1
//!     query head      h     h+1   h+2   h     h+1   h+2
//!     row groups      [ up to 4 rows that see the same ][...]
//! ```

use std::ops::Range;

use super::block_ops::{GROUP_BLOCKS, GROUP_ROWS, prefetch};
use super::kv_cache::{BlockView, KvElement, KvSource, PrefetchPtrs, key_block, padded, plane, value_block};
use super::params::{AttentionParams, BLOCK_SIZE, SeqView, first_visible};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::Simd;

/// Query positions of one sequence, for all query heads of one KV head.
#[derive(Clone, Copy)]
pub(super) struct AttentionTask<'a, E> {
    pub(super) kernels: &'a Kernels,
    pub(super) source: KvSource<'a, E>,
    pub(super) q: &'a [f32],
    pub(super) q_stride: usize,
    pub(super) seq: &'a SeqView<'a>,
    pub(super) params: &'a AttentionParams,
    pub(super) kv_head: usize,
    /// The first query within the sequence's queries of this step, and the number of them.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) out: &'a Shared<'a, f32>,
}

/// Rows that are computed together: they see the same tokens of a block in the same form.
#[derive(Clone, Copy)]
pub(super) struct RowGroup {
    pub(super) first: usize,
    pub(super) count: usize,
    /// Range of the tokens of the block that the rows see.
    pub(super) visible: (usize, usize),
    /// Whether the rows read the block from its open block.
    pub(super) current: bool,
}

impl RowGroup {
    /// The rows.
    #[inline(always)]
    pub(super) fn rows(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

impl<E: KvElement> AttentionTask<'_, E> {
    /// Query heads of a KV head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.params.heads / self.params.kv_heads
    }

    /// Number of rows.
    #[inline(always)]
    pub(super) fn num_rows(&self) -> usize {
        self.count * self.group()
    }

    /// The position of query `index` of this task.
    #[inline(always)]
    pub(super) fn position(&self, index: usize) -> usize {
        self.seq.context_len - self.seq.query_len + self.first + index
    }

    /// Range of the tokens of `block` that row `row` sees; start >= end: none.
    #[inline(always)]
    pub(super) fn visible(&self, block: usize, row: usize) -> (usize, usize) {
        let position = self.position(row / self.group());
        let start = block * BLOCK_SIZE;
        let low = first_visible(position, self.params.window).saturating_sub(start);
        (low, (position + 1).saturating_sub(start).min(BLOCK_SIZE))
    }

    /// Index of `block` for this KV head, `[block][kv head]`.
    #[inline(always)]
    pub(super) fn block_head(&self, block: usize) -> usize {
        self.seq.block_head(block, self.params, self.kv_head)
    }

    /// Addresses to prefetch of a block that is read soon. Blocks are scattered: a hardware prefetcher cannot predict
    /// them.
    #[inline(always)]
    pub(super) fn prefetch_ptrs(&self, block: usize) -> PrefetchPtrs {
        let block_head = self.block_head(block);
        let head_dim = self.params.head_dim;
        let (keys, values) = (key_block::<E>(head_dim), value_block(head_dim));
        match self.source {
            KvSource::Float(floats) => PrefetchPtrs {
                keys: floats.keys.as_ptr().wrapping_add(block_head * keys).cast(),
                values: floats.values.as_ptr().wrapping_add(block_head * values).cast(),
            },
            KvSource::Int8 { blocks, .. } => PrefetchPtrs {
                keys: blocks.planes.as_ptr().wrapping_add(2 * block_head * plane(head_dim)),
                values: blocks.values.as_ptr().wrapping_add(block_head * values).cast(),
            },
        }
    }

    /// Addresses to prefetch of [`GROUP_BLOCKS`] blocks from `block` on, none behind `last`.
    #[inline(always)]
    pub(super) fn prefetch_ptrs_together(&self, block: usize, last: usize) -> [PrefetchPtrs; GROUP_BLOCKS] {
        [
            self.prefetch_ptrs(block.min(last)),
            self.prefetch_ptrs((block + 1).min(last)),
            self.prefetch_ptrs((block + 2).min(last)),
            self.prefetch_ptrs((block + 3).min(last)),
        ]
    }

    /// Prefetches the parts of an int8 block that [`PrefetchPtrs`] do not cover: ranges of keys and scales of values.
    #[inline(always)]
    pub(super) fn prefetch_rest<S: Simd>(&self, s: S, block: usize) {
        self.prefetch_steps(s, block);
        if let KvSource::Int8 { blocks, .. } = self.source {
            prefetch(s, &blocks.value_scale, self.block_head(block), BLOCK_SIZE);
        }
    }

    /// Prefetches the ranges of an int8 block's keys.
    #[inline(always)]
    pub(super) fn prefetch_steps<S: Simd>(&self, s: S, block: usize) {
        if let KvSource::Int8 { blocks, .. } = self.source {
            let (block_head, padded) = (self.block_head(block), padded(self.params.head_dim));
            prefetch(s, &blocks.key_lo, block_head, padded);
            prefetch(s, &blocks.key_step, block_head, padded);
        }
    }

    /// Whether `block` of an int8 layer is the current block of row `row`, which is read from the open block.
    #[inline(always)]
    fn is_current(&self, block: usize, row: usize) -> bool {
        matches!(self.source, KvSource::Int8 { .. })
            && self.position(row / self.group()) / BLOCK_SIZE == block
    }

    /// Block `block` as rows read it whose current block it is, or is not.
    #[inline(always)]
    pub(super) fn block_view(&self, block: usize, current: bool) -> BlockView<'_, E> {
        let (head_dim, block_head) = (self.params.head_dim, self.block_head(block));
        match self.source {
            KvSource::Float(floats) => BlockView::float(floats, block_head, head_dim),
            KvSource::Int8 { open_blocks, .. } if current => {
                let open = self.seq.open_blocks[block - self.seq.first_new_block()];
                BlockView::float(&open_blocks[open as usize], self.kv_head, head_dim)
            }
            KvSource::Int8 { blocks, .. } => BlockView::Int8(blocks.head(block_head, head_dim)),
        }
    }

    /// The group of rows from `row` on, at most four before `end`, that see the same tokens of a block in the same
    /// form.
    #[inline(always)]
    pub(super) fn row_group(&self, block: usize, row: usize, end: usize) -> RowGroup {
        let max = GROUP_ROWS.min(end - row);
        if self.visible_to_all().contains(&block) {
            return RowGroup { first: row, count: max, visible: (0, BLOCK_SIZE), current: false };
        }
        let (visible, current) = (self.visible(block, row), self.is_current(block, row));
        let same = |row| (self.visible(block, row), self.is_current(block, row)) == (visible, current);
        let count = (1..max).find(|&next| !same(row + next)).unwrap_or(max);
        RowGroup { first: row, count, visible, current }
    }

    /// Blocks before every row's current block of which all rows see all tokens.
    #[inline(always)]
    pub(super) fn visible_to_all(&self) -> Range<usize> {
        let first = first_visible(self.position(self.count - 1), self.params.window).div_ceil(BLOCK_SIZE);
        let current = self.position(0) / BLOCK_SIZE;
        first.min(current)..current
    }

    /// Whether queries and weights are rounded to bf16: where keys and values are bf16.
    #[inline(always)]
    pub(super) fn rounds(&self) -> bool {
        E::PAIRS && matches!(self.source, KvSource::Float(_))
    }
}
