//! Limits of the scheduler, from the configuration and the device's defaults.

use octavo_kernels::BLOCK_SIZE;
use octavo_model::ModelSpec;
use octavo_scheduler::max_open_blocks;
use serde::Serialize;

use crate::EngineError;
use crate::config::EngineConfig;

/// Max value of a count in the configuration.
const MAX_COUNT: usize = 1 << 28;
/// Default of `max_queue`.
const DEFAULT_MAX_QUEUE: usize = 1024;
/// Default of `max_loras`.
const DEFAULT_MAX_LORAS: usize = 8;
/// Default of `max_lora_rank`.
const DEFAULT_MAX_LORA_RANK: usize = 256;

/// The device that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The kernels of this crate's CPU executor.
    Cpu,
    /// An executor in Python.
    Gpu,
}

impl Device {
    /// Default of `max_num_seqs`.
    fn max_num_seqs(self) -> usize {
        match self {
            Self::Cpu => 64,
            Self::Gpu => 256,
        }
    }

    /// Default of `max_num_batched_tokens`: a step that keeps matmuls at their speed and does not delay decodes long.
    fn max_num_batched_tokens(self) -> usize {
        match self {
            Self::Cpu => 512,
            Self::Gpu => 8192,
        }
    }
}

/// The limits that an engine runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Longest sequence, prompt and output together.
    pub max_model_len: u32,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens of one step.
    pub max_num_batched_tokens: u32,
    /// Requests that may wait.
    pub max_queue: u32,
    /// Tokens of a KV block.
    pub block_size: u32,
    /// KV blocks; 0 until memory is planned.
    pub num_blocks: u32,
    /// Distinct adapters that run at once.
    pub max_loras: u32,
    /// Largest rank of an adapter.
    pub max_lora_rank: u32,
    /// Bytes of the adapters in memory; 0 until memory is planned.
    pub max_lora_memory: u64,
}

impl Limits {
    /// Upper bound of the open blocks of an int8 cache.
    pub fn max_open_blocks(&self) -> u32 {
        max_open_blocks(self.max_num_seqs, self.max_num_batched_tokens, self.block_size)
    }

    /// The limits of `config` before memory is planned.
    ///
    /// # Errors
    /// `InvalidRequest` for a number out of its range.
    pub(crate) fn resolve(
        config: &EngineConfig,
        spec: &ModelSpec,
        device: Device,
    ) -> Result<Self, EngineError> {
        let seqs = count("max_num_seqs", config.max_num_seqs, 1, device.max_num_seqs())?;
        let tokens = device.max_num_batched_tokens().max(seqs as usize);
        let limits = Self {
            max_model_len: count("max_model_len", config.max_model_len, 2, spec.max_position)?,
            max_num_seqs: seqs,
            max_num_batched_tokens: count(
                "max_num_batched_tokens",
                config.max_num_batched_tokens,
                1,
                tokens,
            )?,
            max_queue: count("max_queue", config.max_queue, 1, DEFAULT_MAX_QUEUE)?,
            block_size: BLOCK_SIZE as u32,
            num_blocks: 0,
            max_loras: count("max_loras", config.max_loras, 1, DEFAULT_MAX_LORAS)?,
            max_lora_rank: count("max_lora_rank", config.max_lora_rank, 1, DEFAULT_MAX_LORA_RANK)?,
            max_lora_memory: 0,
        };
        let longest = spec.longest_context();
        if limits.max_model_len as usize > longest {
            return Err(EngineError::InvalidRequest(format!(
                "max_model_len is {}: this model was made for at most {longest} tokens (max_position_embeddings and the rope \
                 scaling of config.json)",
                limits.max_model_len
            )));
        }
        Ok(limits)
    }
}

/// A count that is at least `min`.
fn count(name: &str, value: Option<usize>, min: usize, default: usize) -> Result<u32, EngineError> {
    let refuse = |value: usize, expected: String| {
        Err(EngineError::InvalidRequest(format!("{name} is {value}: {expected} is expected")))
    };
    match value {
        Some(v) if v < min => refuse(v, format!("an integer from {min} on")),
        Some(v) if v > MAX_COUNT => refuse(v, format!("at most {MAX_COUNT}")),
        v => Ok(v.unwrap_or(default) as u32),
    }
}
