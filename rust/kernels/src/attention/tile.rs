//! One task of attention: some query positions of one sequence, for all query heads of one KV head.
//!
//! Rows are (position, query head), position first. A KV block is loaded once for all rows and stays in the first
//! cache while they pass, up to four at a time.

use std::cell::RefCell;

use super::int8::plane;
use super::kv::{key_block, padded, value_block};
use super::rows::{Element, HALVES, fetch, scores, weigh};
use super::source::{Ahead, Held, Source};
use super::{AttentionParams, AttentionReport, BLOCK_SIZE, SeqView, first_visible};
use crate::parallel::Shared;
use crate::simd::{self, LANES, Op, Simd};

/// Blocks that are fetched ahead.
pub(super) const AHEAD: usize = 2;
/// Rows that are computed together at most.
pub(super) const ROWS: usize = 4;
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

pub(super) struct Tile<'a, E> {
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
    /// Whether they read it from its tail.
    pub(super) own: bool,
}

/// The running state of a task's rows.
#[derive(Default)]
pub(super) struct State {
    /// Scaled queries, `[rows][padded head_dim]`.
    pub(super) q: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[rows][padded head_dim]`.
    pub(super) acc: Vec<[f32; LANES]>,
    /// The largest score of each row.
    largest: Vec<f32>,
    /// Sums of weights, 16 chains a row.
    pub(super) sum: Vec<[f32; LANES]>,
    /// Codes of a block's keys, `[padded head_dim][32]`.
    pub(super) codes: Vec<u8>,
    /// Queries times the steps of a block's keys, `[ROWS][padded head_dim]`.
    folded: Vec<[f32; LANES]>,
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
        self.start(&mut state);
        let last_position = self.position(self.count - 1);
        let first_block = first_visible(self.position(0), self.params.window) / BLOCK_SIZE;
        let blocks = last_position / BLOCK_SIZE + 1;
        for block in first_block..blocks {
            self.block(s, &mut state, block, (block + AHEAD).min(blocks - 1));
        }
        self.finish(s, &state);
        STATE.set(state);
    }
}

impl<E: Element> Tile<'_, E> {
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
            report.count(self.group(), blocks, blocks, self.params.head_dim);
        }
        report.dense_calls = report.calls;
        report
    }

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
        }
        state.acc.clear();
        state.acc.resize(rows * vectors, [0.0; LANES]);
        if let Source::Int8 { .. } = self.source {
            state.codes.resize(2 * plane(head_dim), 0);
            state.folded.resize(ROWS * vectors, [0.0; LANES]);
        }
        state.largest.clear();
        state.largest.resize(rows, f32::NEG_INFINITY);
        state.sum.clear();
        state.sum.resize(rows, [0.0; LANES]);
    }

    /// The places in block `block` that row `row` sees; empty when there are none.
    #[inline(always)]
    fn visible(&self, block: usize, row: usize) -> (usize, usize) {
        let position = self.position(row / self.group());
        let start = block * BLOCK_SIZE;
        let low = first_visible(position, self.params.window).saturating_sub(start);
        (low, (position + 1).saturating_sub(start).min(BLOCK_SIZE))
    }

    /// Where the keys and values of a block begin that will be read soon. Blocks lie anywhere, so the machine cannot guess.
    #[inline(always)]
    pub(super) fn ahead(&self, block: usize) -> Ahead {
        let place = self.seq.block_table[block] as usize * self.params.kv_heads + self.kv_head;
        let head_dim = self.params.head_dim;
        let (keys, values) = (key_block(head_dim), value_block(head_dim));
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

    /// Asks for the parts of an int8 block that are not fetched while another is computed.
    #[inline(always)]
    pub(super) fn fetch_rest<S: Simd>(&self, s: S, block: usize) {
        if let Source::Int8 { blocks, .. } = self.source {
            let place = self.seq.block_table[block] as usize * self.params.kv_heads + self.kv_head;
            let head_dim = self.params.head_dim;
            fetch(s, &blocks.key_lo, place, padded(head_dim));
            fetch(s, &blocks.key_step, place, padded(head_dim));
            fetch(s, &blocks.value_scale, place, BLOCK_SIZE);
        }
    }

    /// Whether row `row` reads `block` from its tail.
    #[inline(always)]
    fn own(&self, block: usize, row: usize) -> bool {
        matches!(self.source, Source::Int8 { .. }) && self.position(row / self.group()) / BLOCK_SIZE == block
    }

    /// Block `block` in the form that rows read for which it is, or is not, their own.
    #[inline(always)]
    pub(super) fn held(&self, block: usize, own: bool) -> Held<'_, E> {
        let (head_dim, kv_heads) = (self.params.head_dim, self.params.kv_heads);
        let place = self.seq.block_table[block] as usize * kv_heads + self.kv_head;
        match self.source {
            Source::Float(pair) => Held::float(pair, place, head_dim),
            Source::Int8 { tails, .. } if own => {
                let tail = self.seq.tails[block - self.seq.first_new_block()];
                Held::float(&tails[tail as usize], self.kv_head, head_dim)
            }
            Source::Int8 { blocks, .. } => Held::Int8(blocks.head(place, head_dim)),
        }
    }

    /// The run of rows from `row` on, at most four before `end`, that see the same places of a block in the same form.
    #[inline(always)]
    pub(super) fn run_of_rows(&self, block: usize, row: usize, end: usize) -> Run {
        let (seen, own) = (self.visible(block, row), self.own(block, row));
        let mut count = 1;
        while count < ROWS
            && row + count < end
            && (self.visible(block, row + count), self.own(block, row + count)) == (seen, own)
        {
            count += 1;
        }
        Run { row, count, seen, own }
    }

    /// One KV block for all rows.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, state: &mut State, block: usize, next: usize) {
        let rows = self.count * self.group();
        let mut ahead = self.ahead(next);
        self.fetch_rest(s, next);
        let mut unpacked = false;
        let mut row = 0;
        while row < rows {
            let run = self.run_of_rows(block, row, rows);
            if run.seen.0 < run.seen.1 {
                let held = self.held(block, run.own);
                unpacked = unpacked || held.unpack(&mut state.codes);
                match run.count {
                    4.. => self.rows::<S, 4>(s, state, held, run, ahead),
                    3 => self.rows::<S, 3>(s, state, held, run, ahead),
                    2 => self.rows::<S, 2>(s, state, held, run, ahead),
                    _ => self.rows::<S, 1>(s, state, held, run, ahead),
                }
            }
            row += run.count;
            // Once is enough: for the next rows these lines are near.
            ahead = self.ahead(block);
        }
    }

    /// The scores of R rows in a block, with soft cap and mask.
    #[inline(always)]
    pub(super) fn scores<S: Simd, const R: usize>(
        &self,
        s: S,
        state: &mut State,
        held: Held<'_, E>,
        run: Run,
        ahead: Ahead,
    ) -> [[S::F; HALVES]; R] {
        let head_dim = self.params.head_dim;
        let vectors = padded(head_dim) / LANES;
        let q = &state.q[run.row * vectors..(run.row + R) * vectors];
        let mut scores = match held {
            Held::Float { keys, .. } => scores::<S, E, R>(s, q, &[0.0; R], keys, head_dim, ahead.keys),
            Held::Int8(head) => {
                let folded = &mut state.folded[..R * vectors];
                let mut base = [0.0; R];
                for r in 0..R {
                    let part = r * vectors..(r + 1) * vectors;
                    base[r] = head.fold_query(s, &q[part.clone()], &mut folded[part]);
                }
                scores::<S, u8, R>(s, folded, &base, state.codes.as_chunks().0, head_dim, ahead.keys)
            }
        };
        for r in 0..R {
            for half in 0..HALVES {
                scores[r][half] = self.bounded(s, scores[r][half], half, run.seen);
            }
        }
        scores
    }

    /// Sums of values of R rows: acc = acc * rescale + weights times the values of a block.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn weigh<S: Simd, const R: usize>(
        &self,
        s: S,
        acc: &mut [[f32; LANES]],
        held: Held<'_, E>,
        weights: &mut [[f32; BLOCK_SIZE]; R],
        rescale: &[f32; R],
        seen: (usize, usize),
        ahead: *const u8,
    ) {
        match held {
            Held::Float { values, .. } => weigh::<S, E, R>(s, acc, values, weights, rescale, seen, ahead),
            Held::Int8(head) => {
                for weights in weights.iter_mut() {
                    head.scale_weights(s, weights);
                }
                weigh::<S, i8, R>(s, acc, head.values, weights, rescale, seen, ahead);
            }
        }
    }

    /// R rows and a block: an online softmax.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(
        &self,
        s: S,
        state: &mut State,
        held: Held<'_, E>,
        run: Run,
        ahead: Ahead,
    ) {
        let row = run.row;
        let scores = self.scores::<S, R>(s, state, held, run, ahead);
        let mut weights = [[0.0; BLOCK_SIZE]; R];
        let mut rescale = [1.0; R];
        for r in 0..R {
            let score = scores[r];
            let before = state.largest[row + r];
            let mut top = s.splat(before);
            for half in 0..HALVES {
                top = s.max(score[half], top);
            }
            let largest = s.reduce_max(top);
            if largest != before {
                state.largest[row + r] = largest;
                // A first block rescales sums of zero by e^-inf = 0.
                rescale[r] = s.reduce_max(simd::exp(s, s.splat(before - largest)));
            }
            let mut sum = s.mul(s.load(&state.sum[row + r]), s.splat(rescale[r]));
            for half in 0..HALVES {
                let weight = simd::exp(s, s.sub(score[half], s.splat(largest)));
                sum = s.add(sum, weight);
                s.store_partial(weight, &mut weights[r][half * LANES..(half + 1) * LANES]);
            }
            s.store(sum, &mut state.sum[row + r]);
        }
        let vectors = padded(self.params.head_dim) / LANES;
        let acc = &mut state.acc[row * vectors..(row + R) * vectors];
        self.weigh::<S, R>(s, acc, held, &mut weights, &rescale, run.seen, ahead.values);
    }

    /// The soft cap and the mask.
    #[inline(always)]
    fn bounded<S: Simd>(&self, s: S, score: S::F, half: usize, seen: (usize, usize)) -> S::F {
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
