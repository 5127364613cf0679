//! Parameters and reports of dynamic attention.

use super::super::block_ops::ROWS_PER_TASK;
use super::super::kv_cache::{bytes_per_head, plane, value_bytes_per_head};
use super::super::params::{AttentionParams, BLOCK_SIZE, SeqView};
use crate::simd::LANES;

/// The rule by which a query omits blocks. The bound on the omitted mass is reported in every mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The omitted mass is proven to be within `error_bound`.
    #[default]
    Certified,
    /// The omitted mass is estimated to be within `error_bound`, from the high nibbles of the keys.
    Estimated,
    /// As `Certified`, but at most `max_blocks` are read, and the omitted mass may exceed `error_bound`.
    Budget,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 3] = [Mode::Certified, Mode::Estimated, Mode::Budget];

    /// The name in options and results.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Certified => "certified",
            Mode::Estimated => "estimated",
            Mode::Budget => "budget",
        }
    }
}

/// How much a query may omit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicParams {
    /// The rule.
    pub mode: Mode,
    /// Maximum softmax mass that a query head may omit, 0 to 1.
    pub error_bound: f32,
    /// Queries that see fewer tokens read everything.
    pub min_context: usize,
    /// First blocks of the sequence that are always read.
    pub sink_blocks: usize,
    /// Blocks before the query's current block that are always read.
    pub local_blocks: usize,
    /// [`Mode::Budget`] only: maximum number of blocks that a query reads for its KV head beside those always read.
    pub max_blocks: usize,
    /// Queries at positions that are multiples of this are audited: compared with dense attention. 0: none.
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
    /// Maximum bytes of a thread's buffers for masses of blocks, for `group` query heads a KV head.
    pub fn buffer_bytes(group: usize, context_len: usize) -> usize {
        let (rows, blocks) = (group.max(ROWS_PER_TASK), context_len.div_ceil(BLOCK_SIZE));
        2 * rows * blocks.next_multiple_of(LANES) * size_of::<f32>()
    }

    /// Number of a sequence's first queries that see too few tokens to omit any.
    pub(super) fn dense_queries(&self, seq: &SeqView<'_>, params: &AttentionParams) -> usize {
        if params.window.is_some_and(|window| (window as usize) < self.min_context) {
            return seq.query_len;
        }
        // The query at position p sees p + 1 tokens.
        self.min_context.saturating_sub(seq.context_len - seq.query_len + 1).min(seq.query_len)
    }
}

/// Error bound of a call: one query of one query head in one layer.
#[derive(Clone, Copy, Default)]
pub(super) struct ErrorBound {
    /// Maximum omitted softmax mass.
    pub(super) mass: f32,
    /// Maximum norm of the output's error.
    pub(super) output_error: f32,
    /// Maximum norm of an omitted value.
    pub(super) max_value_norm: f32,
}

/// Counts and error bounds of some calls. A *call* is one query of one query head in one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AttentionReport {
    /// Number of calls.
    pub calls: u64,
    /// Calls that read everything.
    pub dense_calls: u64,
    /// int8 blocks visible to queries, summed over queries and KV heads.
    pub blocks: u64,
    /// Blocks whose values were read.
    pub value_blocks: u64,
    /// Bytes of keys and values read of these blocks.
    pub bytes_read: u64,
    /// Bytes of keys and values of all these blocks.
    pub bytes_dense: u64,
    /// Maximum bound on the omitted mass of a call.
    pub max_omitted_mass: f32,
    /// Sum of those bounds.
    pub sum_omitted_mass: f64,
    /// Maximum estimate of the omitted mass of a call.
    pub max_estimated_mass: f32,
    /// Sum of those estimates.
    pub sum_estimated_mass: f64,
    /// Maximum bound on the norm of an output's error.
    pub max_output_error: f32,
    /// The rule of the calls.
    pub mode: Mode,
    /// Audited calls: compared with dense attention.
    pub audited_calls: u64,
    /// Audited calls whose error exceeded the reported bound. Their output is the dense one.
    pub violations: u64,
    /// Maximum omitted mass of an audited call.
    pub max_audited_mass: f32,
    /// Maximum output error of an audited call.
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

    /// Counts a query of `group` heads that sees `blocks` blocks and reads `read` of them. The estimate reads all
    /// bits of keys, or without `low_nibbles` the high nibbles.
    pub(super) fn add_query(
        &mut self,
        group: usize,
        blocks: usize,
        read: usize,
        head_dim: usize,
        low_nibbles: bool,
    ) {
        let all = bytes_per_head(head_dim);
        let later = value_bytes_per_head(head_dim) + if low_nibbles { 0 } else { plane(head_dim) };
        self.calls += group as u64;
        self.blocks += blocks as u64;
        self.value_blocks += read as u64;
        self.bytes_read += (blocks * (all - later) + read * later) as u64;
        self.bytes_dense += (blocks * all) as u64;
    }

    /// Adds a call's omitted mass, as bound and as estimate, and its output error bound.
    pub(super) fn add_call(&mut self, bound: f64, estimate: f64, output_error: f32) {
        self.sum_omitted_mass += bound;
        self.max_omitted_mass = self.max_omitted_mass.max(bound as f32);
        self.sum_estimated_mass += estimate;
        self.max_estimated_mass = self.max_estimated_mass.max(estimate as f32);
        self.max_output_error = self.max_output_error.max(output_error);
    }

    /// Adds another report.
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

/// Choices of dynamic attention for the sequences of a call, and their reports.
#[derive(Debug)]
pub struct Selection<'a> {
    /// For each sequence, how much its queries may omit.
    pub choices: &'a [DynamicParams],
    /// For each sequence, a report, to which this call adds.
    pub reports: &'a mut [AttentionReport],
}

/// Selections of the calls of a step: all layers add to the same reports.
#[derive(Debug)]
pub struct Selector {
    params: DynamicParams,
    choices: Vec<DynamicParams>,
    reports: Vec<AttentionReport>,
}

impl Selector {
    /// A selector with these parameters; steps set the bound of each sequence.
    pub fn new(params: DynamicParams) -> Self {
        Self { params, choices: Vec::new(), reports: Vec::new() }
    }

    /// Maximum softmax mass that a query head omits, unless a step says otherwise.
    pub fn bound(&self) -> f32 {
        self.params.error_bound
    }

    /// Whether calls keep to their bound; in budget mode they do not.
    pub fn is_bounded(&self) -> bool {
        self.params.mode != Mode::Budget
    }

    /// Begins a step with one bound for each sequence.
    pub fn begin(&mut self, bounds: impl Iterator<Item = f32>) {
        let params = self.params;
        self.choices.clear();
        self.choices.extend(bounds.map(|error_bound| DynamicParams { error_bound, ..params }));
        self.reports.clear();
        self.reports.resize(self.choices.len(), AttentionReport::default());
    }

    /// The selection for one call of the step.
    pub fn selection(&mut self) -> Selection<'_> {
        Selection { choices: &self.choices, reports: &mut self.reports }
    }

    /// Reports of the step, one for each sequence, as named numbers.
    pub fn reports(&self) -> impl Iterator<Item = [(&'static str, f64); 16]> {
        self.reports.iter().map(AttentionReport::numbers)
    }
}
