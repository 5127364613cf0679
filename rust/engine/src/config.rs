//! Configuration of an engine, as the caller gives it. Names and meanings are those of `octavo.EngineConfig`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::attention::{self, AttentionConfig};

/// Options of `Engine::load`; each has a default. `resolve` checks them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// "auto" | "float32" | "bfloat16", on a GPU also "float16": storage and computation where not quantised.
    pub dtype: String,
    /// "auto" | "none" | "int8".
    pub quantization: String,
    /// "auto" | "float32" | "bfloat16" | "int8".
    pub kv_cache_dtype: String,
    /// Size of the KV cache; None: what fits.
    pub kv_cache_memory: Option<CacheSize>,
    /// Which keys and values queries may omit; None: dense attention.
    #[serde(deserialize_with = "attention::deserialize")]
    pub attention: Option<AttentionConfig>,
    /// Longest sequence in tokens, prompt and output together.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step.
    pub max_num_batched_tokens: Option<usize>,
    /// Requests that may wait.
    pub max_queue: Option<usize>,
    /// Distinct adapters that run at once; None: 8.
    pub max_loras: Option<usize>,
    /// Largest rank of an adapter; None: 256.
    pub max_lora_rank: Option<usize>,
    /// Bytes of the adapters in memory; None: a tenth of the weights, and at least 256 MiB.
    pub max_lora_memory: Option<u64>,
    /// Share the KV blocks of equal prefixes.
    pub enable_prefix_caching: bool,
    /// On a GPU: batch-invariant kernels. The CPU's always are.
    pub deterministic: bool,
    /// CPU threads; None: one per core.
    pub threads: Option<usize>,
    /// Seed of requests without one.
    pub seed: i64,
    /// Folder or tokenizer.json; None: the model's.
    pub tokenizer: Option<PathBuf>,
    /// Text of a chat template; None: the model's.
    pub chat_template: Option<String>,
    /// For tests: tokens of one sequence's prefill chunk; None: as the step has room.
    pub prefill_chunk: Option<usize>,
    /// For tests: instruction-set level of the kernels ("portable", "avx2", "avx512", "amx"); None: the environment
    /// variable `OCTAVO_ISA`, else the best of this machine.
    pub isa: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            dtype: "auto".into(),
            quantization: "auto".into(),
            kv_cache_dtype: "auto".into(),
            kv_cache_memory: None,
            attention: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_queue: None,
            max_loras: None,
            max_lora_rank: None,
            max_lora_memory: None,
            enable_prefix_caching: true,
            deterministic: false,
            threads: None,
            seed: 0,
            tokenizer: None,
            chat_template: None,
            prefill_chunk: None,
            isa: None,
        }
    }
}

/// Size of the KV cache: JSON integers are bytes, other numbers a share of the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected bytes, or a fraction above 0 and below 1,")]
pub enum CacheSize {
    /// Bytes.
    Bytes(u64),
    /// Share of the device's memory.
    Fraction(f64),
}
