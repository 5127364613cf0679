//! Events, the input of a scheduler step, and actions, its output beside the plan.

use smallvec::SmallVec;

use crate::RequestId;
use crate::plan::{AttentionPolicy, Output, StepPlan};
use crate::rejection::Rejection;

/// A request as submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRequest {
    /// Unique among the requests that have not ended.
    pub id: RequestId,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Samples wanted; the prompt is computed once for all.
    pub n: u32,
    /// Maximum number of tokens to generate, per sample; without meaning for [`Output::Hidden`].
    pub max_tokens: u32,
    /// Lower runs first.
    pub priority: i32,
    /// Time, on the clock of [`crate::Scheduler::step`], at which the request times out.
    pub deadline_us: Option<u64>,
    /// Only requests with the same salt share cached blocks.
    pub salt: Option<Box<str>>,
    /// Adapter id, or [`crate::NO_ADAPTER`]. Only requests with the same id share cached blocks: an id names the same weights
    /// as long as the scheduler lives.
    pub adapter: u32,
    /// The request waits at its place in the order until [`Event::Release`]: its adapter is not in memory yet.
    pub held: bool,
    /// What attention may omit. Only requests with the same policy share cached blocks: keys and values depend on it.
    pub attention: AttentionPolicy,
    /// The pack that the prompt begins with. A pack that is not held, or that the prompt does not begin with, is left out:
    /// the request computes its whole prompt.
    pub pack: Option<u32>,
    /// Whether the logits (or hidden states) of every prompt row are wanted. Such a prompt uses no cached block: keys and
    /// values do not give the rows of old tokens.
    pub prompt_logits: bool,
    /// What the request is computed for.
    pub output: Output,
}

/// Something that happened since the last step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new request.
    Submit(NewRequest),
    /// End this request now; unknown ids are ignored.
    Cancel {
        /// Which.
        request: RequestId,
    },
    /// This held request may start; others are ignored.
    Release {
        /// Which.
        request: RequestId,
    },
    /// This request cannot run: it ends with [`EndReason::Error`]. Unknown ids are ignored.
    Fail {
        /// Which.
        request: RequestId,
    },
    /// The step in flight (the older one of two) is done. Ignored if another step, or none, is in flight.
    StepDone {
        /// [`StepPlan::step`] of its plan.
        step: u64,
        /// One result a planned sequence, in the order of [`StepPlan::seqs`]. A missing or misfitting one counts as
        /// [`SeqResult::Failed`].
        results: Vec<SeqResult>,
    },
    /// Async scheduling: the next step may be planned before this one, the only one in flight, is done. Its executor
    /// fills the tokens in [`StepPlan::placeholders`]. Ignored if the step samples several tokens for a sequence.
    ScheduleAsync {
        /// [`StepPlan::step`] of its plan.
        step: u64,
    },
    /// Time passed.
    Tick,
    /// Reject new requests from now on and finish the rest.
    Drain,
}

/// The sampled tokens of one planned sequence, one a fork.
pub type NextTokens = SmallVec<[NextToken; 1]>;

/// What a step made of one planned sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeqResult {
    /// A chunk that asked for no sample (`num_samples` is 0) is in the cache.
    Prefilled,
    /// The sampled tokens: exactly `num_samples` of them, sample 0 first.
    Tokens(NextTokens),
    /// This sequence failed; its whole request ends with [`EndReason::Error`].
    Failed,
}

impl SeqResult {
    /// The result of a sequence with one fork.
    pub fn token(token: u32, stop: bool) -> Self {
        Self::Tokens(smallvec::smallvec![NextToken { token, stop }])
    }
}

/// One sampled token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextToken {
    /// Its id.
    pub token: u32,
    /// Whether the caller found a stop condition at this token. It counts as generated.
    pub stop: bool,
}

/// What a call of [`crate::Scheduler::step`] decided. Reuse one value: its lists keep their memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// The next step. Without sequences: nothing can run, or it has to wait for the step in flight.
    pub plan: StepPlan,
    /// Samples that ended, each exactly once.
    pub finished: Vec<Finished>,
    /// Requests that were not accepted, and why.
    pub rejected: Vec<(RequestId, Rejection)>,
    /// Requests that left the queue for the first time.
    pub started: Vec<Started>,
    /// Sequences that gave up their blocks in this call; they continue later.
    pub preempted: u32,
}

impl Actions {
    /// Empties all lists.
    pub fn clear(&mut self) {
        self.plan.clear();
        self.finished.clear();
        self.rejected.clear();
        self.started.clear();
        self.preempted = 0;
    }
}

/// The first computation of a request begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Which.
    pub request: RequestId,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u32,
}

/// The end of one sample of an accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Its request.
    pub request: RequestId,
    /// Which sample, `0..n`.
    pub sample: u32,
    /// Why.
    pub reason: EndReason,
}

/// Why a sample ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// A stop condition was met.
    Stop,
    /// `max_tokens` or `max_model_len` is reached.
    Length,
    /// Cancelled.
    Abort,
    /// Past its deadline.
    Timeout,
    /// A step failed on it or on another sample of its request, or it could not run.
    Error,
}
