//! Model families: each a small function from config.json to a `ModelSpec` and the names of its tensors.
//!
//! To add one: a file here with `pub fn family(&Config) -> Result<Family, ModelError>`, its row in `FAMILIES`, its line in
//! docs/models.md.

mod cohere2;
mod common;
mod deepseek;
mod family;
mod gemma;
mod glm4;
mod granite;
mod layer_types;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen_moe;
mod smollm3;

pub use family::Family;
pub use names::{ExpertNames, MlaNames, TensorNames};

use crate::config::Config;
use crate::octavo_file::format as octavo_file;
use crate::{ModelError, compressed_tensors};

type FamilyFn = fn(&Config<'_>) -> Result<Family, ModelError>;

/// Architectures by the name that config.json's `architectures` gives, with their `model_type`.
const FAMILIES: &[(&str, &str, FamilyFn)] = &[
    ("LlamaForCausalLM", "llama", llama::family),
    ("MistralForCausalLM", "mistral", mistral::family),
    ("MixtralForCausalLM", "mixtral", mixtral::family),
    ("Qwen2ForCausalLM", "qwen2", qwen2::family),
    ("Qwen2MoeForCausalLM", "qwen2_moe", qwen_moe::qwen2),
    ("Qwen3ForCausalLM", "qwen3", qwen3::family),
    ("Qwen3MoeForCausalLM", "qwen3_moe", qwen_moe::qwen3),
    ("SmolLM3ForCausalLM", "smollm3", smollm3::family),
    ("Olmo2ForCausalLM", "olmo2", olmo::olmo2),
    ("Olmo3ForCausalLM", "olmo3", olmo::olmo3),
    ("GraniteForCausalLM", "granite", granite::family),
    ("Phi3ForCausalLM", "phi3", phi3::family),
    ("GemmaForCausalLM", "gemma", gemma::gemma1),
    ("Gemma2ForCausalLM", "gemma2", gemma::gemma2),
    ("Gemma3ForCausalLM", "gemma3_text", gemma::gemma3),
    ("Glm4ForCausalLM", "glm4", glm4::family),
    ("Cohere2ForCausalLM", "cohere2", cohere2::family),
    ("DeepseekV2ForCausalLM", "deepseek_v2", deepseek::v2),
    ("DeepseekV3ForCausalLM", "deepseek_v3", deepseek::v3),
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
    let packed = match config.object("quantization_config")? {
        None => None,
        Some(q) => match octavo_file::scheme_of(&q)? {
            None => compressed_tensors::check(&q).map(|()| None)?,
            scheme => scheme,
        },
    };
    Ok(Family { packed, ..family(config)? })
}
