//! Model families: each a small function from config.json to a `ModelSpec` and the names of its tensors.
//!
//! To add one: a file here with `pub fn family(&Config) -> Result<Family, ModelError>`, and its row in `FAMILIES`.

mod common;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use crate::config::Config;
use crate::{ModelError, ModelSpec};

/// A spec with the names under which the checkpoint stores its tensors.
pub struct Family {
    /// The decoder.
    pub spec: ModelSpec,
    /// Where its weights are.
    pub names: TensorNames,
}

/// Names of tensors; `{i}` stands for the index of the layer.
pub struct TensorNames {
    /// Embedding `[vocab, hidden]`.
    pub embed: &'static str,
    /// Last norm `[hidden]`.
    pub norm: &'static str,
    /// Output head `[vocab, hidden]`, where it is not tied.
    pub head: &'static str,
    /// Norm before attention `[hidden]`.
    pub attention_norm: &'static str,
    /// Query projection `[heads * head_dim, hidden]`, without `.weight`.
    pub q: &'static str,
    /// Key projection `[kv_heads * head_dim, hidden]`.
    pub k: &'static str,
    /// Value projection `[kv_heads * head_dim, hidden]`.
    pub v: &'static str,
    /// Output projection `[hidden, heads * head_dim]`.
    pub o: &'static str,
    /// Norm of query heads `[head_dim]`.
    pub q_norm: &'static str,
    /// Norm of key heads `[head_dim]`.
    pub k_norm: &'static str,
    /// Norm before the feed-forward block `[hidden]`.
    pub mlp_norm: &'static str,
    /// Gate projection `[intermediate, hidden]`.
    pub gate: &'static str,
    /// Up projection `[intermediate, hidden]`.
    pub up: &'static str,
    /// Down projection `[hidden, intermediate]`.
    pub down: &'static str,
}

type FamilyFn = fn(&Config<'_>) -> Result<Family, ModelError>;

/// Architectures by the name that config.json's `architectures` gives, with their `model_type`.
const FAMILIES: &[(&str, &str, FamilyFn)] = &[
    ("LlamaForCausalLM", "llama", llama::family),
    ("MistralForCausalLM", "mistral", mistral::family),
    ("Qwen2ForCausalLM", "qwen2", qwen2::family),
    ("Qwen3ForCausalLM", "qwen3", qwen3::family),
];

/// Architectures that load, for messages and `octavo info`.
pub fn known() -> Vec<&'static str> {
    FAMILIES.iter().map(|f| f.0).collect()
}

/// Reads config.json into a spec.
///
/// # Errors
/// `Unsupported` names an architecture or option that the spec cannot express; `BadConfig` an impossible value.
pub fn read(config: &Config<'_>) -> Result<Family, ModelError> {
    let architecture = config.texts("architectures")?.and_then(|a| a.first().copied());
    let model_type = config.text("model_type")?;
    let found = FAMILIES.iter().find(|(name, kind, _)| match architecture {
        Some(a) => a == *name,
        None => model_type == Some(kind),
    });
    let Some((_, _, family)) = found else {
        let asked = architecture.or(model_type).unwrap_or("none named in config.json");
        return Err(ModelError::Unsupported(format!(
            "architecture {asked}. Known are: {}",
            known().join(", ")
        )));
    };
    if config.has("quantization_config") {
        return Err(ModelError::Unsupported(
            "the checkpoint is quantised (quantization_config). Give one in bfloat16, float16 or float32: \
             octavo quantises it while it loads"
                .into(),
        ));
    }
    family(config)
}
