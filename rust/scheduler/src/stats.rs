//! Counters of the scheduler.

use octavo_cache::CacheStats;

/// A snapshot of the scheduler; the counters run since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences in the queue, preempted ones included.
    pub waiting: u32,
    /// Sequences that hold blocks and take part in steps.
    pub running: u32,
    /// Steps planned.
    pub steps: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Maximum number of sequences in one step so far.
    pub max_batch_seqs: u32,
    /// Maximum number of new tokens in one step so far.
    pub max_batch_tokens: u32,
    /// Rows computed that only fill the cache, recomputed ones included.
    pub prefilled_tokens: u64,
    /// Tokens generated.
    pub decoded_tokens: u64,
    /// The cache's part.
    pub cache: CacheStats,
}
