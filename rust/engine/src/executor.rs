//! The executor interface: a step plan in, sampled tokens and rows of logits (or hidden states) out.

use std::ops::Range;
use std::sync::Arc;

use octavo_kernels::Kernels;
use octavo_model::BlockLayout;
use octavo_scheduler::{AttentionPolicy, StepPlan};

use crate::adapters::{AdapterBackend, PackedAdapter};
use crate::report::Report;
use crate::sampling::{SampleSpec, SampledToken};

/// Rows of logits that the engine reads at once: enough to fill the sampling threads, few enough to bound the memory.
pub const ROWS_PER_READ: usize = 32;

/// Error of a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The requests of this step fail; the executor goes on.
    #[error("{0}")]
    Step(String),
    /// The executor cannot go on; all requests fail.
    #[error("{0}")]
    Dead(String),
}

/// Fixed properties of an executor.
#[derive(Clone)]
pub struct ExecutorInfo {
    /// Length of a row of logits.
    pub vocab_size: usize,
    /// Length of a row of hidden states; None: the executor has logits only, and its engine rejects embeddings.
    pub hidden_size: Option<usize>,
    /// Whether the executor samples `StepInput::samples`; else the list is empty.
    pub samples_on_device: bool,
    /// Steps that may be submitted before the oldest one is waited for: 1 or 2. With 2, `submit` returns at once and
    /// takes the tokens of `plan.placeholders` from the samples of the step before.
    pub max_in_flight: usize,
    /// Whether plans name open blocks: for an int8 cache.
    pub open_blocks: bool,
    /// Attention of requests that ask for no other.
    pub attention: AttentionPolicy,
    /// Whether attention keeps to the policy's bound; else requests may not ask for another one.
    pub bounds_attention: bool,
    /// Kernels with which rows are sampled. An executor shares its own, and with them its threads.
    pub kernels: Arc<Kernels>,
}

/// One step: what to compute and what to sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepInput {
    /// The batch.
    pub plan: StepPlan,
    /// Sequences whose token the executor samples from the last row, in order of `seq`.
    pub samples: Vec<SampleSpec>,
    /// The distinct adapters of the batch by `PlanSeq::adapter`, pinned as long as the step is held.
    pub adapters: Vec<(u32, PackedAdapter)>,
}

/// Names a submitted step. Steps are waited for in the order of their submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Result of a step, beside its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One token for each of `StepInput::samples`, in order; None: the logits were not numbers.
    pub sampled: Vec<Option<SampledToken>>,
    /// One report for each sequence of the plan, in order; or none at all.
    pub reports: Vec<Report>,
}

/// Computes steps. Keeps no state of requests besides the KV pool.
pub trait Executor: Send {
    /// Fixed properties.
    fn info(&self) -> ExecutorInfo;

    /// What loads adapters for it; None: it takes none. Asked for once, before the first step.
    fn adapters(&self) -> Option<Arc<dyn AdapterBackend>> {
        None
    }

    /// Starts a step: makes the plan's block copies, then runs its tokens. The CPU runs the whole step here.
    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError>;

    /// Waits until the oldest submitted step, which is `ticket`, is done.
    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, StepError>;

    /// How the bytes of a block are laid out; None: the executor does not export blocks. One that does runs one step at a
    /// time.
    fn block_layout(&self) -> Option<BlockLayout> {
        None
    }

    /// Appends the bytes of a full block to `layers`, one list for each layer.
    fn export_block(&mut self, _block: u32, _layers: &mut [Vec<u8>]) -> Result<(), StepError> {
        Err(StepError::Step("this device exports no KV blocks".into()))
    }

    /// Fills blocks of one layer with such bytes, one block after the other.
    fn import_blocks(&mut self, _layer: usize, _blocks: &[u32], _bytes: &[u8]) -> Result<(), StepError> {
        Err(StepError::Step("this device imports no KV blocks".into()))
    }

    /// Writes `[rows, vocab_size]` logits, or `[rows, hidden_size]` hidden states, to `out`. `rows` is a range of
    /// `StepInput::rows` of the step last waited for; all of its rows have the same `Output`.
    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError>;
}

impl StepInput {
    /// Rows whose logits or hidden states are read, in plan order: (index into `plan.seqs`, row of its chunk). Sequences
    /// that the executor samples have none.
    pub fn rows(&self) -> impl Iterator<Item = (usize, u32)> {
        let sampled = |i: usize| self.samples.binary_search_by_key(&(i as u32), |s| s.seq).is_ok();
        let seqs = self.plan.seqs.iter().enumerate().filter(move |(i, _)| !sampled(*i));
        seqs.flat_map(|(i, seq)| seq.sample_rows().map(move |row| (i, row)))
    }
}
