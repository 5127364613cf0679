//! Qwen2 and Qwen2.5: bias on q, k and v; the upper layers may have a sliding window.

use super::common::{llama_layout, qwen_windows, Traits};
use super::Family;
use crate::config::Config;
use crate::ModelError;

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
