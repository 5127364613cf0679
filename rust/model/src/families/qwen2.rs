//! Qwen2 and Qwen2.5: bias on q, k and v; the upper layers may have a sliding window.

use super::Family;
use super::common::{Traits, llama_layout, qwen_windows};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    llama_layout(
        config,
        Traits {
            architecture: "Qwen2ForCausalLM",
            qkv_bias: true,
            out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: qwen_windows(config)?,
            head_dim: None,
            max_position: 32_768,
            tied: false,
        },
    )
}
