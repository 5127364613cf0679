//! Counters that any thread may read while the engine runs.

use std::sync::atomic::{AtomicU64, Ordering};

use octavo_kernels::AttentionReport;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Written by the engine thread alone, after each step.
        #[derive(Default)]
        pub(crate) struct Counters { $(pub $name: AtomicU64),* }

        /// A snapshot of the engine.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct EngineStats { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            /// Reads all counters.
            pub fn snapshot(&self) -> EngineStats {
                EngineStats { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counters! {
    /// Sequences that hold blocks.
    requests_running,
    /// Requests that have not started, and preempted sequences.
    requests_waiting,
    /// Requests that have ended, for whatever reason.
    requests_finished,
    /// Samples that met a stop condition.
    finished_stop,
    /// Samples that reached their length.
    finished_length,
    /// Samples that were cancelled.
    finished_abort,
    /// Samples that failed.
    finished_error,
    /// Blocks of the KV cache.
    blocks_total,
    /// Blocks that hold nothing.
    blocks_free,
    /// Blocks kept for prefix hits only.
    blocks_cached,
    /// Blocks of running sequences.
    blocks_live,
    /// Steps executed.
    steps,
    /// Steps with prefill and decode together.
    mixed_steps,
    /// Most sequences in one step.
    max_batch,
    /// Most tokens in one step.
    max_batch_tokens,
    /// Prompt tokens of all started requests.
    prompt_tokens,
    /// Of these, tokens found in the prefix cache.
    cached_prompt_tokens,
    /// Tokens generated.
    generated_tokens,
    /// Sequences that had to give up their blocks.
    preemptions,
    /// Cached blocks given up for new ones.
    evictions,
    /// Steps that failed.
    failed_steps,
    /// Time spent in steps, in microseconds.
    step_us,
    /// Queries of query heads, layer by layer, under dynamic attention.
    attention_calls,
    /// Those of them that read everything.
    attention_dense_calls,
    /// Bytes of the int8 KV cache that dynamic attention read.
    attention_bytes_read,
    /// Bytes that dense attention would have read.
    attention_bytes_dense,
    /// Calls that were compared with reading everything.
    attention_audited_calls,
    /// Those of them that were further off than they said.
    attention_violations,
}

impl Counters {
    /// Counts what dynamic attention read and left out.
    pub fn attention(&self, report: &AttentionReport) {
        add(&self.attention_calls, report.calls);
        add(&self.attention_dense_calls, report.dense_calls);
        add(&self.attention_bytes_read, report.bytes_read);
        add(&self.attention_bytes_dense, report.bytes_dense);
        add(&self.attention_audited_calls, report.audited_calls);
        add(&self.attention_violations, report.violations);
    }
}

/// Sets a counter. Relaxed: counters are read for display, and nothing is ordered by them.
pub(crate) fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
