//! Requests in, step plans out: continuous batching over a paged KV cache, as a pure state machine.
//!
//! [`Scheduler::step`] takes the time and the events since the last call and fills [`Actions`]: the next
//! [`StepPlan`], and what ended, was rejected or started. There is no clock, thread, random number or I/O inside, so
//! the same events always give the same actions.
//!
//! One step is in flight at a time: after a plan with sequences, no further plan comes until its
//! [`Event::StepDone`], unless [`Event::ScheduleAsync`] allows one more. Calls in between are welcome and take submissions,
//! cancellations and deadlines. Plans run in their order: a block that a plan writes may be read by the one before.
//!
//! The rules, each in the file of its name:
//!
//! - `admission`: what is rejected at once, and who leaves the queue when (FCFS within priority, bounded bypass);
//! - `schedule`: who gets tokens of a step (decodes, then running prefills, then admissions);
//! - `preemption`: who gives blocks up when a decode finds none (latest of the lowest priority, recomputed later);
//! - `results`: what a finished step does to its sequences (samples, splits, ends).

#![forbid(unsafe_code)]

mod batch;
mod config;
mod event;
mod limits;
mod plan;
mod queue;
mod rejection;
mod request;
mod scheduler;
mod slab;
mod stats;

pub use config::{ConfigError, SchedulerConfig, max_open_blocks};
pub use event::{
    Actions, Event, FinishReason, Finished, NewRequest, NextToken, NextTokens, SeqResult, Started,
};
pub use octavo_cache::CacheStats;
pub use plan::{AttentionPolicy, NO_ADAPTER, Output, PlanSeq, StepPlan};
pub use rejection::Rejection;
pub use scheduler::Scheduler;
pub use smallvec::{SmallVec, smallvec};
pub use stats::SchedulerStats;

/// Name of a request, chosen by the caller; unique among the requests that have not ended.
pub type RequestId = u64;
