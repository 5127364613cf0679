//! Dynamic attention: every key is read, values only where they matter, with a bound on what was left out.
//!
//! For each query and KV head, first the exact scores of all keys give each block's share of the softmax mass. Then the
//! lightest blocks are left out, as many as stay within the caller's bound for every query head of the group, and only
//! the values of the others are read. With R the blocks that are read, S those left out, and Z the sums of
//! e^score over either,
//!
//! - the *omitted mass* mu = Z_S / (Z_R + Z_S) is the total variation distance between the exact weights and those used;
//! - the output is the softmax over R, and the exact output differs from it by
//!   `mu * |mean of omitted values - output| <= mu * (largest |value| in S + |output|)`, a convex combination being
//!   no longer than its longest part.
//!
//! Both are relative to dense attention over the cache as it is stored. The omitted mass
//! includes the rounding of scores, exponentials and sums here, so it holds in exact arithmetic; the error of the output
//! is that of leaving out, float rounding aside. What a query reads
//! depends on its position and its sequence alone, as everything in attention does.

use std::cell::RefCell;
use std::ops::Range;

use super::audit::{Answer, Claim, compare};
use super::key_codes::{BLOCKS, score_error};
use super::kv::padded;
use super::report::{AttentionReport, DynamicParams};
use super::rows::{Element, HALVES};
use super::source::{Held, Source};
use super::tile::{AHEAD, PLACES, ROWS, Run, State, Tile};
use super::{BLOCK_SIZE, first_visible};
use crate::simd::{self, LANES, Op, Simd};

/// Relative error of exponentials and of sums of some hundred thousand of them in the order below, and more.
const SUM_SLACK: f32 = 1e-3;
/// Half a unit in the last place of 1: the relative error of one rounding.
const ROUNDING: f32 = 6e-8;
/// Largest error of [`simd::tanh`].
const TANH_ERROR: f32 = 4e-7;
/// Share of the blocks above which a query reads all: what little it would spare costs more than it brings.
const DENSE_ABOVE: f32 = 0.9;
/// Buckets of shares of the mass: four an octave, down to 2^-56.
const BUCKETS: usize = 4 * 56;

/// A tile whose queries choose what they read.
pub(super) struct Dynamic<'a, E> {
    pub(super) tile: Tile<'a, E>,
    pub(super) params: DynamicParams,
}

/// Memory of a task beside that of its tile. Blocks are counted from the first of `span`; a row has `width` of them,
/// whole vectors, and those beyond the last are empty.
#[derive(Default)]
struct Found {
    /// e^(score - the block's largest), `[blocks][rows]`.
    weights: Vec<[f32; BLOCK_SIZE]>,
    /// Each block's largest score, `[rows][width]`.
    peaks: Vec<f32>,
    /// What makes a block's weights those of its row, e^(its largest score - the row's), `[rows][width]`.
    factors: Vec<f32>,
    /// Each block's sum of weights, `[rows][width]`; then its part of the row's mass, the sum times its factor.
    sums: Vec<f32>,
    /// Each row's largest score, and its sum of weights relative to it.
    largest: Vec<f32>,
    masses: Vec<f32>,
    /// How far below its largest score lies the one that its factors refer to.
    offsets: Vec<f32>,
    /// Whether a block's values are read by the position at hand.
    read: Vec<bool>,
    /// 1 for each block that the position at hand sees and does not read, else 0: `[width]`.
    unread: Vec<f32>,
    /// What the query heads of the position at hand say of themselves.
    claims: Vec<Claim>,
    width: usize,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static MEMORY: RefCell<(State, Found, State)> = RefCell::default();
}

