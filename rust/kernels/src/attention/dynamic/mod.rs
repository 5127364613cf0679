//! Dynamic attention: keys are looked at, blocks are read where they matter, and what was left out is bounded.
//!
//! For each query and KV head, first a look at the keys ([`key_codes`](super::key_codes)) gives each block's share of the softmax
//! mass, within known limits. Then the lightest blocks are left out, as many as stay within the caller's bound for every query head of
//! the group, and the others are read as dense attention reads them. With R the blocks that are read, S those left
//! out, and Z the sums of e^score over either,
//!
//! - the *omitted mass* mu = Z_S / (Z_R + Z_S) is the total variation distance between the exact weights and those used. Z_R is known
//!   once R is read, and Z_S is at most the sum of what the look allows each block;
//! - the output is the softmax over R, and the exact output differs from it by
//!   `mu * |mean of omitted values - output| <= mu * (largest |value| in S + |output|)`, a convex combination being
//!   no longer than its longest part.
//!
//! Both are relative to dense attention over the cache as it is stored. The omitted mass
//! includes the rounding of scores, exponentials and sums here, so it holds in exact arithmetic; the error of the output
//! is that of leaving out, float rounding aside. What a query reads
//! depends on its position and its sequence alone, as everything in attention does.

mod found;

use std::cell::RefCell;
use std::ops::Range;

use super::audit::{Answer, Claim, compare};
use super::key_codes::{BLOCKS, peaks_of, score_error};
use super::kv::padded;
use super::report::{AttentionReport, DynamicParams, Mode};
use super::rows::{Element, HALVES};
use super::source::{Held, Source};
use super::tile::{PLACES, ROWS, Run, State, Tile};
use super::{BLOCK_SIZE, first_visible};
use crate::simd::{LANES, Op, Simd};
use found::Found;

/// Relative error of exponentials and of sums of some hundred thousand of them in the order below, and more.
const SUM_SLACK: f32 = 1e-3;
/// Half a unit in the last place of 1: the relative error of one rounding.
const ROUNDING: f32 = 6e-8;
/// Largest error of [`tanh`](crate::simd::tanh).
const TANH_ERROR: f32 = 4e-7;
/// Looks at most: once, and again where scores are so far above those of the query's own block that a look cannot hold them.
const LOOKS: usize = 16;
/// Share of the blocks above which a query reads all: what little it would spare is not worth leaving anything out.
const DENSE_ABOVE: f32 = 0.9;

/// What estimates are held below the caller's bound by: blocks are chosen because their estimates are low, so the truth lies above the
/// sum of them, by nearly 1.4 times on the heads of the embedded model (benches/dynamic_attention.py).
const ESTIMATE_MARGIN: f32 = 1.5;

/// A tile whose queries choose what they read.
pub(super) struct Dynamic<'a, E> {
    pub(super) tile: Tile<'a, E>,
    pub(super) params: DynamicParams,
}

/// Memory of a task.
#[derive(Default)]
struct Memory {
    /// Of the look, for all rows.
    look: State,
    found: Found,
    /// Of the query at hand, for what it reads, and for an audit.
    own: State,
    whole: State,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static MEMORY: RefCell<Memory> = RefCell::default();
}

impl<E: Element> Op for Dynamic<'_, E> {
    type Output = AttentionReport;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> AttentionReport {
        let Memory { mut look, mut found, mut own, mut whole } = MEMORY.take();
        let mut report = AttentionReport::default();
        self.tile.start(&mut look);
        self.begin(s, &mut look, &mut found);
        for _ in 0..LOOKS {
            self.look(s, &mut look, &mut found);
            if !found.raise(s) {
                break;
            }
        }
        for index in 0..self.tile.count {
            let tile = Tile { first: self.tile.first + index, count: 1, ..self.tile };
            let slack = self.slack(s, &look, index);
            self.choose(s, &mut found, index, slack);
            tile.attend_to(s, &mut own, &found.chosen);
            self.account(s, &own, &mut found, index, slack, &mut report);
            let audit = self.params.audit;
            if audit > 0 && tile.position(0).is_multiple_of(audit) {
                tile.attend(s, &mut whole);
                self.audit(s, &mut own, &whole, &found, &mut report);
            }
            tile.finish(s, &own);
        }
        MEMORY.set(Memory { look, found, own, whole });
        report
    }
}

