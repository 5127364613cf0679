//! How an engine is made. Every field has a default that suits most.

use std::path::PathBuf;

use octavo_kernels::{DynamicParams, Isa, Mode, WeightDtype};
use octavo_model::{Dtype, KvFormat, WeightFormat};

use crate::EngineError;

/// Relative root mean square error of a projection's outputs above which `quantization="auto"` keeps it in bfloat16.
///
/// docs/fidelity.md has the measurement: were every projection of the embedded model off by this much, the mean KL to
/// float32 would stay below the 0.005 nats that int8 is allowed. Weights without outliers are off by about 0.01.
const INT8_ERROR_BUDGET: f64 = 0.05;

/// Options of `Engine::load`; names and meanings are those of `octavo.LLM`.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// "auto" | "float32" | "bfloat16": storage and computation where not quantised.
    pub dtype: String,
    /// "auto" (int8, but for tensors that int8 would change too much) | "none" | "int8".
    pub quantization: String,
    /// "auto" | "float32" | "bfloat16" | "int8".
    pub kv_cache_dtype: String,
    /// What attention may leave out; None: nothing.
    pub attention: Option<DynamicParams>,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: Option<u64>,
    /// The KV cache as a share of the machine's memory.
    pub kv_cache_fraction: Option<f64>,
    /// Longest sequence.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step.
    pub max_num_batched_tokens: Option<usize>,
    /// Requests that may wait.
    pub max_queue: Option<usize>,
    /// Share the KV blocks of equal prefixes.
    pub enable_prefix_caching: bool,
    /// Threads; None: one per core.
    pub threads: Option<usize>,
    /// Seed of requests that bring none.
    pub seed: u64,
    /// Folder or tokenizer.json, if not the model's.
    pub tokenizer: Option<PathBuf>,
    /// Text of a chat template, if not the model's.
    pub chat_template: Option<String>,
    /// Tokens of one sequence's prefill chunk; None: as the step has room.
    pub prefill_chunk: Option<usize>,
    /// Instruction-set level of the kernels ("portable", "avx2", "avx512", "amx"); None: that of the environment variable
    /// `OCTAVO_ISA`, else the best of this machine.
    pub isa: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            dtype: "auto".into(),
            quantization: "auto".into(),
            kv_cache_dtype: "auto".into(),
            attention: None,
            kv_cache_bytes: None,
            kv_cache_fraction: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_queue: None,
            enable_prefix_caching: true,
            threads: None,
            seed: 0,
            tokenizer: None,
            chat_template: None,
            prefill_chunk: None,
            isa: None,
        }
    }
}

fn refuse<T>(name: &str, value: &str, expected: &str) -> Result<T, EngineError> {
    Err(EngineError::InvalidRequest(format!("{name} is {value:?}: {expected}")))
}

impl EngineConfig {
    /// The float type of weights and KV cache, for a checkpoint that declares `declared`.
    pub(crate) fn float_dtype(&self, declared: Option<Dtype>) -> Result<Dtype, EngineError> {
        match self.dtype.as_str() {
            // float16 checkpoints are held in bfloat16, which the CPU reads as fast; float32 keeps every bit of them.
            "auto" => Ok(match declared {
                Some(Dtype::Float32) => Dtype::Float32,
                _ => Dtype::Bfloat16,
            }),
            "float32" => Ok(Dtype::Float32),
            "bfloat16" => Ok(Dtype::Bfloat16),
            "float16" => {
                refuse("dtype", "float16", "on the CPU use \"bfloat16\", or \"float32\" to keep every bit")
            }
            other => refuse("dtype", other, "\"auto\", \"float32\" or \"bfloat16\" is expected"),
        }
    }

    /// Refuses an impossible number of threads.
    pub(crate) fn check_threads(&self) -> Result<(), EngineError> {
        match self.threads {
            None | Some(1..=1024) => Ok(()),
            Some(_) => {
                Err(EngineError::InvalidRequest("threads: a number from 1 to 1024 is expected".into()))
            }
        }
    }

    /// The instruction-set level of the kernels.
    pub(crate) fn isa_level(&self) -> Result<Isa, EngineError> {
        let (name, level) = match &self.isa {
            Some(name) => ("isa", name.parse()),
            None => ("OCTAVO_ISA", Isa::from_env()),
        };
        level.map_err(|e| EngineError::InvalidRequest(format!("{name}: {e}")))
    }

    /// How weights are held.
    pub(crate) fn weight_format(&self, float: Dtype) -> Result<WeightFormat, EngineError> {
        match (self.quantization.as_str(), float) {
            ("auto", _) => {
                Ok(WeightFormat { dtype: WeightDtype::Int8, error_budget: Some(INT8_ERROR_BUDGET) })
            }
            ("int8", _) => Ok(WeightDtype::Int8.into()),
            ("none", Dtype::Float32) => Ok(WeightDtype::F32.into()),
            ("none", _) => Ok(WeightDtype::Bf16.into()),
            (other, _) => refuse("quantization", other, "\"auto\", \"int8\" or None is expected"),
        }
    }

    /// How the KV cache is held.
    pub(crate) fn kv_format(&self, float: Dtype) -> Result<KvFormat, EngineError> {
        if let Some(attention) = &self.attention {
            if !(attention.error_bound > 0.0 && attention.error_bound < 1.0) {
                let value = format!("{:?}", attention.error_bound);
                return refuse("error_bound", &value, "a number above 0 and below 1 is expected");
            }
            if attention.mode == Mode::Budget && attention.max_blocks == 0 {
                return refuse("max_blocks", "0", "at least 1 is expected");
            }
            if !matches!(self.kv_cache_dtype.as_str(), "auto" | "int8") {
                let expected = "attention=\"dynamic\" reads an int8 cache: use \"int8\" or \"auto\"";
                return refuse("kv_cache_dtype", &self.kv_cache_dtype, expected);
            }
            return Ok(KvFormat { float, int8: true });
        }
        match self.kv_cache_dtype.as_str() {
            "auto" => Ok(float.into()),
            "float32" => Ok(Dtype::Float32.into()),
            "bfloat16" => Ok(Dtype::Bfloat16.into()),
            "int8" => Ok(KvFormat { float, int8: true }),
            other => {
                let expected = "\"auto\", \"float32\", \"bfloat16\" or \"int8\" is expected";
                refuse("kv_cache_dtype", other, expected)
            }
        }
    }
}
