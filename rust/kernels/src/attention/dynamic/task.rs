//! A task of dynamic attention, and the blocks of its queries.
//!
//! ```text
//!     blocks of the sequence    [ ] [ ] [ ] [ ] [ ] [ ] [ ] [ ] [C]      C: a query's current block, always read
//!     window                             [ first block ....... C]
//!     span of the task          [ multiple of 16 ............. last C]
//!     optional                           [ may be omitted ... ]
//! ```

use std::ops::Range;

use super::super::kv_cache::KvElement;
use super::super::params::{BLOCK_SIZE, first_visible};
use super::super::task::AttentionTask;
use super::report::{DynamicParams, Mode};
use crate::simd::LANES;

/// A task whose queries select the blocks that they read.
pub(crate) struct DynamicTask<'a, E> {
    pub(crate) task: AttentionTask<'a, E>,
    pub(crate) params: DynamicParams,
}

impl<E: KvElement> DynamicTask<'_, E> {
    /// The task's span of blocks: its first block, and the number of blocks up to the last query's current block.
    ///
    /// The first block is a multiple of the lanes: a block adds to the same chain of a sum, whichever queries share
    /// the task.
    #[inline(always)]
    pub(super) fn span(&self) -> (usize, usize) {
        let first = self.first_block(0) / LANES * LANES;
        (first, self.current_block(self.task.count - 1) + 1 - first)
    }

    /// The first block that the query at `index` sees.
    #[inline(always)]
    pub(super) fn first_block(&self, index: usize) -> usize {
        first_visible(self.task.position(index), self.task.params.window) / BLOCK_SIZE
    }

    /// The current block of the query at `index`.
    #[inline(always)]
    pub(super) fn current_block(&self, index: usize) -> usize {
        self.task.position(index) / BLOCK_SIZE
    }

    /// The rows of the query at `index`.
    #[inline(always)]
    pub(super) fn rows(&self, index: usize) -> Range<usize> {
        index * self.task.group()..(index + 1) * self.task.group()
    }

    /// Blocks, counted from the first of the span, that the query at `index` may omit.
    #[inline(always)]
    pub(super) fn optional(&self, index: usize) -> Range<usize> {
        let (first, _) = self.span();
        self.first_block(index) - first..self.current_block(index) - first
    }

    /// Maximum mass that a query head may omit.
    #[inline(always)]
    pub(super) fn bound(&self) -> f32 {
        self.params.error_bound
    }

    /// Whether estimates read the low nibbles of keys.
    #[inline(always)]
    pub(super) fn low_nibbles(&self) -> bool {
        self.params.mode != Mode::Estimated
    }
}
