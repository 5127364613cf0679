//! Error bounds of dynamic attention's calls.
//!
//! ```text
//!     omitted    = sum over omitted blocks of estimate * e^log_error      maximum, from the selector
//!     kept       = sum of e^score over the blocks that were read          exact, from the softmax state
//!     mass       = omitted / (omitted + kept) * slack                     slack: rounding of scores and sums
//!     error      = mass * (max |omitted value| + |output|)
//! ```

use super::super::block_ops::TOKEN_OFFSETS;
use super::super::int8_scores::score_error;
use super::super::kv_cache::{BlockView, HALVES, KvElement, KvSource, padded};
use super::super::params::BLOCK_SIZE;
use super::super::state::SoftmaxState;
use super::report::{AttentionReport, ErrorBound};
use super::select::BlockSelector;
use super::task::DynamicTask;
use crate::simd::{LANES, Simd};

/// Bound on the relative error of exponentials and of sums of some hundred thousand of them.
const SUM_SLACK: f32 = 1e-3;
/// Half a unit in the last place of 1: the relative error of one rounding.
const ROUNDING: f32 = 6e-8;
/// Maximum error of [`tanh`](crate::simd::tanh).
const TANH_ERROR: f32 = 4e-7;

impl<E: KvElement> DynamicTask<'_, E> {
    /// Factor by which the omitted mass of any query head at a position may exceed the computed one, by rounding.
    #[inline(always)]
    pub(super) fn slack<S: Simd>(&self, s: S, state: &SoftmaxState, index: usize) -> f32 {
        let task = &self.task;
        let (head_dim, vectors) = (task.params.head_dim, padded(task.params.head_dim) / LANES);
        let current = self.current_block(index);
        let visible = task.position(index) % BLOCK_SIZE + 1;
        // A score's rounding error is proportional to the sum of its terms' magnitudes: at most reach * |query|.
        let mut reach = open_reach(s, &task.block_view(current, true), visible);
        if let KvSource::Int8 { blocks, .. } = task.source {
            for block in self.first_block(index)..current {
                reach = reach.max(blocks.key_reach[task.block_head(block)]);
            }
        }
        let norms = self.rows(index).map(|row| norm(s, &state.q[row * vectors..(row + 1) * vectors]));
        let query = norms.fold(0.0, f32::max);
        // A chain over the channels, one of q . lo, the fold of its lanes, and the rounding of q itself.
        let roundings = 1.1 * head_dim as f32 + 16.0;
        let cap = task.params.softcap.map_or(0.0, |cap| TANH_ERROR * cap);
        let peak = state.peaks[self.rows(index)].iter().fold(0.0, |a, &b| f32::max(a, b));
        let rounded = score_error(head_dim, vectors * LANES, peak);
        // Scores are off by at most `error`, so ratios of their exponentials by e^(2 error).
        let error = roundings * ROUNDING * reach * query + rounded + cap;
        (1.0 + SUM_SLACK) * (2.0 * error).exp()
    }

    /// Computes the error bounds of the query at `index`, and adds its calls to the report.
    #[inline(always)]
    pub(super) fn certify<S: Simd>(
        &self,
        s: S,
        state: &SoftmaxState,
        selector: &mut BlockSelector,
        index: usize,
        slack: f32,
        report: &mut AttentionReport,
    ) {
        let (first, _) = self.span();
        let (task, group) = (&self.task, self.task.group());
        let visible = self.current_block(index) - self.first_block(index);
        let read = selector.blocks.len() - 1;
        report.add_query(group, visible, read, task.params.head_dim, self.low_nibbles());
        selector.bounds.clear();
        if read == visible {
            report.dense_calls += group as u64;
            selector.bounds.resize(group, ErrorBound::default());
            return;
        }
        let mut max_value_norm = 0.0_f32;
        if let KvSource::Int8 { blocks, .. } = task.source {
            for block in self.optional(index).filter(|&block| !selector.selected[block]) {
                max_value_norm = max_value_norm.max(blocks.max_value_norm[task.block_head(first + block)]);
            }
        }
        let vectors = padded(task.params.head_dim) / LANES;
        for (head, row) in self.rows(index).enumerate() {
            let (max, estimate) = selector.omitted_mass(s, row);
            let sum = s.reduce_add(s.load(&state.sum[head]));
            // Masses and sums are relative to different references.
            let shift = f64::from(state.reference[head]) - f64::from(selector.references[row]);
            let kept = f64::from(sum) * shift.exp();
            let bound = (max / (max + kept) * f64::from(slack)).min(1.0);
            let output = norm(s, &state.acc[head * vectors..(head + 1) * vectors]) / sum;
            let error = bound as f32 * (max_value_norm + output) * (1.0 + SUM_SLACK);
            report.add_call(bound, estimate / (estimate + kept), error);
            selector.bounds.push(ErrorBound { mass: bound as f32, output_error: error, max_value_norm });
        }
    }
}

/// Norm of a row, rounded up.
#[inline(always)]
fn norm<S: Simd>(s: S, row: &[[f32; LANES]]) -> f32 {
    let mut squares = s.zero();
    for part in row {
        squares = s.fma(s.load(part), s.load(part), squares);
    }
    s.reduce_add(squares).sqrt() * (1.0 + SUM_SLACK)
}

/// As `key_reach` of int8 blocks, for the first `visible` tokens of a block of floats: the norm of the channels'
/// largest magnitudes. Later tokens may hold anything.
#[inline(always)]
fn open_reach<S: Simd, E: KvElement>(s: S, view: &BlockView<'_, E>, visible: usize) -> f32 {
    let BlockView::Float { keys, .. } = view else { return 0.0 };
    let visible = s.splat(visible as f32);
    let mut squares = 0.0_f32;
    for channel in 0..keys.len() / HALVES {
        let mut largest = s.zero();
        for (half, offsets) in TOKEN_OFFSETS.as_chunks::<LANES>().0.iter().enumerate() {
            let key = s.select_lt(s.load(offsets), visible, E::key(s, keys, channel, half), s.zero());
            largest = s.max(s.abs(key), largest);
        }
        let largest = s.reduce_max(largest);
        squares += largest * largest;
    }
    squares.sqrt() * (1.0 + SUM_SLACK)
}
