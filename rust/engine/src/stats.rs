//! Counters that any thread may read while the engine runs.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Requests that have ended, for any reason.
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
    /// Blocks that packs hold.
    blocks_pinned,
    /// Blocks of running sequences, those of packs apart.
    blocks_live,
    /// Steps executed.
    steps,
    /// Steps with prefill and decode together.
    mixed_steps,
    /// Largest number of sequences in one step.
    max_batch,
    /// Largest number of tokens in one step.
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
}

/// Sets a counter. Relaxed: counters are read for display, and nothing is ordered by them.
pub(crate) fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
