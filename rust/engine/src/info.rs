//! `Engine::info`: model, memory plan, kernels, in one form for both devices.

use std::path::Path;

use octavo_model::{KeptInBf16, ModelSpec};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::memory::MemoryFacts;
use crate::resolve::ResolvedConfig;

/// What an executor reports about itself once, when it is made.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecutorFacts {
    /// Memory figures.
    pub memory: MemoryFacts,
    /// "int8", or "none".
    pub quantization: String,
    /// Element type of the checkpoint.
    pub checkpoint_dtype: Option<String>,
    /// A sentence for each tensor that is held in bfloat16 instead of int8.
    pub kept_in_bf16: Vec<String>,
    /// Description of the quantised file that holds the weights.
    pub quantized_file: Value,
    /// Sentences about the model's files.
    pub warnings: Vec<String>,
    /// Kernel of each operation.
    pub kernels: Map<String, Value>,
    /// Seconds from the start of loading.
    pub load_seconds: f64,
}

/// The document that `Engine::info` returns, without limits and defaults.
pub(crate) fn info(
    folder: &Path,
    spec: &ModelSpec,
    resolved: &ResolvedConfig,
    has_template: bool,
    facts: ExecutorFacts,
) -> Value {
    json!({
        "model": {
            "path": folder.display().to_string(),
            "architecture": spec.architecture,
            "parameters": spec.parameters(),
            "layers": spec.layers.len(),
            "hidden": spec.hidden,
            "vocab": spec.vocab,
            "checkpoint_dtype": facts.checkpoint_dtype,
            "dtype": resolved.dtype.name(),
            "quantization": facts.quantization,
            "kept_in_bf16": facts.kept_in_bf16,
            "quantized_file": facts.quantized_file,
            "kv_cache_dtype": resolved.kv_format.name(),
            "chat_template": has_template,
            "load_seconds": facts.load_seconds,
        },
        "warnings": facts.warnings,
        "memory": resolved.memory,
        "kernels": facts.kernels,
    })
}

/// A sentence for each tensor that int8 would change too much.
pub(crate) fn kept_in_bf16_sentences(kept_in_bf16: &[KeptInBf16], budget: Option<f64>) -> Vec<String> {
    let share = |x: f64| format!("{:.2} %", 100.0 * x);
    let limit = share(budget.unwrap_or(f64::INFINITY));
    let sentence = |t: &KeptInBf16| match Some(t.error) > budget {
        true => format!(
            "{} (bfloat16: int8 would be {} off, at most {limit} is allowed)",
            t.tensor,
            share(t.error)
        ),
        false => format!("{} (bfloat16: packed together with one that is)", t.tensor),
    };
    kept_in_bf16.iter().map(sentence).collect()
}