impl<E: Element> Dynamic<'_, E> {
    /// A block at or before the first one that any query sees, and the number of blocks from there up to the last query's
    /// own.
    ///
    /// A multiple of the lanes, so that a block adds to the same chain of a sum whichever queries share the task.
    #[inline(always)]
    fn span(&self) -> (usize, usize) {
        let first = self.first_block(0) / LANES * LANES;
        (first, self.own_block(self.tile.count - 1) + 1 - first)
    }

    /// The first block that the query at `index` sees.
    #[inline(always)]
    fn first_block(&self, index: usize) -> usize {
        first_visible(self.tile.position(index), self.tile.params.window) / BLOCK_SIZE
    }

    /// The block of the query at `index`.
    #[inline(always)]
    fn own_block(&self, index: usize) -> usize {
        self.tile.position(index) / BLOCK_SIZE
    }

    /// The rows of the query at `index`.
    #[inline(always)]
    fn rows(&self, index: usize) -> Range<usize> {
        index * self.tile.group()..(index + 1) * self.tile.group()
    }

    /// Blocks, counted from the first of the span, that the query at `index` may leave out.
    #[inline(always)]
    fn optional(&self, index: usize) -> Range<usize> {
        let (first, _) = self.span();
        self.first_block(index) - first..self.own_block(index) - first
    }

    /// Whether a look reads both halves of the keys' codes.
    #[inline(always)]
    fn halves(&self) -> bool {
        self.params.mode != Mode::Estimated
    }

    /// Makes room, and measures the queries for looks.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, state: &mut State, found: &mut Found) {
        let (_, blocks) = self.span();
        found.start(self.tile.count * self.tile.group(), blocks);
        let vectors = padded(self.tile.params.head_dim) / LANES;
        state.q_peaks.clear();
        for q in state.q.chunks_exact(vectors) {
            state.q_peaks.push(peaks_of(s, q));
        }
    }

    /// Looks at all keys.
    #[inline(always)]
    fn look<S: Simd>(&self, s: S, state: &mut State, found: &mut Found) {
        let tile = &self.tile;
        let (first, blocks) = self.span();
        let rows = tile.count * tile.group();
        for index in 0..tile.count {
            // The query's own block says what scores are about.
            let own = self.own_block(index);
            self.know(s, state, found, own, index);
            let whole = first_visible(tile.position(index), tile.params.window).is_multiple_of(BLOCK_SIZE);
            if !whole && self.first_block(index) < own {
                self.know(s, state, found, self.first_block(index), index);
            }
        }
        let last = first + blocks - 1;
        let seen_by_all = tile.seen_by_all_rows();
        let mut block = first;
        while block < last {
            let together = if seen_by_all.contains(&block) { BLOCKS.min(seen_by_all.end - block) } else { 0 };
            if together == 0 {
                let mut row = 0;
                while row < rows {
                    let run = tile.run_of_rows(block, row, rows);
                    if run.seen == (0, BLOCK_SIZE) && !run.own {
                        self.look_at(state, found, (block, 1), run, block + 1);
                    }
                    row += run.count;
                }
                block += 1;
                continue;
            }
            let mut next = block + BLOCKS;
            for n in 0..together {
                tile.fetch_steps(s, (next + n).min(last));
            }
            for row in (0..rows).step_by(ROWS) {
                let run = Run { row, count: ROWS.min(rows - row), seen: (0, BLOCK_SIZE), own: false };
                self.look_at(state, found, (block, together), run, next);
                next = block;
            }
            block += together;
        }
    }

    /// The exact scores of the query at `index` in a block of which it does not see the whole.
    #[inline(always)]
    fn know<S: Simd>(&self, s: S, state: &mut State, found: &mut Found, block: usize, index: usize) {
        let Range { start: mut row, end } = self.rows(index);
        while row < end {
            let run = self.tile.run_of_rows(block, row, end);
            let held = self.tile.held(block, run.own);
            self.tile.scores(s, state, held, run, self.tile.ahead(block));
            let place = (!run.own).then(|| block - self.span().0);
            found.know(s, row, &state.scores[..run.count], place);
            row += run.count;
        }
    }

    /// Some rows at `count` blocks from `block` on, while those from `next` on are fetched.
    #[inline(always)]
    fn look_at(
        &self,
        state: &mut State,
        found: &mut Found,
        (block, count): (usize, usize),
        run: Run,
        next: usize,
    ) {
        let (first, blocks) = self.span();
        let ahead = self.tile.ahead_together(next, first + blocks - 1);
        let seen = self.tile.look(state, (block, count), run, &ahead, &found.references, self.halves());
        found.store(block - first..block + count - first, run.row..run.row + run.count, &seen);
    }

    /// Factor by which the omitted mass of any query head of a position can be larger than computed.
    #[inline(always)]
    fn slack<S: Simd>(&self, s: S, state: &State, index: usize) -> f32 {
        let tile = &self.tile;
        let (head_dim, vectors) = (tile.params.head_dim, padded(tile.params.head_dim) / LANES);
        let own = self.own_block(index);
        let seen = tile.position(index) % BLOCK_SIZE + 1;
        let mut reach = open_reach(s, &tile.held(own, true), seen);
        if let Source::Int8 { blocks, .. } = tile.source {
            for block in self.first_block(index)..own {
                reach = reach.max(blocks.key_reach[tile.place(block)]);
            }
        }
        let norms = self.rows(index).map(|row| norm(s, &state.q[row * vectors..(row + 1) * vectors]));
        let query = norms.fold(0.0, f32::max);
        // A chain over the channels, one of q . lo, the fold of its lanes, and the rounding of q itself.
        let roundings = 1.1 * head_dim as f32 + 16.0;
        let cap = tile.params.softcap.map_or(0.0, |cap| TANH_ERROR * cap);
        let peak = state.peaks[self.rows(index)].iter().fold(0.0, |a, &b| f32::max(a, b));
        let rounded = score_error(head_dim, vectors * LANES, peak);
        // Scores are off by at most `error`, so ratios of their exponentials by e^(2 error).
        let error = roundings * ROUNDING * reach * query + rounded + cap;
        (1.0 + SUM_SLACK) * (2.0 * error).exp()
    }

    /// Decides which blocks the query at `index` reads.
    #[inline(always)]
    fn choose<S: Simd>(&self, s: S, found: &mut Found, index: usize, slack: f32) {
        let (first, _) = self.span();
        let (optional, rows) = (self.optional(index), self.rows(index));
        let mut known = true;
        for row in rows.clone() {
            known &= found.weigh(s, row);
        }
        let always = self.always(found, optional.clone());
        // Blocks that one query head reads are read for the others of the group too.
        for row in rows.clone() {
            match self.params.mode {
                // Whoever reads everything says so in the result.
                _ if !known => found.read[optional.clone()].fill(true),
                Mode::Estimated => {
                    found.mark_by_estimate(row, optional.clone(), self.params.error_bound / ESTIMATE_MARGIN);
                }
                _ => found.mark(row, optional.clone(), self.params.error_bound / slack),
            }
        }
        let limited = self.params.mode == Mode::Budget;
        let most = always.saturating_add(self.params.max_blocks);
        if known && limited && found.count(optional.clone()) > most {
            self.always(found, optional.clone());
            found.mark_heaviest(rows, optional.clone(), self.params.max_blocks);
        }
        let read = found.count(optional.clone());
        if !limited && read as f32 > DENSE_ABOVE * optional.len() as f32 {
            found.read[optional.clone()].fill(true);
        }
        found.unread.fill(0.0);
        for block in optional.clone() {
            found.unread[block] = if found.read[block] { 0.0 } else { 1.0 };
        }
        found.chosen.clear();
        for block in optional.start..=optional.end {
            if found.unread[block] == 0.0 {
                found.chosen.push(first + block);
            }
        }
    }

    /// Marks for reading what always is read of the blocks before a query's own, and nothing else. Gives the number of them.
    #[inline(always)]
    fn always(&self, found: &mut Found, optional: Range<usize>) -> usize {
        let (first, _) = self.span();
        found.read.fill(false);
        let sinks = self.params.sink_blocks.saturating_sub(first).min(optional.end);
        found.read[..sinks].fill(true);
        found.read[optional.end.saturating_sub(self.params.local_blocks)..optional.end].fill(true);
        found.count(optional)
    }

    /// Compares with the answer of reading everything, and takes that where a claim does not hold.
    #[inline(always)]
    fn audit<S: Simd>(
        &self,
        s: S,
        own: &mut State,
        whole: &State,
        found: &Found,
        report: &mut AttentionReport,
    ) {
        let vectors = padded(self.tile.params.head_dim) / LANES;
        for (row, claim) in found.claims.iter().enumerate() {
            if !compare(&answer(s, own, row, vectors), &answer(s, whole, row, vectors), claim, report) {
                let part = row * vectors..(row + 1) * vectors;
                own.acc[part.clone()].copy_from_slice(&whole.acc[part]);
                own.sum[row] = whole.sum[row];
            }
        }
    }

    /// Adds the calls of the query at `index` to the report.
    #[inline(always)]
    fn account<S: Simd>(
        &self,
        s: S,
        own: &State,
        found: &mut Found,
        index: usize,
        slack: f32,
        report: &mut AttentionReport,
    ) {
        let (first, _) = self.span();
        let (tile, group) = (&self.tile, self.tile.group());
        let visible = self.own_block(index) - self.first_block(index);
        let read = found.chosen.len() - 1;
        report.count(group, visible, read, tile.params.head_dim, self.halves());
        found.claims.clear();
        if read == visible {
            report.dense_calls += group as u64;
            found.claims.resize(group, Claim::default());
            return;
        }
        let mut longest = 0.0_f32;
        if let Source::Int8 { blocks, .. } = tile.source {
            for block in self.optional(index).filter(|&block| !found.read[block]) {
                longest = longest.max(blocks.value_norm[tile.place(first + block)]);
            }
        }
        let vectors = padded(tile.params.head_dim) / LANES;
        for (head, row) in self.rows(index).enumerate() {
            let (most, about) = found.left_out(s, row);
            let sum = s.reduce_add(s.load(&own.sum[head]));
            let shift = f64::from(own.reference[head]) - f64::from(found.references[row]);
            let kept = f64::from(sum) * shift.exp();
            let bound = (most / (most + kept) * f64::from(slack)).min(1.0);
            let output = norm(s, &own.acc[head * vectors..(head + 1) * vectors]) / sum;
            let error = bound as f32 * (longest + output) * (1.0 + SUM_SLACK);
            report.leave_out(bound, about / (about + kept), error);
            found.claims.push(Claim { mass: bound as f32, error, longest });
        }
    }
}