impl<E: Element> Op for Dynamic<'_, E> {
    type Output = AttentionReport;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> AttentionReport {
        let (mut state, mut found, mut whole) = MEMORY.take();
        let mut report = AttentionReport::default();
        self.tile.start(&mut state);
        self.score(s, &mut state, &mut found);
        for index in 0..self.tile.count {
            let slack = self.slack(s, &state, index);
            self.choose(s, &mut found, index, slack);
            self.read(s, &mut state, &found, index);
            self.account(s, &state, &mut found, index, slack, &mut report);
            let audit = self.params.audit;
            if audit > 0 && self.tile.position(index).is_multiple_of(audit) {
                self.audit(s, &mut state, &mut whole, &found, index, &mut report);
            }
        }
        self.tile.finish(s, &state);
        MEMORY.set((state, found, whole));
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
        (first, self.tile.position(self.tile.count - 1) / BLOCK_SIZE + 1 - first)
    }

    /// The first block that the query at `index` sees.
    #[inline(always)]
    fn first_block(&self, index: usize) -> usize {
        first_visible(self.tile.position(index), self.tile.params.window) / BLOCK_SIZE
    }

    /// The weights of all keys, block by block.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, state: &mut State, found: &mut Found) {
        let (first, blocks) = self.span();
        let rows = self.tile.count * self.tile.group();
        found.width = blocks.next_multiple_of(LANES);
        found.weights.resize(blocks * rows, [0.0; BLOCK_SIZE]);
        found.peaks.clear();
        found.peaks.resize(rows * found.width, f32::NEG_INFINITY);
        found.factors.resize(rows * found.width, 0.0);
        found.largest.resize(rows, 0.0);
        found.masses.resize(rows, 0.0);
        found.offsets.clear();
        found.offsets.resize(rows, 0.0);
        found.sums.clear();
        found.sums.resize(rows * found.width, 0.0);
        let last = first + blocks - 1;
        let mut block = 0;
        while block < blocks {
            let count = self.tile.together(first + block);
            if count > 0 {
                self.score_together(s, state, found, block, count, last);
                block += count;
                continue;
            }
            let next = (first + block + AHEAD).min(last);
            self.tile.fetch_rest(s, next);
            // Whether the values will be read is not known yet: only keys are fetched.
            let mut ahead = self.tile.ahead(next);
            let mut row = 0;
            while row < rows {
                let run = self.tile.run_of_rows(first + block, row, rows);
                if run.seen.0 < run.seen.1 {
                    let held = self.tile.held(first + block, run.own);
                    self.tile.scores(s, state, held, run, ahead);
                    found.store(s, &state.scores[0][..run.count], block, row, rows);
                } else {
                    found.weights[block * rows + row..][..run.count].fill([0.0; BLOCK_SIZE]);
                }
                row += run.count;
                ahead = self.tile.ahead(first + block);
            }
            block += 1;
        }
    }

    /// Those of some blocks, `together`, up to block `last` of the sequence.
    #[inline(always)]
    fn score_together<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        found: &mut Found,
        block: usize,
        count: usize,
        last: usize,
    ) {
        let (first, _) = self.span();
        let rows = self.tile.count * self.tile.group();
        let mut next = first + block + BLOCKS;
        for n in 0..count {
            self.tile.fetch_rest(s, (next + n).min(last));
        }
        for row in (0..rows).step_by(ROWS) {
            let ahead = self.tile.ahead_together(next, last);
            let run = Run { row, count: ROWS.min(rows - row), seen: (0, BLOCK_SIZE), own: false };
            self.tile.scores_together(s, state, first + block, count, run, &ahead);
            for (n, scores) in state.scores[..count].iter().enumerate() {
                found.store(s, &scores[..run.count], block + n, row, rows);
            }
            next = first + block;
        }
    }

    /// Factor by which the omitted mass of any query head of a position can be larger than computed.
    #[inline(always)]
    fn slack<S: Simd>(&self, s: S, state: &State, index: usize) -> f32 {
        let tile = &self.tile;
        let (head_dim, vectors) = (tile.params.head_dim, padded(tile.params.head_dim) / LANES);
        let own = tile.position(index) / BLOCK_SIZE;
        let seen = tile.position(index) % BLOCK_SIZE + 1;
        let mut reach = tail_reach(s, &tile.held(own, true), seen);
        if let Source::Int8 { blocks, .. } = tile.source {
            for block in self.first_block(index)..own {
                reach = reach.max(blocks.key_reach[tile.place(block)]);
            }
        }
        let rows = index * tile.group()..(index + 1) * tile.group();
        let norms = rows.map(|row| norm(s, &state.q[row * vectors..(row + 1) * vectors]));
        let query = norms.fold(0.0, f32::max);
        // A chain over the channels, one of q . lo, the fold of its lanes, and the rounding of q itself.
        let roundings = 1.1 * head_dim as f32 + 16.0;
        let cap = tile.params.softcap.map_or(0.0, |cap| TANH_ERROR * cap);
        let peak = state.peaks[index * tile.group()..(index + 1) * tile.group()]
            .iter()
            .fold(0.0, |a, &b| f32::max(a, b));
        let rounded = score_error(head_dim, vectors * LANES, peak);
        // Scores are off by at most `error`, so ratios of their exponentials by e^(2 error).
        let error = roundings * ROUNDING * reach * query + rounded + cap;
        (1.0 + SUM_SLACK) * (2.0 * error).exp()
    }

    /// Decides which blocks the query at `index` reads.
    #[inline(always)]
    fn choose<S: Simd>(&self, s: S, found: &mut Found, index: usize, slack: f32) {
        let (first, blocks) = self.span();
        let (tile, group) = (&self.tile, self.tile.group());
        let own = tile.position(index) / BLOCK_SIZE - first;
        let visible = self.first_block(index) - first..own;
        found.read.clear();
        found.read.resize(blocks, false);
        let sinks = self.params.sink_blocks.saturating_sub(first).min(own);
        found.read[..sinks].fill(true);
        found.read[own.saturating_sub(self.params.local_blocks)..=own].fill(true);
        // Blocks that one query head reads are read for the others of the group too.
        for row in index * group..(index + 1) * group {
            let mass = found.weigh_blocks(s, row);
            found.mark(row, visible.clone(), mass, self.params.error_bound / slack);
        }
        if let Some(most) = self.params.max_blocks {
            let (rows, always) = (
                index * group..(index + 1) * group,
                (0..sinks, own.saturating_sub(self.params.local_blocks)),
            );
            found.keep_heaviest(rows.clone(), visible.clone(), always, most);
            // Without a row's heaviest block, the weights of all others may vanish beside it.
            rows.for_each(|row| found.refer_to_read(s, row));
        }
        let read = found.read[visible.clone()].iter().filter(|read| **read).count();
        if self.params.max_blocks.is_none() && read as f32 > DENSE_ABOVE * visible.len() as f32 {
            found.read[visible].fill(true);
        }
    }

    /// Sums weights and values of the blocks that are read, in order.
    #[inline(always)]
    fn read<S: Simd>(&self, s: S, state: &mut State, found: &Found, index: usize) {
        let (first, blocks) = self.span();
        let (rows, group) = (self.tile.count * self.tile.group(), self.tile.group());
        let end = (index + 1) * group;
        let mut block = 0;
        while block < blocks {
            if !found.read[block] {
                block += 1;
                continue;
            }
            let next = (block + 1..blocks).find(|&next| found.read[next]).unwrap_or(block);
            let ahead = self.tile.ahead(first + next).values;
            let mut row = index * group;
            while row < end {
                let run = self.tile.run_of_rows(first + block, row, end);
                if run.seen.0 < run.seen.1 {
                    let held = self.tile.held(first + block, run.own);
                    let weights = &found.weights[block * rows + row..][..run.count];
                    self.weigh(s, state, found, held, weights, (block, row), run.seen, ahead);
                }
                row += run.count;
            }
            block = if next > block { next } else { blocks };
        }
    }

    /// Answers the query at `index` by reading everything too, and compares.
    #[inline(always)]
    fn audit<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        whole: &mut State,
        found: &Found,
        index: usize,
        report: &mut AttentionReport,
    ) {
        Tile { first: self.tile.first + index, count: 1, ..self.tile }.attend(s, whole);
        let group = self.tile.group();
        let vectors = padded(self.tile.params.head_dim) / LANES;
        for (head, claim) in found.claims.iter().enumerate() {
            let row = index * group + head;
            let (part, all) = (row * vectors..(row + 1) * vectors, head * vectors..(head + 1) * vectors);
            let own = Answer {
                reference: found.largest[row],
                sum: s.reduce_add(s.load(&state.sum[row])),
                acc: state.acc[part.clone()].as_flattened(),
            };
            let exact = Answer {
                reference: whole.reference[head],
                sum: s.reduce_add(s.load(&whole.sum[head])),
                acc: whole.acc[all.clone()].as_flattened(),
            };
            if !compare(&own, &exact, claim, report) {
                state.acc[part].copy_from_slice(&whole.acc[all]);
                state.sum[row] = whole.sum[head];
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        found: &Found,
        held: Held<'_, E>,
        from: &[[f32; BLOCK_SIZE]],
        (block, row): (usize, usize),
        seen: (usize, usize),
        ahead: *const u8,
    ) {
        let mut weights = [[0.0; BLOCK_SIZE]; ROWS];
        let weights = &mut weights[..from.len()];
        for r in 0..from.len() {
            let factor = s.splat(found.factors[(row + r) * found.width + block]);
            let mut sum = s.load(&state.sum[row + r]);
            let (to, from) = (weights[r].as_chunks_mut::<LANES>().0, from[r].as_chunks::<LANES>().0);
            for (to, from) in to.iter_mut().zip(from) {
                let weight = s.mul(s.load(from), factor);
                sum = s.add(sum, weight);
                s.store(weight, to);
            }
            s.store(sum, &mut state.sum[row + r]);
        }
        let vectors = padded(self.tile.params.head_dim) / LANES;
        let acc = &mut state.acc[row * vectors..(row + from.len()) * vectors];
        self.tile.weigh(s, acc, held, weights, &[1.0; ROWS][..from.len()], seen, ahead);
    }

    /// Adds the calls of the query at `index` to the report.
    #[inline(always)]
    fn account<S: Simd>(
        &self,
        s: S,
        state: &State,
        found: &mut Found,
        index: usize,
        slack: f32,
        report: &mut AttentionReport,
    ) {
        let (first, _) = self.span();
        let (tile, group) = (&self.tile, self.tile.group());
        let visible = self.first_block(index) - first..tile.position(index) / BLOCK_SIZE - first;
        let mut claims = std::mem::take(&mut found.claims);
        claims.clear();
        let omitted = || visible.clone().filter(|&block| !found.read[block]);
        let omitted_blocks = omitted().count();
        report.count(group, visible.len(), visible.len() - omitted_blocks, tile.params.head_dim);
        if omitted_blocks == 0 {
            report.dense_calls += group as u64;
        }
        found.unread.clear();
        found.unread.resize(found.width, 0.0);
        for block in visible.clone() {
            found.unread[block] = if found.read[block] { 0.0 } else { 1.0 };
        }
        let omitted = || visible.clone().filter(|&block| !found.read[block]);
        let mut longest = 0.0_f32;
        if let Source::Int8 { blocks, .. } = tile.source {
            for block in omitted() {
                longest = longest.max(blocks.value_norm[tile.place(first + block)]);
            }
        }
        let vectors = padded(tile.params.head_dim) / LANES;
        for row in index * group..(index + 1) * group {
            if omitted_blocks == 0 {
                claims.push(Claim::default());
                continue;
            }
            let mut left_out = s.zero();
            let shares = found.sums[row * found.width..(row + 1) * found.width].as_chunks::<LANES>().0;
            for (share, unread) in shares.iter().zip(found.unread.as_chunks::<LANES>().0) {
                left_out = s.fma(s.load(share), s.load(unread), left_out);
            }
            let left_out = f64::from(s.reduce_add(left_out));
            let sum = s.reduce_add(s.load(&state.sum[row]));
            let kept = f64::from(sum) * f64::from(found.offsets[row]).exp();
            let bound = (left_out / (left_out + kept) * f64::from(slack)).min(1.0);
            let output = norm(s, &state.acc[row * vectors..(row + 1) * vectors]) / sum;
            report.sum_omitted_mass += bound;
            report.max_omitted_mass = report.max_omitted_mass.max(bound as f32);
            let error = bound as f32 * (longest + output) * (1.0 + SUM_SLACK);
            report.max_output_error = report.max_output_error.max(error);
            claims.push(Claim { mass: bound as f32, error, longest });
        }
        found.claims = claims;
    }
}

impl Found {
    /// Keeps the scores of some rows in a block as weights.
    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, scores: &[[f32; BLOCK_SIZE]], block: usize, row: usize, rows: usize) {
        if let Ok(four) = scores.try_into() {
            return self.store_rows::<S, ROWS>(s, four, block, row, rows);
        }
        for (r, scores) in scores.iter().enumerate() {
            self.store_rows(s, std::array::from_ref(scores), block, row + r, rows);
        }
    }

    #[inline(always)]
    fn store_rows<S: Simd, const R: usize>(
        &mut self,
        s: S,
        scores: &[[f32; BLOCK_SIZE]; R],
        block: usize,
        row: usize,
        rows: usize,
    ) {
        let (mut largest, mut sums) = ([s.zero(); R], [s.zero(); R]);
        for r in 0..R {
            let scores = scores[r].as_chunks::<LANES>().0;
            largest[r] = s.max(s.load(&scores[0]), s.load(&scores[1]));
        }
        let largest = s.reduce_max_each(largest);
        for r in 0..R {
            let to = self.weights[block * rows + row + r].as_chunks_mut::<LANES>().0;
            for (to, score) in to.iter_mut().zip(scores[r].as_chunks::<LANES>().0) {
                let weight = simd::exp(s, s.sub(s.load(score), s.splat(largest[r])));
                sums[r] = s.add(sums[r], weight);
                s.store(weight, to);
            }
        }
        let sums = s.reduce_add_each(sums);
        for r in 0..R {
            let place = (row + r) * self.width + block;
            self.peaks[place] = largest[r];
            self.sums[place] = sums[r];
        }
    }

    /// Makes a row's factors and its blocks' parts of its mass, and returns the mass.
    #[inline(always)]
    fn weigh_blocks<S: Simd>(&mut self, s: S, row: usize) -> f32 {
        let part = row * self.width..(row + 1) * self.width;
        let peaks = self.peaks[part.clone()].as_chunks::<LANES>().0;
        let factors = self.factors[part.clone()].as_chunks_mut::<LANES>().0;
        let sums = self.sums[part].as_chunks_mut::<LANES>().0;
        let mut largest = s.splat(f32::NEG_INFINITY);
        for peak in peaks {
            largest = s.max(s.load(peak), largest);
        }
        self.largest[row] = s.reduce_max(largest);
        let largest = s.splat(self.largest[row]);
        let mut mass = s.zero();
        for ((factor, sum), peak) in factors.iter_mut().zip(sums).zip(peaks) {
            let value = simd::exp(s, s.sub(s.load(peak), largest));
            let share = s.mul(value, s.load(sum));
            mass = s.add(mass, share);
            s.store(value, factor);
            s.store(share, sum);
        }
        self.masses[row] = s.reduce_add(mass);
        self.masses[row]
    }

    /// Of the blocks that are read, beside those that always are, keeps the `most` heaviest: by their largest share of
    /// the mass of any row, and of equal ones the first.
    #[inline(always)]
    fn keep_heaviest(
        &mut self,
        rows: Range<usize>,
        blocks: Range<usize>,
        always: (Range<usize>, usize),
        most: usize,
    ) {
        let optional = |block: &usize| !always.0.contains(block) && *block < always.1;
        let mut read: Vec<(f32, usize)> = blocks
            .filter(|block| self.read[*block] && optional(block))
            .map(|block| {
                let share = |row: usize| self.sums[row * self.width + block] / self.masses[row];
                (rows.clone().map(share).fold(0.0, f32::max), block)
            })
            .collect();
        // Where anything is not a number all is read: its share could be anything.
        if read.len() <= most
            || rows.clone().any(|row| !(self.masses[row] > 0.0 && self.masses[row].is_finite()))
        {
            return;
        }
        read.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for &(_, block) in &read[most..] {
            self.read[block] = false;
        }
    }

    /// Makes a row's factors relative to the largest score of what is read, where that is not its largest of all.
    #[inline(always)]
    fn refer_to_read<S: Simd>(&mut self, s: S, row: usize) {
        let part = row * self.width..(row + 1) * self.width;
        let (peaks, factors) = (&self.peaks[part.clone()], &mut self.factors[part]);
        let read = peaks.iter().zip(&self.read).filter(|(_, read)| **read).map(|(peak, _)| *peak);
        let largest = read.fold(f32::NEG_INFINITY, f32::max);
        if largest == self.largest[row] || !largest.is_finite() {
            return;
        }
        self.offsets[row] = largest - self.largest[row];
        self.largest[row] = largest;
        let factors = factors.as_chunks_mut::<LANES>().0;
        for (factor, peak) in factors.iter_mut().zip(peaks.as_chunks::<LANES>().0) {
            s.store(simd::exp(s, s.sub(s.load(peak), s.splat(largest))), factor);
        }
    }

    /// Marks for reading all but the lightest `blocks` of a row, whose masses together are at most `bound` of `mass`.
    #[inline(always)]
    fn mark(&mut self, row: usize, blocks: Range<usize>, mass: f32, bound: f32) {
        if !(mass > 0.0 && mass.is_finite()) {
            // Something is not a number: whoever reads everything says so in the result.
            self.read[blocks].fill(true);
            return;
        }
        let shares = &self.sums[row * self.width..][blocks.clone()];
        let read = &mut self.read[blocks];
        // The buckets of equal exponent and leading bits of the mantissa, the whole mass in the first.
        let (top, bits) = (mass.to_bits() >> 21, |share: f32| share.to_bits() >> 21);
        let mut masses = [0.0_f32; BUCKETS];
        for (&share, &read) in shares.iter().zip(&*read) {
            let bucket = (top.saturating_sub(bits(share)) as usize).min(BUCKETS - 1);
            masses[bucket] += if read { 0.0 } else { share };
        }
        let (mut cut, mut left_out) = (BUCKETS, 0.0);
        while cut > 0 && left_out + masses[cut - 1] <= bound * mass {
            cut -= 1;
            left_out += masses[cut];
        }
        // The last bucket holds all that are lighter, too: with it everything is read.
        let from = if cut == BUCKETS { 0 } else { (top + 1).saturating_sub(cut as u32) };
        for (read, &share) in read.iter_mut().zip(shares) {
            *read |= bits(share) >= from;
        }
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
fn tail_reach<S: Simd, E: Element>(s: S, held: &Held<'_, E>, seen: usize) -> f32 {
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
