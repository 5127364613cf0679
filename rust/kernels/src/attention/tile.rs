//! One task of attention: some query positions of one sequence, for all query heads of one KV head.
//!
//! Rows are (position, query head), position first. A KV block is loaded once for all rows and stays in the first
//! cache while they pass, up to four at a time.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::int8::plane;
use super::key_codes::{BLOCKS, Look, Rounded, Seen, code_scores};
use super::kv::{key_block, padded, value_block};
use super::rows::{Element, HALVES, fetch, scores, weigh};
use super::source::{Ahead, Held, Source};
use super::{AttentionParams, AttentionReport, BLOCK_SIZE, SeqView, first_visible};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{self, LANES, Op, Simd};

/// Blocks that are fetched ahead where they are computed one by one.
pub(super) const AHEAD: usize = 2;
/// Rows that are computed together at most.
pub(super) const ROWS: usize = 4;
/// A score may exceed the row's reference by this before it becomes the reference: weights stay below e^7, and sums of earlier blocks
/// are seldom multiplied anew (as in FlashAttention-4).
pub(super) const HEADROOM: f32 = 7.0;
/// Places of tokens in a block, as numbers to compare with.
pub(super) const PLACES: [f32; BLOCK_SIZE] = {
    let mut places = [0.0; BLOCK_SIZE];
    let mut place = 0;
    while place < BLOCK_SIZE {
        places[place] = place as f32;
        place += 1;
    }
    places
};

#[derive(Clone, Copy)]
pub(super) struct Tile<'a, E> {
    pub(super) kernels: &'a Kernels,
    pub(super) source: Source<'a, E>,
    pub(super) q: &'a [f32],
    pub(super) q_stride: usize,
    pub(super) seq: &'a SeqView<'a>,
    pub(super) params: &'a AttentionParams,
    pub(super) kv_head: usize,
    /// The first query and the number of them, within the sequence.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) out: &'a Shared<'a, f32>,
}

/// Rows that are computed together.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) row: usize,
    pub(super) count: usize,
    /// The places of the block that they see.
    pub(super) seen: (usize, usize),
    /// Whether they read it from its open block.
    pub(super) own: bool,
}

