//! Estimates: softmax masses of all blocks, for all rows of a task.
//!
//! ```text
//!     blocks of the span         first   ...   visible to all rows   ...   last
//!     four rows, four blocks                   [ 4 ][ 4 ][ 4 ][ 2 ]
//!     row groups, one block      [ 1 ]                               [ 1 ]
//!     exact scores               first block of a window, current block of each query
//! ```

use std::ops::Range;

use super::super::block_ops::{GROUP_BLOCKS, GROUP_ROWS};
use super::super::int8_scores::{BlockMasses, MassEstimate, peaks_of};
use super::super::kv_cache::{KvElement, KvSource, PrefetchPtrs, padded};
use super::super::params::{BLOCK_SIZE, first_visible};
use super::super::state::SoftmaxState;
use super::super::task::RowGroup;
use super::select::BlockSelector;
use super::task::DynamicTask;
use crate::simd::{LANES, Simd};

impl<E: KvElement> DynamicTask<'_, E> {
    /// Sizes the buffers, and computes the peaks of the queries.
    #[inline(always)]
    pub(super) fn begin<S: Simd>(&self, s: S, state: &mut SoftmaxState, selector: &mut BlockSelector) {
        let (_, blocks) = self.span();
        selector.start(self.task.num_rows(), blocks);
        let vectors = padded(self.task.params.head_dim) / LANES;
        state.q_peaks.clear();
        for q in state.q.chunks_exact(vectors) {
            state.q_peaks.push(peaks_of(s, q));
        }
    }

    /// Estimates the masses of all blocks for all rows.
    #[inline(always)]
    pub(super) fn estimate<S: Simd>(&self, s: S, state: &mut SoftmaxState, selector: &mut BlockSelector) {
        let task = &self.task;
        let (first, blocks) = self.span();
        let rows = task.num_rows();
        for index in 0..task.count {
            // The scores in the current block set the references of the masses.
            let current = self.current_block(index);
            self.add_exact(s, state, selector, current, index);
            let whole = first_visible(task.position(index), task.params.window).is_multiple_of(BLOCK_SIZE);
            if !whole && self.first_block(index) < current {
                self.add_exact(s, state, selector, self.first_block(index), index);
            }
        }
        // The last block is the last query's current block, which has exact scores.
        let last = first + blocks - 1;
        let visible_to_all = task.visible_to_all();
        let mut block = first;
        while block < last {
            let together = if visible_to_all.contains(&block) {
                GROUP_BLOCKS.min(visible_to_all.end - block)
            } else {
                0
            };
            if together == 0 {
                let mut row = 0;
                while row < rows {
                    let group = task.row_group(block, row, rows);
                    if group.visible == (0, BLOCK_SIZE) && !group.current {
                        self.estimate_blocks(state, selector, (block, 1), group, block + 1);
                    }
                    row += group.count;
                }
                block += 1;
                continue;
            }
            // The first row group prefetches the next blocks; later ones prefetch this one, which costs nothing.
            let mut next = block + GROUP_BLOCKS;
            for n in 0..together {
                task.prefetch_steps(s, (next + n).min(last));
            }
            for row in (0..rows).step_by(GROUP_ROWS) {
                let group = RowGroup {
                    first: row,
                    count: GROUP_ROWS.min(rows - row),
                    visible: (0, BLOCK_SIZE),
                    current: false,
                };
                self.estimate_blocks(state, selector, (block, together), group, next);
                next = block;
            }
            block += together;
        }
    }

    /// Computes the exact scores of the query at `index` in a block of which it does not see all tokens.
    #[inline(always)]
    fn add_exact<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        selector: &mut BlockSelector,
        block: usize,
        index: usize,
    ) {
        let Range { start: mut row, end } = self.rows(index);
        while row < end {
            let group = self.task.row_group(block, row, end);
            let view = self.task.block_view(block, group.current);
            self.task.qk(s, state, view, group, self.task.prefetch_ptrs(block));
            let optional = (!group.current).then(|| block - self.span().0);
            selector.add_exact(s, row, &state.scores[..group.count], optional);
            row += group.count;
        }
    }

    /// Estimates `count` blocks from `block` on for a row group, and prefetches blocks from `next` on.
    #[inline(always)]
    fn estimate_blocks(
        &self,
        state: &mut SoftmaxState,
        selector: &mut BlockSelector,
        (block, count): (usize, usize),
        group: RowGroup,
        next: usize,
    ) {
        let (first, blocks) = self.span();
        let prefetch_at = self.task.prefetch_ptrs_together(next, first + blocks - 1);
        let estimates = self.block_masses(state, (block, count), group, &prefetch_at, &selector.references);
        selector.add_estimates(block - first..block + count - first, group.rows(), &estimates);
    }

    /// Masses of `count` int8 blocks from `block` on for a row group that sees all their tokens.
    #[inline(always)]
    fn block_masses(
        &self,
        state: &mut SoftmaxState,
        (block, count): (usize, usize),
        group: RowGroup,
        prefetch_at: &[PrefetchPtrs; GROUP_BLOCKS],
        references: &[f32],
    ) -> BlockMasses {
        let mut to = BlockMasses::default();
        let KvSource::Int8 { blocks, .. } = self.task.source else { return to };
        let (head_dim, rows) = (self.task.params.head_dim, group.rows());
        let vectors = padded(head_dim) / LANES;
        let block_head = |n: usize| self.task.block_head(block + n.min(count - 1));
        // An array built in place: copies of it would cost as much as a part of the estimate.
        let heads: [_; GROUP_BLOCKS] = [
            blocks.head(block_head(0), head_dim),
            blocks.head(block_head(1), head_dim),
            blocks.head(block_head(2), head_dim),
            blocks.head(block_head(3), head_dim),
        ];
        let estimate = MassEstimate {
            rows: group.count,
            q: &state.q[rows.start * vectors..rows.end * vectors],
            q_peaks: &state.q_peaks[rows.clone()],
            heads: &heads[..count],
            rounded: &mut state.rounded,
            prefetch_at: &prefetch_at[..count],
            peaks: &mut state.peaks[rows.clone()],
            references: &references[rows],
            softcap: self.task.params.softcap,
            low_nibbles: self.low_nibbles(),
            to: &mut to,
        };
        estimate.run(self.task.kernels);
        to
    }
}
