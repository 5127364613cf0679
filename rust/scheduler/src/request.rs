//! Requests and their sequences while they are in the scheduler.

use octavo_cache::{BlockTable, Namespace};
use smallvec::SmallVec;

use crate::RequestId;
use crate::plan::{AttentionPolicy, Output};

/// The order in which sequences are served: lower first. Unique.
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
    /// Longest a sample may get, prompt included: `max_tokens` and `max_model_len` in one.
    pub(crate) max_len: u32,
    pub(crate) deadline_us: Option<u64>,
    pub(crate) namespace: Namespace,
    pub(crate) adapter: u32,
    pub(crate) attention: AttentionPolicy,
    pub(crate) prompt_logits: bool,
    pub(crate) output: Output,
    /// Prompt rows whose logits were delivered.
    pub(crate) reported: u32,
    pub(crate) started: bool,
    /// Its sequences that have not ended.
    pub(crate) sequences: SmallVec<[u32; 1]>,
}

impl Request {
    /// Whether prompt rows are still to be reported. Only then does it matter which rows a chunk holds.
    pub(crate) fn owes_prompt_rows(&self) -> bool {
        self.prompt_logits && self.reported < self.prompt_len
    }
}

/// One sample of a request; until the prompt is complete, sample 0 stands for all.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// `None`: the request ended while this was in flight; dropped when the step is done.
    pub(crate) request: Option<u32>,
    pub(crate) id: RequestId,
    pub(crate) key: Key,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// Samples that this stands for.
    pub(crate) num_samples: u32,
    pub(crate) table: BlockTable,
    /// In the running list, else in the queue.
    pub(crate) running: bool,
    /// Steps in flight that it is part of (the plan being made included): at most 2.
    pub(crate) flights: u32,
    /// Its rows in these steps.
    pub(crate) computing: u32,
    /// Tokens after `tokens` that a step in flight samples: 0 or 1.
    pub(crate) placeholders: u32,
    /// The last step that it was part of, and its place there.
    pub(crate) last_step: u64,
    pub(crate) place: u32,
    /// Lost its blocks once; nobody may overtake it.
    pub(crate) preempted: bool,
    /// How often another sequence overtook it in the queue.
    pub(crate) bypassed: u32,
}

impl Sequence {
    /// A sequence with these tokens, in no list yet.
    pub(crate) fn new(
        request: u32,
        id: RequestId,
        key: Key,
        tokens: Vec<u32>,
        num_samples: u32,
        table: BlockTable,
    ) -> Self {
        Self {
            request: Some(request),
            id,
            key,
            tokens,
            num_samples,
            table,
            running: false,
            flights: 0,
            computing: 0,
            placeholders: 0,
            last_step: 0,
            place: 0,
            preempted: false,
            bypassed: 0,
        }
    }

    /// Its tokens, placeholders included.
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

    /// The samples it stands for.
    pub(crate) fn samples(&self) -> std::ops::Range<u32> {
        self.key.sample..self.key.sample + self.num_samples
    }
}
