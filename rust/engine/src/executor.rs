//! The seam between the engine and what computes: a step plan in, rows of logits (or hidden states) out.

use std::sync::Arc;

use octavo_kernels::{AttentionReport, Kernels};
use octavo_scheduler::StepPlan;

use crate::sampling::Logprob;

/// What a failed step means for the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The requests of this step fail; the executor goes on.
    #[error("{0}")]
    Step(String),
    /// The executor cannot go on; all requests fail.
    #[error("{0}")]
    Dead(String),
}

/// Receives blocks of rows: for each row (index into `plan.seqs`, row of that sequence's chunk), and their logits
/// `[rows, vocab]`. The more rows come at once, the better they fill the threads that sample. A block of sequences whose
/// output is `Output::Hidden` has hidden states `[rows, hidden]` behind the last norm instead.
pub type RowSink<'a> = dyn FnMut(&[(usize, u32)], &[f32]) + 'a;

/// How the token of a sequence is drawn where its logits need no other processing. The layout is C's, and has no gaps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Draw {
    /// Index into `plan.seqs`.
    pub seq: u32,
    /// Which sample of the request.
    pub sample: u32,
    /// Tokens that the sample has so far.
    pub position: u32,
    /// Number of candidates; 0: all.
    pub top_k: u32,
    /// Seed of the request.
    pub seed: u64,
    /// A number in [0, 1) that depends on seed, sample and position only: the draw.
    pub uniform: f64,
    /// 0: greedy.
    pub temperature: f32,
    /// Smallest set of tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Candidates have at least this share of the best one's probability.
    pub min_p: f32,
    /// Candidates whose log-probabilities are wanted beside the token's own; below 0: not even that.
    pub logprobs: i32,
}

/// What an executor gives for rows that the plan asks for.
pub enum RowOutcome<'a> {
    /// A block of rows, as [`RowSink`] takes it.
    Rows(&'a [(usize, u32)], &'a [f32]),
    /// A token that the executor drew from the last row of a sequence, as a `Draw` asked.
    Drawn {
        /// Index into `plan.seqs`.
        seq: usize,
        /// None: the logits were not numbers.
        token: Option<u32>,
        /// The token's log-probability and the candidates', as the engine's own sampler gives them; empty if not asked for.
        logprobs: Vec<Logprob>,
    },
}

/// Receives what came of rows.
pub type OutcomeSink<'a> = dyn FnMut(RowOutcome<'_>) + 'a;

/// What an executor's attention keeps to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionBound {
    /// Attention is dense: nothing is left out.
    Exact,
    /// At most this softmax mass is left out, by proof or by estimate, or less where a request says so.
    Within(f32),
    /// What is left out is told, and not bounded.
    Told,
}

/// Computes steps. Keeps no state of requests besides the KV pool.
pub trait Executor: Send {
    /// Size of the hidden states; None: this executor has logits only, and its engine refuses embeddings.
    fn hidden_size(&self) -> Option<usize> {
        None
    }

    /// Makes the plan's block copies, runs its tokens, and hands each row that the plan asks for to `sink`, those of one
    /// sequence in order.
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError>;

    /// What attention keeps to.
    fn attention_bound(&self) -> AttentionBound {
        AttentionBound::Exact
    }

    /// What attention read and left out for each sequence of the last step; empty if it is dense.
    fn attention_reports(&self) -> &[AttentionReport] {
        &[]
    }

    /// Called after every step: forgets what is kept beside the KV blocks for which `held` says no. Such a block belongs to
    /// nobody; it may be handed out again, empty, at any time.
    fn release_blocks(&mut self, held: &dyn Fn(u32) -> bool) {
        let _ = held;
    }

    /// Whether `begin` and `finish` heed `draws`.
    fn draws(&self) -> bool {
        false
    }

    /// Whether a step may begin while the one before it runs. `begin` then returns at once, takes the tokens that the plan
    /// awaits from the draws of the step before, and may come once more before `finish`.
    fn overlaps(&self) -> bool {
        false
    }

    /// Begins a step: the first half of `finish`, for executors that run beside their caller.
    fn begin(&mut self, plan: &Arc<StepPlan>, draws: &Arc<Vec<Draw>>) -> Result<(), StepError> {
        let _ = (plan, draws);
        Ok(())
    }

    /// Ends the oldest step that has begun and has not ended, this one, as `execute` does it. For each of `draws` (in
    /// order of `seq`) an executor that heeds them may give the token instead of the row.
    fn finish(
        &mut self,
        plan: &Arc<StepPlan>,
        draws: &Arc<Vec<Draw>>,
        sink: &mut OutcomeSink<'_>,
    ) -> Result<(), StepError> {
        let _ = draws;
        self.execute(plan, &mut |rows, logits| sink(RowOutcome::Rows(rows, logits)))
    }

    /// The kernels with which rows are sampled: those of the executor, if it has any, so that it shares its threads.
    fn kernels(&self) -> Arc<Kernels> {
        Arc::new(Kernels::single())
    }
}
