//! Llama 2 and 3.

use super::common::{Traits, llama_layout};
use super::family::Family;
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    llama_layout(
        config,
        Traits { qkv_bias: bias, out_bias: bias, mlp_bias, ..Traits::new("LlamaForCausalLM") },
    )
}
