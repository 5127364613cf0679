//! Qwen3 (dense): RMS norm on every query and key head.

use super::Family;
use super::common::{Traits, llama_layout, qwen_windows};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    llama_layout(
        config,
        Traits {
            architecture: "Qwen3ForCausalLM",
            qkv_bias: bias,
            out_bias: bias,
            mlp_bias: false,
            qk_norm: true,
            windows: qwen_windows(config)?,
            head_dim: Some(128),
            max_position: 32_768,
            tied: false,
        },
    )
}
