//! Scores, softmax and values of one or two blocks, for all rows of a task.
//!
//! For a tile of sixteen rows:
//!
//! ```text
//!     qk               scores  [block][half][16 rows] of f32, by the unit
//!     update_pair      weights [block][16 rows] of bf16 pairs, if no reference changes; else update_block
//!     accumulate_pv    acc *= rescale of block 0, then weights times values of both blocks in one step,
//!                      or block by block where block 1 rescales too or a value is not finite
//! ```

use std::ops::Range;

use super::super::block_ops::{accumulate_pv, prefetch};
use super::super::dense::RESCALE_THRESHOLD;
use super::super::kv_cache::{FloatBlocks, HALVES, KvSource, key_block, padded, value_block};
use super::super::params::BLOCK_SIZE;
use super::super::state::SoftmaxState;
use super::super::task::AttentionTask;
use super::buffers::MatrixBuffers;
use super::products::{Bf16Block, BlockProducts, PAIR_BLOCKS};
use crate::amx::ROWS;
use crate::simd::{self, LANES, Simd};

/// Up to sixteen rows whose weights are computed and whose values are not yet accumulated.
struct WeightedRows {
    first: usize,
    last: usize,
    /// Blocks of the pair that the rows see.
    count: usize,
    /// Factors of the rows' sums before each block is added.
    rescale: [[f32; ROWS]; PAIR_BLOCKS],
}

/// One or two blocks, for all rows of a task.
pub(super) struct BlockPair<'a> {
    task: &'a AttentionTask<'a, u16>,
    floats: &'a FloatBlocks<u16>,
    pub(super) blocks: Range<usize>,
    pub(super) loaded: [Bf16Block<'a>; PAIR_BLOCKS],
    /// Whether every row sees all tokens.
    all: bool,
    /// Whether scores need neither mask nor soft cap.
    plain: bool,
    /// Whether values of tokens that a row does not see cannot change its sums: zero times infinity is NaN.
    finite: bool,
}

