//! Selection of the blocks that a query reads.

use std::ops::Range;

use super::super::int8_scores::BlockMasses;
use super::super::kv_cache::KvElement;
use super::super::params::BLOCK_SIZE;
use super::report::{ErrorBound, Mode};
use super::task::DynamicTask;
use crate::simd::{self, LANES, Simd};

/// Share of the blocks above which a query reads all: omitting the rest saves too little.
const DENSE_ABOVE: f32 = 0.9;
/// Divisor of the caller's bound for estimates. Blocks are omitted because their estimates are low, so the true mass
/// exceeds their sum: by nearly 1.4 times on the heads of the embedded model.
const ESTIMATE_MARGIN: f32 = 1.5;
/// Buckets of shares of the mass: four an octave, down to 2^-56.
const BUCKETS: usize = 4 * 56;
/// Masses above this are too heavy: their scores are too far above the reference.
const HEAVIEST: f32 = 1e30;
/// Rise of the reference of a row with a mass that is too heavy.
const RAISE: f32 = 80.0;
/// Masses below this may be overestimated: scores far below the reference are clamped.
const LIGHTEST: f32 = 1e-30;

/// Softmax masses of blocks for each row, relative to e^reference, and the selection of one query.
///
/// Blocks are counted from the first block of the task's span. A row has `width` entries, whole vectors; blocks that
/// are not estimated for it, its current block among them, have none.
#[derive(Default)]
pub(super) struct BlockSelector {
    /// Estimate of each block's mass, `[rows][width]`.
    masses: Vec<f32>,
    /// Logarithm of the factor by which each estimate may be off; after `sum_masses` the maximum mass.
    upper: Vec<f32>,
    width: usize,
    /// Score to which a row's masses are relative: the largest score in its current block, plus `raised`.
    pub(super) references: Vec<f32>,
    raised: Vec<f32>,
    /// Mass of the row's current block.
    current: Vec<f32>,
    /// Sums over all blocks of a row: estimates, and minima.
    sum_estimate: Vec<f32>,
    sum_lower: Vec<f32>,
    /// Whether the query reads a block.
    pub(super) selected: Vec<bool>,
    /// 1 for each block that the query omits, else 0: `[width]`.
    pub(super) omitted: Vec<f32>,
    /// The blocks of the sequence that the query reads, in order.
    pub(super) blocks: Vec<usize>,
    /// Error bounds of the query's heads.
    pub(super) bounds: Vec<ErrorBound>,
}

impl BlockSelector {
    #[inline(always)]
    pub(super) fn start(&mut self, rows: usize, blocks: usize) {
        self.width = blocks.next_multiple_of(LANES);
        for per_block in [&mut self.masses, &mut self.upper] {
            per_block.clear();
            per_block.resize(rows * self.width, 0.0);
        }
        let [references, raised] = [&mut self.references, &mut self.raised];
        for per_row in [references, raised, &mut self.current, &mut self.sum_estimate, &mut self.sum_lower] {
            per_row.clear();
            per_row.resize(rows, 0.0);
        }
        self.selected.clear();
        self.selected.resize(blocks, false);
        self.omitted.clear();
        self.omitted.resize(self.width, 0.0);
    }

    /// Adds exact scores of some rows in `block`, or if None in their current block, which sets their references.
    #[inline(always)]
    pub(super) fn add_exact<S: Simd>(
        &mut self,
        s: S,
        row: usize,
        scores: &[[f32; BLOCK_SIZE]],
        block: Option<usize>,
    ) {
        for (row, scores) in (row..).zip(scores) {
            let scores = scores.as_chunks::<LANES>().0;
            if block.is_none() {
                let largest = s.reduce_max(s.max(s.load(&scores[0]), s.load(&scores[1])));
                self.references[row] = largest + self.raised[row];
            }
            let reference = s.splat(self.references[row]);
            let mut mass = s.zero();
            for scores in scores {
                mass = s.add(mass, simd::exp(s, s.sub(s.load(scores), reference)));
            }
            let mass = s.reduce_add(mass);
            match block {
                None => self.current[row] = mass,
                Some(block) => self.masses[row * self.width + block] = mass,
            }
        }
    }

    /// Stores estimates of some blocks for some rows.
    #[inline(always)]
    pub(super) fn add_estimates(
        &mut self,
        blocks: Range<usize>,
        rows: Range<usize>,
        estimates: &BlockMasses,
    ) {
        for ((row, masses), log_errors) in rows.zip(&estimates.masses).zip(&estimates.log_errors) {
            let entries = row * self.width + blocks.start..row * self.width + blocks.end;
            self.masses[entries.clone()].copy_from_slice(&masses[..blocks.len()]);
            self.upper[entries].copy_from_slice(&log_errors[..blocks.len()]);
        }
    }

