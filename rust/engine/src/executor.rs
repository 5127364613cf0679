//! The seam between the engine and what computes: a step plan in, rows of logits out.

use std::sync::Arc;

use octavo_kernels::Kernels;
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

/// Receives blocks of rows of logits: for each row (index into `plan.seqs`, row of that sequence's chunk), and the logits
/// `[rows, vocab]`. The more rows come at once, the better they fill the threads that sample.
pub type RowSink<'a> = dyn FnMut(&[(usize, u32)], &[f32]) + 'a;

/// Computes steps. Keeps no state of requests besides the KV pool.
pub trait Executor: Send {
    /// Makes the plan's block copies, runs its tokens, and hands each row that the plan asks for to `sink`, those of one
    /// sequence in order.
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError>;

    /// The kernels with which rows are sampled: those of the executor, if it has any, so that it shares its threads.
    fn kernels(&self) -> Arc<Kernels> {
        Arc::new(Kernels::single())
    }
}
