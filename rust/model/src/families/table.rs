//! The families by name.

use super::family::Family;
use super::{
    cohere2, deepseek, gemma, glm4, granite, llama, mistral, mixtral, olmo, phi3, qwen_moe, qwen2, qwen3,
    smollm3,
};
use crate::ModelError;
use crate::config::Config;

/// Reads a config of the family.
pub type FamilyFn = fn(&Config<'_>) -> Result<Family, ModelError>;

/// Architectures by the name that config.json's `architectures` gives, with their `model_type`.
pub const FAMILIES: &[(&str, &str, FamilyFn)] = &[
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