    /// Raises the references of rows with masses above [`HEAVIEST`]. Returns whether there are any.
    #[inline(always)]
    pub(super) fn rescale<S: Simd>(&mut self, s: S) -> bool {
        let mut any = false;
        for (row, masses) in self.masses.chunks_exact(self.width).enumerate() {
            let mut heaviest = s.zero();
            for masses in masses.as_chunks::<LANES>().0 {
                heaviest = s.max(s.load(masses), heaviest);
            }
            if s.reduce_max(heaviest) > HEAVIEST {
                self.raised[row] += RAISE;
                any = true;
            }
        }
        any
    }

    /// Sums the masses of a row's blocks. Returns false if a mass is not a number or too large.
    #[inline(always)]
    pub(super) fn sum_masses<S: Simd>(&mut self, s: S, row: usize) -> bool {
        let part = row * self.width..(row + 1) * self.width;
        let masses = self.masses[part.clone()].as_chunks::<LANES>().0;
        let upper = self.upper[part].as_chunks_mut::<LANES>().0;
        let [mut estimate, mut lower, mut all] = [s.zero(); 3];
        for (mass, upper) in masses.iter().zip(upper) {
            let (mass, log_error) = (s.load(mass), s.load(upper));
            let above = s.mul(mass, simd::exp(s, log_error));
            estimate = s.add(estimate, mass);
            let sure = s.select_lt(mass, s.splat(LIGHTEST), s.zero(), mass);
            lower = s.fma(sure, simd::exp(s, s.sub(s.zero(), log_error)), lower);
            all = s.add(all, above);
            s.store(above, upper);
        }
        self.sum_estimate[row] = s.reduce_add(estimate) + self.current[row];
        self.sum_lower[row] = s.reduce_add(lower) + self.current[row];
        // A NaN fails every comparison. A million blocks up to HEAVIEST are below the second limit; a block that is
        // too heavy after all estimates may be infinite and is above it.
        self.sum_lower[row] > 0.0
            && self.sum_estimate[row] < 1e6 * HEAVIEST
            && s.reduce_add(all) < f32::INFINITY
    }

    /// Number of selected blocks among `blocks`.
    #[inline(always)]
    pub(super) fn num_selected(&self, blocks: Range<usize>) -> usize {
        self.selected[blocks].iter().filter(|read| **read).count()
    }

    /// The mass that a row omits: maximum and estimate.
    #[inline(always)]
    pub(super) fn omitted_mass<S: Simd>(&self, s: S, row: usize) -> (f64, f64) {
        let part = row * self.width..(row + 1) * self.width;
        let masses = self.masses[part.clone()].as_chunks::<LANES>().0;
        let (mut max, mut estimate) = (s.zero(), s.zero());
        let omitted = self.omitted.as_chunks::<LANES>().0;
        for ((mass, above), omitted) in
            masses.iter().zip(self.upper[part].as_chunks::<LANES>().0).zip(omitted)
        {
            max = s.fma(s.load(above), s.load(omitted), max);
            estimate = s.fma(s.load(mass), s.load(omitted), estimate);
        }
        (f64::from(s.reduce_add(max)), f64::from(s.reduce_add(estimate)))
    }

    /// Selects all but the lightest `blocks` of a row, which together have at most `bound` of its mass.
    #[inline(always)]
    pub(super) fn select_by_bound(&mut self, row: usize, blocks: Range<usize>, bound: f32) {
        let upper = &self.upper[row * self.width..][blocks.clone()];
        select_heavy(upper, self.sum_lower[row], &mut self.selected[blocks], bound);
    }

    /// As `select_by_bound`, by estimates.
    #[inline(always)]
    pub(super) fn select_by_estimate(&mut self, row: usize, blocks: Range<usize>, bound: f32) {
        let masses = &self.masses[row * self.width..][blocks.clone()];
        select_heavy(masses, self.sum_estimate[row], &mut self.selected[blocks], bound);
    }

