//! The step plan: the contract between scheduler and executors.

use std::ops::Range;

use crate::RequestId;

/// [`PlanSeq::adapter`] of a sequence that runs without an adapter.
pub const NO_ADAPTER: u32 = u32::MAX;

/// One flat, ragged batch: the new tokens of all sequences of a step, prefill chunks and decodes mixed.
///
/// Two sequences, the first with a chunk of 3 tokens at positions 4..7, the second with a decode at position 9, in
/// blocks of 4 tokens:
///
/// ```text
/// tokens        [ a  b  c | d ]        T = 4
/// positions     [ 4  5  6 | 9 ]
/// slots         [ 8  9 10 | 29 ]       block * 4 + offset
/// seqs          [ {query_start 0, query_len 3, context_len 7, block_table_start 0},
///                 {query_start 3, query_len 1, context_len 10, block_table_start 2} ]
/// block_tables  [ 5  2 | 5  3  7 ]     the first block is shared
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Number of this step, counted from 1; 0 in an empty plan.
    pub step: u64,
    /// Token ids, `[T]`, all sequences concatenated; 0 where `placeholders` names the row.
    pub tokens: Vec<u32>,
    /// `[row, sequence]`: the token of this row is the one that this sequence of the step before samples. Empty unless
    /// the step before was in flight when this one was planned.
    pub placeholders: Vec<[u32; 2]>,
    /// Positions of the tokens, `[T]`.
    pub positions: Vec<u32>,
    /// Cache slots of the tokens' keys and values, `[T]`: `block * block_size + offset`.
    pub slots: Vec<u32>,
    /// The sequences, `[S]`.
    pub seqs: Vec<PlanSeq>,
    /// Block ids, concatenated; a sequence owns `ceil(context_len / block_size)` of them.
    pub block_tables: Vec<u32>,
    /// Block copies `[source, destination]` to make before anything is written. No block is both a source and a
    /// destination and no destination occurs twice: any order is correct.
    pub copies: Vec<[u32; 2]>,
    /// Open blocks, concatenated; empty unless [`crate::SchedulerConfig::open_blocks`], as are the lists below. A sequence
    /// has one for each block that receives a new token:
    /// `ceil(context_len / block_size) - (context_len - query_len) / block_size` of them.
    pub open_blocks: Vec<u32>,
    /// Slots of the tokens in the open blocks, `[T]`: `open_block * block_size + offset`.
    pub open_slots: Vec<u32>,
    /// `[block, open block]`: blocks that this step fills. The executor quantises them when a layer's keys and values are
    /// written. Queries read these blocks, and open ones, from `open_blocks`.
    pub sealed: Vec<[u32; 2]>,
    /// Copies of open blocks `[source, destination]`, made before anything is written, in any order. They replace `copies`:
    /// a copied block is never full.
    pub open_copies: Vec<[u32; 2]>,
    /// Open blocks in use so far: all ids are below. An executor that grows its memory needs this many.
    pub num_open_blocks: u32,
}

impl StepPlan {
    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.step = 0;
        self.tokens.clear();
        self.placeholders.clear();
        self.positions.clear();
        self.slots.clear();
        self.seqs.clear();
        self.block_tables.clear();
        self.copies.clear();
        self.open_blocks.clear();
        self.open_slots.clear();
        self.sealed.clear();
        self.open_copies.clear();
        self.num_open_blocks = 0;
    }

    /// Whether the plan has no sequences.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }
}

/// One sequence of a step. Executors outside Rust read it in place: C layout, 56 bytes, no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PlanSeq {
    /// The request.
    pub request: RequestId,
    /// Sample number within the request; 0 while the samples of a prompt are not split yet.
    pub sample: u32,
    /// Tokens to sample from the last row: 1, `n` where a prompt with `n > 1` completes, 0 for an inner chunk and for
    /// hidden states.
    pub num_samples: u32,
    /// First row in [`StepPlan::tokens`].
    pub query_start: u32,
    /// Rows.
    pub query_len: u32,
    /// Tokens in the cache after this step, this chunk included.
    pub context_len: u32,
    /// First entry in [`StepPlan::block_tables`].
    pub block_table_start: u32,
    /// First entry in [`StepPlan::open_blocks`].
    pub open_block_start: u32,
    /// Adapter id; [`NO_ADAPTER`]: none.
    pub adapter: u32,
    /// What attention may omit.
    pub attention: AttentionPolicy,
    /// What is computed from the rows in `sample_rows`.
    pub output: Output,
    /// `[first, end]`: range of rows of the chunk whose logits (or hidden states) are wanted; empty: none.
    pub sample_rows: [u32; 2],
}

impl PlanSeq {
    /// Rows of the chunk, `0..query_len`, whose logits or hidden states are wanted.
    pub fn sample_rows(&self) -> Range<u32> {
        self.sample_rows[0]..self.sample_rows[1]
    }
}

/// Error bound of a sequence's attention. Two policies are equal if their bits are.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct AttentionPolicy {
    /// Softmax mass that attention may omit, at most; 0: dense attention.
    bound: f32,
}

impl AttentionPolicy {
    /// Dense attention.
    pub const DENSE: Self = Self { bound: 0.0 };

    /// A policy with this bound on the omitted softmax mass.
    pub const fn new(bound: f32) -> Self {
        Self { bound }
    }

    /// Bound on the omitted softmax mass.
    pub fn bound(self) -> f32 {
        self.bound
    }

    /// The policy as a key.
    pub fn bits(self) -> u32 {
        self.bound.to_bits()
    }
}

impl PartialEq for AttentionPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for AttentionPolicy {}

/// What a request is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Output {
    /// Tokens, sampled from logits.
    #[default]
    Tokens,
    /// Hidden states of the prompt after the last norm, in place of logits. The request generates nothing and ends
    /// with its prompt.
    Hidden,
}
