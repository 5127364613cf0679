//! State of a task.

use half::bf16;

use super::block_ops::GROUP_ROWS;
use super::int8_scores::RoundedQueries;
use super::kv_cache::{KvElement, KvSource, padded};
use super::params::BLOCK_SIZE;
use super::task::AttentionTask;
use crate::simd::LANES;

/// State of the online softmax of a task's rows, and buffers.
///
/// After some blocks, `acc / sum` is a row's output over these blocks, and `sum` its sum of e^(score - reference).
#[derive(Default)]
pub(super) struct SoftmaxState {
    /// Scaled queries, `[rows][padded head_dim]`.
    pub(super) q: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[rows][padded head_dim]`.
    pub(super) acc: Vec<[f32; LANES]>,
    /// Score to which a row's weights are relative: its largest score, or one at most `RESCALE_THRESHOLD` below it.
    pub(super) reference: Vec<f32>,
    /// Sums of weights, 16 chains a row.
    pub(super) sum: Vec<[f32; LANES]>,
    /// Scores of the current row group in the current block.
    pub(super) scores: [[f32; BLOCK_SIZE]; GROUP_ROWS],
    /// Largest |q * step| of each row over the int8 blocks read so far.
    pub(super) peaks: Vec<f32>,
    /// Largest |q| of each row in vectors v, v + 16, ... of channels at lane v; for estimates.
    pub(super) q_peaks: Vec<[f32; LANES]>,
    /// Queries rounded to integers, for int8 blocks.
    pub(super) rounded: RoundedQueries,
}

impl SoftmaxState {
    /// Resets the state for a task, and loads its queries times `scale`.
    #[inline(always)]
    pub(super) fn start<E: KvElement>(&mut self, task: &AttentionTask<'_, E>) {
        let (head_dim, group) = (task.params.head_dim, task.group());
        let rows = task.num_rows();
        let vectors = padded(head_dim) / LANES;
        self.q.clear();
        self.q.resize(rows * vectors, [0.0; LANES]);
        for (row, scaled) in self.q.chunks_exact_mut(vectors).enumerate() {
            let token = task.seq.query_start + task.first + row / group;
            let head = task.kv_head * group + row % group;
            let q = &task.q[token * task.q_stride + head * head_dim..][..head_dim];
            scaled.as_flattened_mut().iter_mut().zip(q).for_each(|(to, x)| *to = x * task.params.scale);
            if task.rounds() {
                scaled.as_flattened_mut().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
        }
        self.acc.clear();
        self.acc.resize(rows * vectors, [0.0; LANES]);
        if let KvSource::Int8 { .. } = task.source {
            self.rounded.resize(vectors);
        }
        self.peaks.clear();
        self.peaks.resize(rows, 0.0);
        self.reference.clear();
        self.reference.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, [0.0; LANES]);
    }
}