/// A row's answer.
#[inline(always)]
fn answer<S: Simd>(s: S, state: &State, row: usize, vectors: usize) -> Answer<'_> {
    Answer {
        reference: state.reference[row],
        sum: s.reduce_add(s.load(&state.sum[row])),
        acc: state.acc[row * vectors..(row + 1) * vectors].as_flattened(),
    }
}

/// The norm of a row.
#[inline(always)]
fn norm<S: Simd>(s: S, row: &[[f32; LANES]]) -> f32 {
    let mut squares = s.zero();
    for part in row {
        squares = s.fma(s.load(part), s.load(part), squares);
    }
    s.reduce_add(squares).sqrt() * (1.0 + SUM_SLACK)
}

/// As `key_reach` of int8 blocks, of the first `seen` tokens of a block of floats: the norm of the channels' largest
/// magnitudes. Places behind them may hold anything, which must not matter.
#[inline(always)]
fn open_reach<S: Simd, E: Element>(s: S, held: &Held<'_, E>, seen: usize) -> f32 {
    let Held::Float { keys, .. } = held else { return 0.0 };
    let seen = s.splat(seen as f32);
    let mut squares = 0.0_f32;
    for channel in 0..keys.len() / HALVES {
        let mut largest = s.zero();
        for (half, places) in PLACES.as_chunks::<LANES>().0.iter().enumerate() {
            let key = s.select_lt(s.load(places), seen, E::key(s, keys, channel, half), s.zero());
            largest = s.max(s.abs(key), largest);
        }
        let largest = s.reduce_max(largest);
        squares += largest * largest;
    }
    squares.sqrt() * (1.0 + SUM_SLACK)
}
