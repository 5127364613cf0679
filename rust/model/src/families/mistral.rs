//! Mistral: Llama with one sliding window on every layer.

use super::Family;
use super::common::{Traits, layer_count, llama_layout};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let window = config.int("sliding_window", 0..=1 << 30)?.filter(|w| *w > 0).map(|w| w as u32);
    llama_layout(
        config,
        Traits {
            architecture: "MistralForCausalLM",
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: vec![window; layer_count(config)?],
            head_dim: None,
            max_position: 131_072,
            tied: false,
        },
    )
}