    /// Selects the `count` heaviest of the `blocks` not yet selected, by their largest share of the mass of any row.
    /// Of equal blocks the first comes first.
    #[inline(always)]
    pub(super) fn select_heaviest(&mut self, rows: Range<usize>, blocks: Range<usize>, count: usize) {
        let share = |block: usize| {
            let of = |row: usize| self.masses[row * self.width + block] / self.sum_estimate[row];
            rows.clone().map(of).fold(0.0, f32::max)
        };
        let mut optional: Vec<(f32, usize)> =
            blocks.filter(|&block| !self.selected[block]).map(|block| (share(block), block)).collect();
        optional.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for &(_, block) in optional.iter().take(count) {
            self.selected[block] = true;
        }
    }
}

/// Selects all but the lightest blocks, whose `masses` together are at most `bound` of `total`.
///
/// Masses are binned by exponent and two bits of the mantissa instead of sorted:
///
/// ```text
///     bucket    0          1         ...   cut        ...   BUCKETS - 1
///               heaviest                   | omitted: sum <= bound * total
/// ```
#[inline(always)]
fn select_heavy(shares: &[f32], total: f32, selected: &mut [bool], bound: f32) {
    // Bucket 0 has the exponent and mantissa bits of the whole mass.
    let (top, bits) = (total.to_bits() >> 21, |share: f32| share.to_bits() >> 21);
    // Four sums a bucket: neighbours often fall into one bucket, and one sum would wait for the other.
    let mut masses = [[0.0_f32; BUCKETS]; 4];
    for (n, (&share, &selected)) in shares.iter().zip(&*selected).enumerate() {
        let bucket = (top.saturating_sub(bits(share)) as usize).min(BUCKETS - 1);
        masses[n % 4][bucket] += if selected { 0.0 } else { share };
    }
    let in_bucket =
        |bucket: usize| (masses[0][bucket] + masses[1][bucket]) + (masses[2][bucket] + masses[3][bucket]);
    let (mut cut, mut left_out) = (BUCKETS, 0.0);
    while cut > 0 && left_out + in_bucket(cut - 1) <= bound * total {
        cut -= 1;
        left_out += in_bucket(cut);
    }
    // The last bucket also holds all lighter masses: if it is not omitted, everything is selected.
    let from = if cut == BUCKETS { 0 } else { (top + 1).saturating_sub(cut as u32) };
    for (selected, &share) in selected.iter_mut().zip(shares) {
        *selected |= bits(share) >= from;
    }
}

impl<E: KvElement> DynamicTask<'_, E> {
    /// Selects the blocks that the query at `index` reads.
    #[inline(always)]
    pub(super) fn select<S: Simd>(&self, s: S, selector: &mut BlockSelector, index: usize, slack: f32) {
        let (first, _) = self.span();
        let (optional, rows) = (self.optional(index), self.rows(index));
        let mut known = true;
        for row in rows.clone() {
            known &= selector.sum_masses(s, row);
        }
        let always = self.select_always(selector, optional.clone());
        // Blocks that one query head selects are read for all heads of the group.
        for row in rows.clone() {
            match self.params.mode {
                // Reading everything carries what is not a number into the output.
                _ if !known => selector.selected[optional.clone()].fill(true),
                Mode::Estimated => {
                    selector.select_by_estimate(row, optional.clone(), self.bound() / ESTIMATE_MARGIN);
                }
                _ => selector.select_by_bound(row, optional.clone(), self.bound() / slack),
            }
        }
        let limited = self.params.mode == Mode::Budget;
        let max = always.saturating_add(self.params.max_blocks);
        if known && limited && selector.num_selected(optional.clone()) > max {
            self.select_always(selector, optional.clone());
            selector.select_heaviest(rows, optional.clone(), self.params.max_blocks);
        }
        let read = selector.num_selected(optional.clone());
        if !limited && read as f32 > DENSE_ABOVE * optional.len() as f32 {
            selector.selected[optional.clone()].fill(true);
        }
        selector.omitted.fill(0.0);
        for block in optional.clone() {
            selector.omitted[block] = if selector.selected[block] { 0.0 } else { 1.0 };
        }
        selector.blocks.clear();
        for block in optional.start..=optional.end {
            if selector.omitted[block] == 0.0 {
                selector.blocks.push(first + block);
            }
        }
    }

    /// Selects the blocks that are always read, and no others. Returns their number among `optional`.
    #[inline(always)]
    fn select_always(&self, selector: &mut BlockSelector, optional: Range<usize>) -> usize {
        let (first, _) = self.span();
        selector.selected.fill(false);
        let sinks = self.params.sink_blocks.saturating_sub(first).min(optional.end);
        selector.selected[..sinks].fill(true);
        selector.selected[optional.end.saturating_sub(self.params.local_blocks)..optional.end].fill(true);
        selector.num_selected(optional)
    }
}
