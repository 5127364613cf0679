//! The step plan: the contract between scheduler and executors.

use crate::RequestId;

/// One flat, ragged batch: the new tokens of all sequences of a step, prefill chunks and decodes mixed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Number of this step, counted from 1; 0 in an empty plan.
    pub step: u64,
    /// Token ids, `[T]`, all sequences concatenated; 0 where `awaited` names the row.
    pub tokens: Vec<u32>,
    /// `[row, sequence]`: rows of `tokens` that are the token which this sequence of the step before draws. Empty unless
    /// the step was planned ahead.
    pub awaited: Vec<[u32; 2]>,
    /// Their positions, `[T]`.
    pub positions: Vec<u32>,
    /// Where their keys and values go, `[T]`: `block * block_size + offset`.
    pub slots: Vec<u32>,
    /// The sequences, `[S]`.
    pub seqs: Vec<PlanSeq>,
    /// Block ids, concatenated; a sequence owns `ceil(context_len / block_size)` of them.
    pub block_tables: Vec<u32>,
    /// Block copies `[source, destination]` to make before anything is written. No block is both a source and a
    /// destination and no destination occurs twice, so their order is free.
    pub copies: Vec<[u32; 2]>,
}

impl StepPlan {
    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.step = 0;
        self.tokens.clear();
        self.awaited.clear();
        self.positions.clear();
        self.slots.clear();
        self.seqs.clear();
        self.block_tables.clear();
        self.copies.clear();
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }
}

/// One sequence of a step. Executors outside Rust read it as it lies in memory: the layout is C's, and has no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PlanSeq {
    /// Its request.
    pub request: RequestId,
    /// Which sample of it; 0 while the samples of a prompt are not split yet.
    pub sample: u32,
    /// Tokens wanted from the last row: 1, `n` where a prompt with `n > 1` completes, 0 for an inner chunk and for
    /// hidden states.
    pub forks: u32,
    /// First row in [`StepPlan::tokens`].
    pub query_start: u32,
    /// Rows.
    pub query_len: u32,
    /// Tokens in the cache after this step, this chunk included.
    pub context_len: u32,
    /// First entry in [`StepPlan::block_tables`].
    pub block_table_start: u32,
    /// Rows whose logits are wanted.
    pub logits: Logits,
    /// What is wanted of these rows.
    pub output: Output,
}

/// What a request is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u64)]
pub enum Output {
    /// Tokens, drawn from logits.
    #[default]
    Tokens,
    /// The hidden states of its prompt behind the last norm, in place of logits. It generates nothing and ends with
    /// its prompt.
    Hidden,
}

/// Rows of a chunk whose logits (or hidden states) are wanted. As wide as a request id, so that `PlanSeq` has no gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Logits {
    /// None: an inner chunk of a prompt.
    None,
    /// The last row.
    Last,
    /// Every row, the last one included; rows of a prompt that asked for its logits, each reported once.
    All,
}
