//! The seam between the engine and what computes: a step plan in, rows of logits (or hidden states) out.

use octavo_kernels::AttentionReport;
use octavo_scheduler::StepPlan;

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

/// Receives rows: (index into `plan.seqs`, row of that sequence's chunk, its logits `[vocab]`). A sequence whose output
/// is `Output::Hidden` gets hidden states `[hidden]` behind the last norm in their place.
pub type RowSink<'a> = dyn FnMut(usize, u32, &[f32]) + 'a;

/// Computes steps. Keeps no state of requests besides the KV pool.
pub trait Executor: Send {
    /// Size of the hidden states; None: this executor has logits only, and its engine refuses embeddings.
    fn hidden_size(&self) -> Option<usize> {
        None
    }

    /// Makes the plan's block copies, runs its tokens, and hands each row that the plan asks for to `sink`, those of one
    /// sequence in order.
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError>;

    /// What attention read and left out for each sequence of the last step; empty if it is dense.
    fn attention_reports(&self) -> &[AttentionReport] {
        &[]
    }

    /// Called after every step: forgets what is kept beside the KV blocks for which `held` says no. Such a block belongs to
    /// nobody; it may be handed out again, empty, at any time.
    fn release_blocks(&mut self, held: &dyn Fn(u32) -> bool) {
        let _ = held;
    }
}
