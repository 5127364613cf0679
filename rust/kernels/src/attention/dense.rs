//! Dense attention of a task: an online softmax over the KV blocks, in order of position.
//!
//! For each block and each group of up to four rows:
//!
//! ```text
//!     qk                      scores  [4][32]  = q . key, soft cap, mask
//!     online_softmax_update   weights [4][32]  = e^(score - reference);  sum = sum * rescale + weights
//!     accumulate_pv           acc [4][head_dim] = acc * rescale + weights times values
//!     normalize_and_store     out = acc / sum, after the last block
//! ```
//!
//! A block is loaded once and stays in the first-level cache while all rows of the task read it.

use std::cell::RefCell;

use super::block_ops::{self, GROUP_ROWS, TOKEN_OFFSETS};
use super::int8_scores::int8_qk;
use super::kv_cache::{BlockView, HALVES, KvElement, PrefetchPtrs, padded};
use super::params::{BLOCK_SIZE, first_visible};
use super::state::SoftmaxState;
use super::task::{AttentionTask, RowGroup};
use crate::simd::{self, LANES, Op, Simd};

/// Blocks between the block that is computed and the block that is prefetched.
const PREFETCH_DISTANCE: usize = 2;
/// A score may exceed the row's reference by this much before the reference changes: weights stay below e^7, and sums
/// of earlier blocks are seldom rescaled (as in FlashAttention-4).
pub(super) const RESCALE_THRESHOLD: f32 = 7.0;

thread_local! {
    /// Kept between tasks to spare allocations.
    static STATE: RefCell<SoftmaxState> = RefCell::default();
}

impl<E: KvElement> Op for AttentionTask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
        let mut state = STATE.take();
        self.attend(s, &mut state);
        self.normalize_and_store(s, &state);
        STATE.set(state);
    }
}