/// The running state of a task's rows.
#[derive(Default)]
pub(super) struct State {
    /// Scaled queries, `[rows][padded head_dim]`.
    pub(super) q: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[rows][padded head_dim]`.
    pub(super) acc: Vec<[f32; LANES]>,
    /// The score of each row to which weights are relative: a largest one, or one at most [`HEADROOM`] below it.
    pub(super) reference: Vec<f32>,
    /// Sums of weights, 16 chains a row.
    pub(super) sum: Vec<[f32; LANES]>,
    /// Scores of the rows at hand in the block at hand.
    pub(super) scores: [[f32; BLOCK_SIZE]; ROWS],
    /// The largest magnitude of each row's query times a step of keys, over the int8 blocks that it saw.
    pub(super) peaks: Vec<f32>,
    /// Largest magnitudes of each row's query, for looks.
    pub(super) q_peaks: Vec<[f32; LANES]>,
    rounded: Rounded,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static STATE: RefCell<State> = RefCell::default();
}

impl<E: Element> Op for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
        let mut state = STATE.take();
        self.attend(s, &mut state);
        self.finish(s, &state);
        STATE.set(state);
    }
}

impl<E: Element> Tile<'_, E> {
    /// Reads all that the queries see; sums of weights and of values are left in `state`.
    #[inline(always)]
    pub(super) fn attend<S: Simd>(&self, s: S, state: &mut State) {
        self.start(state);
        let last_position = self.position(self.count - 1);
        let first_block = first_visible(self.position(0), self.params.window) / BLOCK_SIZE;
        let blocks = last_position / BLOCK_SIZE + 1;
        for block in first_block..blocks {
            self.block(s, state, block, (block + AHEAD).min(blocks - 1));
        }
    }

    /// As `attend`, of `blocks` alone.
    #[inline(always)]
    pub(super) fn attend_to<S: Simd>(&self, s: S, state: &mut State, blocks: &[usize]) {
        self.start(state);
        for (n, &block) in blocks.iter().enumerate() {
            self.block(s, state, block, blocks[(n + AHEAD).min(blocks.len() - 1)]);
        }
    }

    /// Query heads of a KV head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.params.heads / self.params.kv_heads
    }

    /// The position of query `index` of this task.
    #[inline(always)]
    pub(super) fn position(&self, index: usize) -> usize {
        self.seq.context_len - self.seq.query_len + self.first + index
    }

    /// What the task's queries read when they read everything.
    pub(super) fn dense_report(&self) -> AttentionReport {
        let mut report = AttentionReport::default();
        for index in 0..self.count {
            let position = self.position(index);
            let blocks = position / BLOCK_SIZE - first_visible(position, self.params.window) / BLOCK_SIZE;
            report.count(self.group(), blocks, blocks, self.params.head_dim, true);
        }
        report.dense_calls = report.calls;
        report
    }

    #[inline(always)]
    pub(super) fn start(&self, state: &mut State) {
        let (head_dim, group) = (self.params.head_dim, self.group());
        let rows = self.count * group;
        let vectors = padded(head_dim) / LANES;
        state.q.clear();
        state.q.resize(rows * vectors, [0.0; LANES]);
        for (row, scaled) in state.q.chunks_exact_mut(vectors).enumerate() {
            let token = self.seq.query_start + self.first + row / group;
            let head = self.kv_head * group + row % group;
            let q = &self.q[token * self.q_stride + head * head_dim..][..head_dim];
            scaled.as_flattened_mut().iter_mut().zip(q).for_each(|(to, x)| *to = x * self.params.scale);
            if self.rounds() {
                scaled.as_flattened_mut().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
        }
        state.acc.clear();
        state.acc.resize(rows * vectors, [0.0; LANES]);
        if let Source::Int8 { .. } = self.source {
            state.rounded.resize(vectors);
        }
        state.peaks.clear();
        state.peaks.resize(rows, 0.0);
        state.reference.clear();
        state.reference.resize(rows, f32::NEG_INFINITY);
        state.sum.clear();
        state.sum.resize(rows, [0.0; LANES]);
    }

    /// The places in block `block` that row `row` sees; empty when there are none.
    #[inline(always)]
    pub(super) fn visible(&self, block: usize, row: usize) -> (usize, usize) {
        let position = self.position(row / self.group());
        let start = block * BLOCK_SIZE;
        let low = first_visible(position, self.params.window).saturating_sub(start);
        (low, (position + 1).saturating_sub(start).min(BLOCK_SIZE))
    }

    /// Where a block lies for this KV head.
    #[inline(always)]
    pub(super) fn place(&self, block: usize) -> usize {
        self.seq.place(block, self.params, self.kv_head)
    }

    /// Where the keys and values of a block begin that will be read soon. Blocks lie anywhere, so the machine cannot guess.
    #[inline(always)]
    pub(super) fn ahead(&self, block: usize) -> Ahead {
        let place = self.place(block);
        let head_dim = self.params.head_dim;
        let (keys, values) = (key_block::<E>(head_dim), value_block(head_dim));
        match self.source {
            Source::Float(pair) => Ahead {
                keys: pair.keys.as_ptr().wrapping_add(place * keys).cast(),
                values: pair.values.as_ptr().wrapping_add(place * values).cast(),
            },
            Source::Int8 { blocks, .. } => Ahead {
                keys: blocks.planes.as_ptr().wrapping_add(2 * place * plane(head_dim)),
                values: blocks.values.as_ptr().wrapping_add(place * values).cast(),
            },
        }
    }

    /// The same of blocks from `block` on, none of them behind `last`.
    #[inline(always)]
    pub(super) fn ahead_together(&self, block: usize, last: usize) -> [Ahead; BLOCKS] {
        [
            self.ahead(block.min(last)),
            self.ahead((block + 1).min(last)),
            self.ahead((block + 2).min(last)),
            self.ahead((block + 3).min(last)),
        ]
    }

    /// Asks for the parts of an int8 block that are not fetched while another is computed.
    #[inline(always)]
    fn fetch_rest<S: Simd>(&self, s: S, block: usize) {
        self.fetch_steps(s, block);
        if let Source::Int8 { blocks, .. } = self.source {
            fetch(s, &blocks.value_scale, self.place(block), BLOCK_SIZE);
        }
    }

    /// Those of them that belong to its keys.
    #[inline(always)]
    pub(super) fn fetch_steps<S: Simd>(&self, s: S, block: usize) {
        if let Source::Int8 { blocks, .. } = self.source {
            let (place, padded) = (self.place(block), padded(self.params.head_dim));
            fetch(s, &blocks.key_lo, place, padded);
            fetch(s, &blocks.key_step, place, padded);
        }
    }

    /// Whether row `row` reads `block` from its open block.
    #[inline(always)]
    fn own(&self, block: usize, row: usize) -> bool {
        matches!(self.source, Source::Int8 { .. }) && self.position(row / self.group()) / BLOCK_SIZE == block
    }

    /// Block `block` in the form that rows read for which it is, or is not, their own.
    #[inline(always)]
    pub(super) fn held(&self, block: usize, own: bool) -> Held<'_, E> {
        let (head_dim, place) = (self.params.head_dim, self.place(block));
        match self.source {
            Source::Float(pair) => Held::float(pair, place, head_dim),
            Source::Int8 { open_blocks, .. } if own => {
                let open = self.seq.open_blocks[block - self.seq.first_new_block()];
                Held::float(&open_blocks[open as usize], self.kv_head, head_dim)
            }
            Source::Int8 { blocks, .. } => Held::Int8(blocks.head(place, head_dim)),
        }
    }

    /// The run of rows from `row` on, at most four before `end`, that see the same places of a block in the same form.
    #[inline(always)]
    pub(super) fn run_of_rows(&self, block: usize, row: usize, end: usize) -> Run {
        let most = ROWS.min(end - row);
        if self.seen_by_all_rows().contains(&block) {
            return Run { row, count: most, seen: (0, BLOCK_SIZE), own: false };
        }
        let (seen, own) = (self.visible(block, row), self.own(block, row));
        let same = |row| (self.visible(block, row), self.own(block, row)) == (seen, own);
        let count = (1..most).find(|&next| !same(row + next)).unwrap_or(most);
        Run { row, count, seen, own }
    }

    /// The int8 blocks that all rows see the whole of.
    #[inline(always)]
    pub(super) fn seen_by_all_rows(&self) -> Range<usize> {
        let first = first_visible(self.position(self.count - 1), self.params.window).div_ceil(BLOCK_SIZE);
        let own = self.position(0) / BLOCK_SIZE;
        first.min(own)..own
    }

    /// What a look at `count` int8 blocks from `block` on tells of a run that sees the whole of them.
    #[inline(always)]
    pub(super) fn look(
        &self,
        state: &mut State,
        (block, count): (usize, usize),
        run: Run,
        ahead: &[Ahead; BLOCKS],
        references: &[f32],
        keys: bool,
    ) -> Seen {
        let mut to = Seen::default();
        let Source::Int8 { blocks, .. } = self.source else { return to };
        let (head_dim, rows) = (self.params.head_dim, run.row..run.row + run.count);
        let vectors = padded(head_dim) / LANES;
        let place = |n: usize| self.place(block + n.min(count - 1));
        // Written once, where they stay: copies of them would cost as much as a part of a look.
        let heads: [_; BLOCKS] = [
            blocks.head(place(0), head_dim),
            blocks.head(place(1), head_dim),
            blocks.head(place(2), head_dim),
            blocks.head(place(3), head_dim),
        ];
        let look = Look {
            rows: run.count,
            q: &state.q[rows.start * vectors..rows.end * vectors],
            q_peaks: &state.q_peaks[rows.clone()],
            heads: &heads[..count],
            rounded: &mut state.rounded,
            ahead: &ahead[..count],
            peaks: &mut state.peaks[rows.clone()],
            references: &references[rows],
            softcap: self.params.softcap,
            keys,
            to: &mut to,
        };
        look.run(self.kernels);
        to
    }

    /// One KV block for all rows.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, state: &mut State, block: usize, next: usize) {
        let rows = self.count * self.group();
        let mut ahead = self.ahead(next);
        self.fetch_rest(s, next);
        let mut row = 0;
        while row < rows {
            let run = self.run_of_rows(block, row, rows);
            if run.seen.0 < run.seen.1 {
                self.rows(s, state, self.held(block, run.own), run, ahead);
            }
            row += run.count;
            // Once is enough: for the next rows these lines are near.
            ahead = self.ahead(block);
        }
    }

    /// The scores of a run in a block, with soft cap and mask.
    #[inline(always)]
    pub(super) fn scores<S: Simd>(&self, s: S, state: &mut State, held: Held<'_, E>, run: Run, ahead: Ahead) {
        let head_dim = self.params.head_dim;
        let vectors = padded(head_dim) / LANES;
        let rows = run.row..run.row + run.count;
        let q = &state.q[rows.start * vectors..rows.end * vectors];
        match held {
            Held::Float { keys, .. } => {
                let to = &mut state.scores[..run.count];
                scores(self.kernels, run.count, q, keys, head_dim, ahead.keys, to);
            }
            Held::Int8(head) => {
                let (rounded, peaks) = (&mut state.rounded, &mut state.peaks[rows]);
                code_scores(self.kernels, run.count, q, head, rounded, ahead, peaks, &mut state.scores);
            }
        }
        if self.params.softcap.is_some() || run.seen != (0, BLOCK_SIZE) {
            self.bound(s, &mut state.scores[..run.count], run.seen);
        }
    }

    /// Soft cap and mask of some rows' scores in a block.
    #[inline(always)]
    fn bound<S: Simd>(&self, s: S, scores: &mut [[f32; BLOCK_SIZE]], seen: (usize, usize)) {
        for scores in scores {
            for (half, part) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                s.store(self.bounded(s, s.load(part), half, seen), part);
            }
        }
    }

    /// Sums of values of some rows: acc = acc * rescale + weights times the values of a block.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn weigh<S: Simd>(
        &self,
        s: S,
        acc: &mut [[f32; LANES]],
        held: Held<'_, E>,
        weights: &mut [[f32; BLOCK_SIZE]],
        rescale: &[f32],
        seen: (usize, usize),
        ahead: *const u8,
    ) {
        match held {
            Held::Float { values, .. } => weigh(self.kernels, acc, values, weights, rescale, seen, ahead),
            Held::Int8(head) => {
                for weights in weights.iter_mut() {
                    head.scale_weights(s, weights);
                }
                weigh(self.kernels, acc, head.values, weights, rescale, seen, ahead);
            }
        }
    }

    /// A run and a block: an online softmax.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, state: &mut State, held: Held<'_, E>, run: Run, ahead: Ahead) {
        let row = run.row;
        self.scores(s, state, held, run, ahead);
        let (mut weights, mut rescale) = ([[0.0; BLOCK_SIZE]; ROWS], [1.0; ROWS]);
        for r in 0..run.count {
            let score = state.scores[r].as_chunks::<LANES>().0;
            let score = [s.load(&score[0]), s.load(&score[1])];
            let (reference, sum) = (&mut state.reference[row + r], &mut state.sum[row + r]);
            rescale[r] = self.soften(s, score, reference, sum, &mut weights[r]);
        }
        let vectors = padded(self.params.head_dim) / LANES;
        let acc = &mut state.acc[row * vectors..(row + run.count) * vectors];
        let (weights, rescale) = (&mut weights[..run.count], &rescale[..run.count]);
        self.weigh(s, acc, held, weights, rescale, run.seen, ahead.values);
    }

    /// One row's scores in a block to weights; the reference and the sum of weights go on. Gives the factor that sums of
    /// earlier blocks are to be multiplied with.
    #[inline(always)]
    pub(super) fn soften<S: Simd>(
        &self,
        s: S,
        score: [S::F; HALVES],
        reference: &mut f32,
        sum: &mut [f32; LANES],
        weights: &mut [f32; BLOCK_SIZE],
    ) -> f32 {
        let before = *reference;
        let mut rescale = 1.0;
        // In most blocks it stays.
        let mut top = s.max(score[0], s.splat(before));
        top = s.max(score[1], top);
        if s.any_lt(s.splat(before + HEADROOM), top) {
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

    /// Whether queries and weights are rounded to bf16, as the keys and values are that they meet.
    #[inline(always)]
    pub(super) fn rounds(&self) -> bool {
        E::PAIRED && matches!(self.source, Source::Float(_))
    }

    /// The soft cap and the mask.
    #[inline(always)]
    pub(super) fn bounded<S: Simd>(&self, s: S, score: S::F, half: usize, seen: (usize, usize)) -> S::F {
        let score = match self.params.softcap {
            Some(cap) => s.mul(s.splat(cap), simd::tanh(s, s.div(score, s.splat(cap)))),
            None => score,
        };
        if seen == (0, BLOCK_SIZE) {
            return score;
        }
        let places = s.load_partial(&PLACES[half * LANES..(half + 1) * LANES], 0.0);
        let never = s.splat(f32::NEG_INFINITY);
        let score = s.select_lt(places, s.splat(seen.0 as f32), never, score);
        s.select_lt(places, s.splat(seen.1 as f32), score, never)
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&self, s: S, state: &State) {
        let (head_dim, group) = (self.params.head_dim, self.group());
        let vectors = padded(head_dim) / LANES;
        for row in 0..self.count * group {
            let token = self.seq.query_start + self.first + row / group;
            let start = (token * self.params.heads + self.kv_head * group + row % group) * head_dim;
            // SAFETY: rows of sequences do not overlap, and a position and head is in one task.
            let out = unsafe { self.out.part(start..start + head_dim) };
            let inverse = s.splat(1.0 / s.reduce_add(s.load(&state.sum[row])));
            for (out, acc) in out.chunks_mut(LANES).zip(&state.acc[row * vectors..]) {
                // + 0 makes -0 into 0: the sign of a zero sum may hang on masked tokens.
                s.store_partial(s.add(s.mul(s.load(acc), inverse), s.zero()), out);
            }
        }
    }
}