impl<'a> BlockPair<'a> {
    /// One or two blocks.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new(task: &'a AttentionTask<'a, u16>, blocks: Range<usize>) -> Self {
        let KvSource::Float(floats) = task.source else { unreachable!("matrix units read bf16 blocks") };
        let mut loaded = [Bf16Block::NONE; PAIR_BLOCKS];
        for (loaded, block) in loaded.iter_mut().zip(blocks.clone()) {
            let (keys, values) = floats.head(task.block_head(block), task.params.head_dim);
            *loaded = Bf16Block { keys, values };
        }
        let visible = task.visible_to_all();
        let all = blocks.clone().all(|block| visible.contains(&block));
        let finite = all || loaded.iter().all(|block| block.is_finite());
        BlockPair { task, floats, blocks, loaded, all, plain: all && task.params.softcap.is_none(), finite }
    }

    #[inline(always)]
    pub(super) fn run<S: Simd>(
        &self,
        s: S,
        products: &impl BlockProducts<'a>,
        state: &mut SoftmaxState,
        buffers: &mut MatrixBuffers,
    ) {
        let rows = self.task.num_rows();
        // Rows that see none of the blocks come first.
        let mut first =
            (0..rows).step_by(ROWS).find(|&first| self.num_visible(first, rows) > 0).unwrap_or(rows);
        if first < rows {
            buffers.qk(products, first / ROWS, self.num_visible(first, rows));
        }
        // The unit and the vectors work at the same time, on three consecutive tiles of rows.
        let mut weighted = None;
        self.prefetch_keys(s, rows);
        while first < rows {
            let (next, count) = (first + ROWS, self.num_visible(first, rows));
            if next < rows {
                buffers.qk(products, next / ROWS, self.num_visible(next, rows));
            }
            if let Some(weighted) = weighted.take() {
                self.accumulate_pv(s, products, state, buffers, &weighted);
            }
            weighted = Some(self.weights(s, state, buffers, first..rows.min(next), count));
            first = next;
        }
        self.prefetch_values(s, rows);
        if let Some(weighted) = weighted {
            self.accumulate_pv(s, products, state, buffers, &weighted);
        }
    }

    /// Blocks to prefetch: the next ones, where so few rows read them that memory is the limit.
    fn next_blocks(&self, rows: usize) -> Range<usize> {
        let last = self.task.position(self.task.count - 1) / BLOCK_SIZE;
        let count = if rows <= ROWS { PAIR_BLOCKS } else { 0 };
        self.blocks.end..(self.blocks.end + count).min(last + 1)
    }

    /// Prefetches keys of the next blocks.
    #[inline(always)]
    fn prefetch_keys<S: Simd>(&self, s: S, rows: usize) {
        for block in self.next_blocks(rows) {
            let size = key_block::<u16>(self.task.params.head_dim);
            prefetch(s, &self.floats.keys, self.task.block_head(block), size);
        }
    }

    /// Prefetches values of the next blocks, later than the keys: requests are spread over time.
    #[inline(always)]
    fn prefetch_values<S: Simd>(&self, s: S, rows: usize) {
        for block in self.next_blocks(rows) {
            let size = value_block(self.task.params.head_dim);
            prefetch(s, &self.floats.values, self.task.block_head(block), size);
        }
    }

    /// Adds the weighted values of sixteen rows to their sums.
    #[inline(always)]
    fn accumulate_pv<S: Simd>(
        &self,
        s: S,
        products: &impl BlockProducts<'a>,
        state: &mut SoftmaxState,
        buffers: &mut MatrixBuffers,
        weighted: &WeightedRows,
    ) {
        let WeightedRows { first, last, count, rescale } = weighted;
        let vectors = padded(self.task.params.head_dim) / LANES;
        let acc = &mut state.acc[first * vectors..(first + ROWS) * vectors];
        let turn = first / ROWS;
        rescale_rows(s, acc, &rescale[0]);
        if *count == PAIR_BLOCKS && rescale[1] == [1.0; ROWS] && self.finite {
            buffers.accumulate_pv(products, turn, 0, PAIR_BLOCKS, acc);
            return;
        }
        for block in 0..*count {
            if block > 0 {
                rescale_rows(s, acc, &rescale[block]);
            }
            if self.finite {
                buffers.accumulate_pv(products, turn, block, 1, acc);
            } else {
                self.accumulate_pv_by_row(s, buffers, acc, block, *first..*last);
            }
        }
    }

    /// Number of blocks that any of sixteen rows sees.
    #[inline(always)]
    fn num_visible(&self, first: usize, rows: usize) -> usize {
        let last = rows.min(first + ROWS) - 1;
        let current = self.task.position(last / self.task.group()) / BLOCK_SIZE;
        (current + 1).clamp(self.blocks.start, self.blocks.end) - self.blocks.start
    }

    /// The weights of up to sixteen rows in the first `count` blocks, from their scores.
    #[inline(always)]
    fn weights<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        buffers: &mut MatrixBuffers,
        rows: Range<usize>,
        count: usize,
    ) -> WeightedRows {
        let mut rescale = [[1.0; ROWS]; PAIR_BLOCKS];
        for row in rows.clone() {
            if self.plain && count == PAIR_BLOCKS && self.update_pair(s, state, buffers, row) {
                continue;
            }
            for block in 0..count {
                rescale[block][row % ROWS] = self.update_block(s, state, buffers, row, block);
            }
        }
        WeightedRows { first: rows.start, last: rows.end, count, rescale }
    }

    /// Computes the weights of a row that sees all tokens if its reference stays, which is the usual case. Returns
    /// whether.
    #[inline(always)]
    fn update_pair<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        buffers: &mut MatrixBuffers,
        row: usize,
    ) -> bool {
        let reference = state.reference[row];
        // Loops: intrinsics in a closure for `from_fn` are calls.
        let mut scores = [[s.zero(); HALVES]; PAIR_BLOCKS];
        let mut top = s.splat(reference);
        for block in 0..PAIR_BLOCKS {
            for half in 0..HALVES {
                scores[block][half] = s.load(buffers.scores_of(row, block, half));
                top = s.max(scores[block][half], top);
            }
        }
        if s.any_lt(s.splat(reference + RESCALE_THRESHOLD), top) {
            return false;
        }
        let mut total = s.load(&state.sum[row]);
        for (block, [first, others]) in scores.into_iter().enumerate() {
            let weights = (simd::weight(s, first, reference), simd::weight(s, others, reference));
            total = s.add(s.add(total, weights.0), weights.1);
            s.store_bf16_pairs(weights, buffers.weights_of(row, block));
        }
        s.store(total, &mut state.sum[row]);
        true
    }

    /// Computes the weights of a row in one block. Returns the factor of its earlier sums.
    #[inline(always)]
    fn update_block<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        buffers: &mut MatrixBuffers,
        row: usize,
        block: usize,
    ) -> f32 {
        let visible =
            if self.all { (0, BLOCK_SIZE) } else { self.task.visible(self.blocks.start + block, row) };
        if visible.0 >= visible.1 {
            *buffers.weights_of(row, block) = [0; BLOCK_SIZE];
            return 1.0;
        }
        let mut score = [s.zero(); HALVES];
        for half in 0..HALVES {
            score[half] =
                self.task.mask_and_softcap(s, s.load(buffers.scores_of(row, block, half)), half, visible);
        }
        let mut weights = [0.0; BLOCK_SIZE];
        let rescale = self.task.online_softmax_update(
            s,
            score,
            &mut state.reference[row],
            &mut state.sum[row],
            &mut weights,
        );
        let weights = weights.as_chunks().0;
        s.store_bf16_pairs((s.load(&weights[0]), s.load(&weights[1])), buffers.weights_of(row, block));
        rescale
    }

    /// Accumulates values row by row, without the unit: zero times infinity would reach rows that do not see the token.
    #[inline(always)]
    fn accumulate_pv_by_row<S: Simd>(
        &self,
        s: S,
        buffers: &mut MatrixBuffers,
        acc: &mut [[f32; LANES]],
        block: usize,
        rows: Range<usize>,
    ) {
        let (at, values) = (self.blocks.start + block, self.loaded[block].values);
        for (row, acc) in rows.zip(acc.chunks_exact_mut(acc.len() / ROWS)) {
            let (first, others) = s.load_bf16_pairs(buffers.weights_of(row, block));
            let mut weights = [[0.0; BLOCK_SIZE]];
            let halves = weights[0].as_chunks_mut().0;
            s.store(first, &mut halves[0]);
            s.store(others, &mut halves[1]);
            let visible = self.task.visible(at, row);
            accumulate_pv(self.task.kernels, acc, values, &weights, &[1.0], visible, values.as_ptr().cast());
        }
    }
}

/// Multiplies the sums of sixteen rows; most factors are 1.
#[inline(always)]
fn rescale_rows<S: Simd>(s: S, acc: &mut [[f32; LANES]], factors: &[f32; ROWS]) {
    if *factors == [1.0; ROWS] {
        return;
    }
    let vectors = acc.len() / ROWS;
    for (acc, &factor) in acc.chunks_exact_mut(vectors).zip(factors) {
        if factor != 1.0 {
            for acc in acc {
                s.store(s.mul(s.load(acc), s.splat(factor)), acc);
            }
        }
    }
}
