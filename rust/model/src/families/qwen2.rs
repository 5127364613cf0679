//! Qwen2 and Qwen2.5: bias on q, k and v; the upper layers may have a sliding window.

use super::common::{Traits, llama_layout};
use super::family::Family;
use super::layer_types::qwen_windows;
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let windows = qwen_windows(config)?;
    let traits = Traits { qkv_bias: true, windows, max_position: 32_768, ..Traits::new("Qwen2ForCausalLM") };
    llama_layout(config, traits)
}
