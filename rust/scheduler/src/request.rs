//! Requests and their sequences while they are in the scheduler.

use octavo_cache::{BlockTable, Namespace};
use smallvec::SmallVec;

use crate::RequestId;
use crate::plan::{AttentionPolicy, Output};

/// Order of service: lower first. Unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
    pub(crate) sample: u32,
}

/// An accepted request that has not ended.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) prompt_len: u32,
    /// Maximum length of a sample, prompt included: `max_tokens` and `max_model_len` in one.
    pub(crate) max_len: u32,
    pub(crate) deadline_us: Option<u64>,
    pub(crate) namespace: Namespace,
    /// The pack that its prompt begins with.
    pub(crate) pack: Option<u32>,
    /// Blocks that it may need, alone.
    pub(crate) needed: u32,
    /// Of these, blocks of its pack.
    pub(crate) shared: u32,
    pub(crate) adapter: u32,
    pub(crate) attention: AttentionPolicy,
    pub(crate) prompt_logits: bool,
    pub(crate) output: Output,
    /// Prompt rows whose logits were delivered.
    pub(crate) reported: u32,
    pub(crate) started: bool,
    /// Sequences that have not ended.
    pub(crate) sequences: SmallVec<[u32; 1]>,
}

impl Request {
    /// Whether prompt rows are still to be reported. Only then does it matter which rows a chunk holds.
    pub(crate) fn owes_prompt_rows(&self) -> bool {
        self.prompt_logits && self.reported < self.prompt_len
    }
}

/// Where a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeqState {
    /// Out of the queue, without blocks, until its request is released.
    Held,
    /// In the queue, without blocks. After a preemption no sequence may overtake it.
    Waiting { preempted: bool, bypassed: u32 },
    /// In the running list, with blocks.
    Running,
    /// Its request ended while a step in flight uses its blocks; dropped with that step.
    Ended,
}

/// One sample of a request; until the prompt is complete, sample 0 stands for all.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Index of the request; stale once the sequence has ended.
    request: u32,
    pub(crate) state: SeqState,
    pub(crate) id: RequestId,
    pub(crate) key: Key,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// Samples that this sequence stands for.
    pub(crate) num_samples: u32,
    pub(crate) table: BlockTable,
    /// Number of steps in flight with this sequence, the plan being made included: 0, 1 or 2.
    pub(crate) in_flight: u32,
    /// Rows of the sequence in these steps.
    pub(crate) computing: u32,
    /// Tokens after `tokens` that a step in flight samples: 0 or 1.
    pub(crate) placeholders: u32,
    /// Last step with this sequence, and its index there.
    pub(crate) last_step: u64,
    pub(crate) place: u32,
}

impl Sequence {
    /// A waiting sequence with these tokens.
    pub(crate) fn new(request: u32, id: RequestId, key: Key, tokens: Vec<u32>, num_samples: u32) -> Self {
        Self {
            request,
            state: SeqState::Waiting { preempted: false, bypassed: 0 },
            id,
            key,
            tokens,
            num_samples,
            table: BlockTable::default(),
            in_flight: 0,
            computing: 0,
            placeholders: 0,
            last_step: 0,
            place: 0,
        }
    }

    /// Index of the request; `None`: it has ended.
    pub(crate) fn request(&self) -> Option<u32> {
        (self.state != SeqState::Ended).then_some(self.request)
    }

    /// Number of tokens, placeholders included.
    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32 + self.placeholders
    }

    /// Tokens that are in the cache, or will be when the steps in flight are done.
    pub(crate) fn scheduled(&self) -> u32 {
        self.table.computed() + self.computing
    }

    /// Tokens that no step computes yet: at least 1 unless a step is in flight, and exactly 1 for a decode.
    pub(crate) fn remaining(&self) -> u32 {
        self.len() - self.scheduled()
    }

    /// The samples that this sequence stands for.
    pub(crate) fn samples(&self) -> std::ops::Range<u32> {
        self.key.sample..self.key.sample + self.num_samples
    }
}
