//! Requests in, step plans out: continuous batching over a paged KV cache, as a pure state machine.
//!
//! [`Scheduler::step`] takes the time and the events since the last call and fills [`Actions`]: the next [`StepPlan`], and
//! the requests that ended, were rejected or started. There is no clock, thread, random number or I/O inside: the same
//! events give the same actions.
//!
//! One step is in flight at a time: after a plan with sequences, no further plan comes until its [`Event::StepDone`].
//! With async scheduling, [`Event::ScheduleAsync`] allows one more. Calls in between take submissions, cancellations and
//! deadlines. Steps run in the order of their plans: a block that a plan writes may be read by the step before.
//!
//! The rules, each in the file of its name in `scheduler/`:
//!
//! - `admission`: which requests are rejected, and which start (FCFS within priority, bounded bypass);
//! - `planning`: which sequences get tokens of a step (decodes, then running prefills, then admissions);
//! - `preemption`: which sequence gives up blocks (the last of the lowest priority, recomputed later);
//! - `results`: what a finished step does to its sequences (samples, splits, ends).
//! - `packs`: which texts stay in the cache, and what that leaves to requests.
//!
//! `batch` builds the plan, one `push` per sequence. `adapters` holds what names of adapters stand for, and which adapters
//! are in memory; the scheduler itself uses their ids alone.

#![forbid(unsafe_code)]

mod adapters;
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

pub use adapters::{AdapterName, AdapterNames, AdapterPool, Grant, LoadedName, NameError, PoolKey};
pub use config::{ConfigError, SchedulerConfig, max_open_blocks};
pub use event::{Actions, EndReason, Event, Finished, NewRequest, NextToken, NextTokens, SeqResult, Started};
pub use octavo_cache::CacheStats;
pub use plan::{AttentionPolicy, NO_ADAPTER, Output, PlanSeq, StepPlan};
pub use rejection::Rejection;
pub use scheduler::{PackRefusal, PackTerms, Scheduler};
pub use smallvec::{SmallVec, smallvec};
pub use stats::SchedulerStats;

/// Name of a request, chosen by the caller; unique among the requests that have not ended.
pub type RequestId = u64;
