//! The scheduler's limits.

use octavo_cache::{CacheConfig, CacheConfigError};
use thiserror::Error;

/// Limits of a [`crate::Scheduler`], fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// KV blocks in the pool.
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Sequences that may run at once; each of a request's `n` samples counts.
    pub max_num_seqs: u32,
    /// New tokens per step, prefill and decode together.
    pub max_num_batched_tokens: u32,
    /// Distinct adapters that may run at once; sequences without one do not count.
    pub max_adapters: u32,
    /// Longest sequence, prompt and generated tokens together.
    pub max_model_len: u32,
    /// Requests that may wait for their start; further ones are rejected.
    pub max_queue: u32,
    /// Whether prompts start from cached blocks where possible.
    pub enable_prefix_caching: bool,
    /// Maximum number of prompt tokens of one sequence per step; `None`: what the step has left.
    pub prefill_chunk: Option<u32>,
    /// Key of the prefix hash.
    pub hash_seed: u64,
    /// Bits of the prefix hash in use, `0..=128`; 128 outside tests.
    pub hash_bits: u32,
    /// Whether blocks that are not full are held in open blocks: for int8 caches.
    pub open_blocks: bool,
}

impl SchedulerConfig {
    /// Checks the limits; the first error, if any.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_adapters", self.max_adapters),
            ("max_queue", self.max_queue),
            ("prefill_chunk", self.prefill_chunk.unwrap_or(1)),
        ];
        if let Some(&(name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { name });
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::ModelLen { max_model_len: self.max_model_len });
        }
        Ok(())
    }

    pub(crate) fn cache(&self) -> CacheConfig {
        CacheConfig {
            num_blocks: self.num_blocks,
            block_size: self.block_size,
            prefix_caching: self.enable_prefix_caching,
            hash_seed: self.hash_seed,
            hash_bits: self.hash_bits,
            open_blocks: self.open_blocks,
        }
    }
}

/// Upper bound of [`crate::StepPlan::num_open_blocks`], for executors that allocate once.
///
/// Before a plan, each sequence with blocks has at most one that is partly filled. These are `max_num_seqs` running
/// sequences, and as many that ended while a step in flight uses them. The plan opens one block more for each of its
/// sequences and for every `block_size` of its tokens.
pub fn max_open_blocks(max_num_seqs: u32, max_num_batched_tokens: u32, block_size: u32) -> u32 {
    max_num_batched_tokens.div_ceil(block_size).saturating_add(max_num_seqs.saturating_mul(3))
}

/// Limits that no scheduler can work under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A limit is zero.
    #[error("{name} is 0; use 1 or more")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// There is no room for a prompt token and a generated one.
    #[error("max_model_len is {max_model_len}; a prompt and its answer need 2 or more")]
    ModelLen {
        /// The value.
        max_model_len: u32,
    },
    /// The pool is impossible.
    #[error(transparent)]
    Cache(#[from] CacheConfigError),
}
