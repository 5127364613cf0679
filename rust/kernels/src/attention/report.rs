//! What queries may leave out, and what they say of it.

use super::int8::{bytes_per_head, plane, value_bytes_per_head};
use super::rows::ROWS_PER_TASK;
use super::{AttentionParams, BLOCK_SIZE, SeqView};
use crate::simd::LANES;

/// What decides how much a query leaves out. The bound on it is reported in every mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is proven to be within the caller's bound.
    #[default]
    Certified,
    /// It is estimated to be within the caller's bound, from less of the keys.
    Estimated,
    /// As `Certified`, as long as no more than `max_blocks` are read: whatever that leaves out.
    Budget,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 3] = [Mode::Certified, Mode::Estimated, Mode::Budget];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Certified => "certified",
            Mode::Estimated => "estimated",
            Mode::Budget => "budget",
        }
    }
}

/// How much a query may leave out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicParams {
    /// What `error_bound` is compared with.
    pub mode: Mode,
    /// Most softmax mass that a query head may leave out, 0 to 1.
    pub error_bound: f32,
    /// Queries that see fewer tokens read everything.
    pub min_context: usize,
    /// First blocks of the sequence that are always read.
    pub sink_blocks: usize,
    /// Blocks before the query's own that are always read.
    pub local_blocks: usize,
    /// With [`Mode::Budget`], and there only: most blocks that a query reads for its KV head beside those that are always read.
    pub max_blocks: usize,
    /// Queries at positions that are multiples of this are also answered by reading everything, and compared; 0: none.
    pub audit: usize,
}

impl Default for DynamicParams {
    fn default() -> Self {
        Self {
            mode: Mode::Certified,
            error_bound: 1e-2,
            min_context: 4096,
            sink_blocks: 1,
            local_blocks: 2,
            max_blocks: usize::MAX,
            audit: 0,
        }
    }
}

impl DynamicParams {
    /// Bytes that a thread holds at most for the masses of blocks, for `group` query heads a KV head.
    pub fn buffer_bytes(group: usize, context_len: usize) -> usize {
        let (rows, blocks) = (group.max(ROWS_PER_TASK), context_len.div_ceil(BLOCK_SIZE));
        2 * rows * blocks.next_multiple_of(LANES) * size_of::<f32>()
    }

    /// How many of a sequence's queries see too few tokens to choose: the first ones.
    pub(super) fn dense_queries(&self, seq: &SeqView<'_>, params: &AttentionParams) -> usize {
        if params.window.is_some_and(|window| (window as usize) < self.min_context) {
            return seq.query_len;
        }
        // The query at position p sees p + 1 tokens.
        self.min_context.saturating_sub(seq.context_len - seq.query_len + 1).min(seq.query_len)
    }
}

/// What queries read and left out. A *call* is one query of one query head in one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AttentionReport {
    /// Calls.
    pub calls: u64,
    /// Those of them that read everything.
    pub dense_calls: u64,
    /// int8 blocks that queries saw, over queries and KV heads.
    pub blocks: u64,
    /// Those of them whose values were read.
    pub value_blocks: u64,
    /// Bytes of keys and values that were read of these blocks.
    pub bytes_read: u64,
    /// Bytes that reading everything would have taken.
    pub bytes_dense: u64,
    /// Largest bound on the omitted mass of a call.
    pub max_omitted_mass: f32,
    /// Sum of those bounds.
    pub sum_omitted_mass: f64,
    /// Largest estimate of the omitted mass of a call.
    pub max_estimated_mass: f32,
    /// Sum of those estimates.
    pub sum_estimated_mass: f64,
    /// Largest bound on the error of an output, as the norm of its difference from the exact one.
    pub max_output_error: f32,
    /// What decided.
    pub mode: Mode,
    /// Calls that were compared with reading everything.
    pub audited_calls: u64,
    /// Those of them that were further off than they said. Their output is the one that reads everything.
    pub violations: u64,
    /// Largest mass that an audited call had left out.
    pub max_audited_mass: f32,
    /// Largest error of an audited call's output.
    pub max_audited_error: f32,
}

impl AttentionReport {
    /// The report as named numbers. Names that begin with `max_` merge by maximum, all others by addition.
    pub fn numbers(&self) -> [(&'static str, f64); 16] {
        [
            ("calls", self.calls as f64),
            ("dense_calls", self.dense_calls as f64),
            ("blocks", self.blocks as f64),
            ("value_blocks", self.value_blocks as f64),
            ("bytes_read", self.bytes_read as f64),
            ("bytes_dense", self.bytes_dense as f64),
            ("max_omitted_mass", f64::from(self.max_omitted_mass)),
            ("sum_omitted_mass", self.sum_omitted_mass),
            ("max_estimated_mass", f64::from(self.max_estimated_mass)),
            ("sum_estimated_mass", self.sum_estimated_mass),
            ("max_output_error", f64::from(self.max_output_error)),
            ("max_mode", f64::from(self.mode as u8)),
            ("audited_calls", self.audited_calls as f64),
            ("violations", self.violations as f64),
            ("max_audited_mass", f64::from(self.max_audited_mass)),
            ("max_audited_error", f64::from(self.max_audited_error)),
        ]
    }

    /// Counts a query of `group` heads that saw `blocks` blocks, with both halves of their keys' codes or but the high ones, and read some.
    pub(super) fn count(&mut self, group: usize, blocks: usize, read: usize, head_dim: usize, halves: bool) {
        let all = bytes_per_head(head_dim);
        let later = value_bytes_per_head(head_dim) + if halves { 0 } else { plane(head_dim) };
        self.calls += group as u64;
        self.blocks += blocks as u64;
        self.value_blocks += read as u64;
        self.bytes_read += (blocks * (all - later) + read * later) as u64;
        self.bytes_dense += (blocks * all) as u64;
    }

    /// Takes in what a call left out: at most, about, and what that can do to its output.
    pub(super) fn leave_out(&mut self, bound: f64, estimate: f64, output_error: f32) {
        self.sum_omitted_mass += bound;
        self.max_omitted_mass = self.max_omitted_mass.max(bound as f32);
        self.sum_estimated_mass += estimate;
        self.max_estimated_mass = self.max_estimated_mass.max(estimate as f32);
        self.max_output_error = self.max_output_error.max(output_error);
    }

    /// Takes `other` in.
    pub fn add(&mut self, other: &AttentionReport) {
        self.calls += other.calls;
        self.dense_calls += other.dense_calls;
        self.blocks += other.blocks;
        self.value_blocks += other.value_blocks;
        self.bytes_read += other.bytes_read;
        self.bytes_dense += other.bytes_dense;
        self.max_omitted_mass = self.max_omitted_mass.max(other.max_omitted_mass);
        self.sum_omitted_mass += other.sum_omitted_mass;
        self.max_estimated_mass = self.max_estimated_mass.max(other.max_estimated_mass);
        self.sum_estimated_mass += other.sum_estimated_mass;
        self.max_output_error = self.max_output_error.max(other.max_output_error);
        self.mode = self.mode.max(other.mode);
        self.audited_calls += other.audited_calls;
        self.violations += other.violations;
        self.max_audited_mass = self.max_audited_mass.max(other.max_audited_mass);
        self.max_audited_error = self.max_audited_error.max(other.max_audited_error);
    }
}
