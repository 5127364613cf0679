//! Qwen3 (dense): RMS norm on every query and key head.

use super::common::{Traits, llama_layout};
use super::family::Family;
use super::layer_types::qwen_windows;
use crate::ModelError;
use crate::config::Config;
use crate::spec::QkNorm;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    llama_layout(
        config,
        Traits {
            qkv_bias: bias,
            out_bias: bias,
            qk_norm: QkNorm::Heads,
            windows: qwen_windows(config)?,
            head_dim: Some(128),
            max_position: 32_768,
            ..Traits::new("Qwen3ForCausalLM")
        },
    )
}