impl<E: KvElement> AttentionTask<'_, E> {
    /// Attends to all visible blocks; leaves sums of weights and of values in `state`.
    #[inline(always)]
    pub(super) fn attend<S: Simd>(&self, s: S, state: &mut SoftmaxState) {
        state.start(self);
        let last_position = self.position(self.count - 1);
        let first_block = first_visible(self.position(0), self.params.window) / BLOCK_SIZE;
        let blocks = last_position / BLOCK_SIZE + 1;
        for block in first_block..blocks {
            self.attend_block(s, state, block, (block + PREFETCH_DISTANCE).min(blocks - 1));
        }
    }

    /// As `attend`, over `blocks` only.
    #[inline(always)]
    pub(super) fn attend_to<S: Simd>(&self, s: S, state: &mut SoftmaxState, blocks: &[usize]) {
        state.start(self);
        for (n, &block) in blocks.iter().enumerate() {
            self.attend_block(s, state, block, blocks[(n + PREFETCH_DISTANCE).min(blocks.len() - 1)]);
        }
    }

    /// One KV block for all rows.
    #[inline(always)]
    fn attend_block<S: Simd>(&self, s: S, state: &mut SoftmaxState, block: usize, next: usize) {
        let rows = self.num_rows();
        let mut at = self.prefetch_ptrs(next);
        self.prefetch_rest(s, next);
        let mut row = 0;
        while row < rows {
            let group = self.row_group(block, row, rows);
            if group.visible.0 < group.visible.1 {
                self.attend_group(s, state, self.block_view(block, group.current), group, at);
            }
            row += group.count;
            // The next rows prefetch the block itself, which is in the first-level cache.
            at = self.prefetch_ptrs(block);
        }
    }

    /// Scores of a row group in a block, with soft cap and mask.
    #[inline(always)]
    pub(super) fn qk<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        view: BlockView<'_, E>,
        group: RowGroup,
        at: PrefetchPtrs,
    ) {
        let head_dim = self.params.head_dim;
        let vectors = padded(head_dim) / LANES;
        let rows = group.rows();
        let q = &state.q[rows.start * vectors..rows.end * vectors];
        match view {
            BlockView::Float { keys, .. } => {
                let to = &mut state.scores[..group.count];
                block_ops::qk(self.kernels, group.count, q, keys, head_dim, at.keys, to);
            }
            BlockView::Int8(head) => {
                let (rounded, peaks) = (&mut state.rounded, &mut state.peaks[rows]);
                int8_qk(self.kernels, group.count, q, head, rounded, at, peaks, &mut state.scores);
            }
        }
        if self.params.softcap.is_some() || group.visible != (0, BLOCK_SIZE) {
            self.mask_and_softcap_rows(s, &mut state.scores[..group.count], group.visible);
        }
    }

    /// Soft cap and mask of the scores of some rows.
    #[inline(always)]
    fn mask_and_softcap_rows<S: Simd>(
        &self,
        s: S,
        scores: &mut [[f32; BLOCK_SIZE]],
        visible: (usize, usize),
    ) {
        for scores in scores {
            for (half, part) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                s.store(self.mask_and_softcap(s, s.load(part), half, visible), part);
            }
        }
    }

    /// Weighted values of some rows: acc = acc * rescale + weights times the values of a block.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn accumulate_pv<S: Simd>(
        &self,
        s: S,
        acc: &mut [[f32; LANES]],
        view: BlockView<'_, E>,
        weights: &mut [[f32; BLOCK_SIZE]],
        rescale: &[f32],
        visible: (usize, usize),
        at: *const u8,
    ) {
        match view {
            BlockView::Float { values, .. } => {
                block_ops::accumulate_pv(self.kernels, acc, values, weights, rescale, visible, at)
            }
            BlockView::Int8(head) => {
                for weights in weights.iter_mut() {
                    head.scale_weights(s, weights);
                }
                block_ops::accumulate_pv(self.kernels, acc, head.values, weights, rescale, visible, at);
            }
        }
    }

    /// One block for a row group.
    #[inline(always)]
    fn attend_group<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        view: BlockView<'_, E>,
        group: RowGroup,
        at: PrefetchPtrs,
    ) {
        let row = group.first;
        self.qk(s, state, view, group, at);
        let (mut weights, mut rescale) = ([[0.0; BLOCK_SIZE]; GROUP_ROWS], [1.0; GROUP_ROWS]);
        for r in 0..group.count {
            let score = state.scores[r].as_chunks::<LANES>().0;
            let score = [s.load(&score[0]), s.load(&score[1])];
            let (reference, sum) = (&mut state.reference[row + r], &mut state.sum[row + r]);
            rescale[r] = self.online_softmax_update(s, score, reference, sum, &mut weights[r]);
        }
        let vectors = padded(self.params.head_dim) / LANES;
        let acc = &mut state.acc[row * vectors..(row + group.count) * vectors];
        let (weights, rescale) = (&mut weights[..group.count], &rescale[..group.count]);
        self.accumulate_pv(s, acc, view, weights, rescale, group.visible, at.values);
    }

    /// Turns one row's scores in a block into weights, and updates its reference and its sum of weights. Returns the
    /// factor of sums over earlier blocks.
    #[inline(always)]
    pub(super) fn online_softmax_update<S: Simd>(
        &self,
        s: S,
        score: [S::F; HALVES],
        reference: &mut f32,
        sum: &mut [f32; LANES],
        weights: &mut [f32; BLOCK_SIZE],
    ) -> f32 {
        let before = *reference;
        let mut rescale = 1.0;
        // In most blocks the reference stays.
        let mut top = s.max(score[0], s.splat(before));
        top = s.max(score[1], top);
        if s.any_lt(s.splat(before + RESCALE_THRESHOLD), top) {
            *reference = s.reduce_max(top);
            // A first block rescales sums of zero by e^-inf = 0.
            rescale = s.reduce_max(simd::exp(s, s.splat(before - *reference)));
        }
        let mut total = s.mul(s.load(sum), s.splat(rescale));
        for (weight, score) in weights.as_chunks_mut::<LANES>().0.iter_mut().zip(score) {
            let value = if self.rounds() {
                simd::weight(s, score, *reference)
            } else {
                simd::exp(s, s.sub(score, s.splat(*reference)))
            };
            total = s.add(total, value);
            s.store(value, weight);
        }
        s.store(total, sum);
        rescale
    }

    /// Soft cap and mask of sixteen scores: half `half` of a block.
    #[inline(always)]
    pub(super) fn mask_and_softcap<S: Simd>(
        &self,
        s: S,
        score: S::F,
        half: usize,
        visible: (usize, usize),
    ) -> S::F {
        let score = match self.params.softcap {
            Some(cap) => s.mul(s.splat(cap), simd::tanh(s, s.div(score, s.splat(cap)))),
            None => score,
        };
        if visible == (0, BLOCK_SIZE) {
            return score;
        }
        let offsets = s.load_partial(&TOKEN_OFFSETS[half * LANES..(half + 1) * LANES], 0.0);
        let never = s.splat(f32::NEG_INFINITY);
        let score = s.select_lt(offsets, s.splat(visible.0 as f32), never, score);
        s.select_lt(offsets, s.splat(visible.1 as f32), score, never)
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    pub(super) fn normalize_and_store<S: Simd>(&self, s: S, state: &SoftmaxState) {
        let (head_dim, group) = (self.params.head_dim, self.group());
        let vectors = padded(head_dim) / LANES;
        for row in 0..self.count * group {
            let token = self.seq.query_start + self.first + row / group;
            let start = (token * self.params.heads + self.kv_head * group + row % group) * head_dim;
            // SAFETY: rows of sequences do not overlap, and a position and head is in one task.
            let out = unsafe { self.out.part(start..start + head_dim) };
            let inverse = s.splat(1.0 / s.reduce_add(s.load(&state.sum[row])));
            for (out, acc) in out.chunks_mut(LANES).zip(&state.acc[row * vectors..]) {
                // + 0 makes -0 into 0: the sign of a zero sum may depend on masked tokens.
                s.store_partial(s.add(s.mul(s.load(acc), inverse), s.zero()), out);
            }
        }
    }
}
