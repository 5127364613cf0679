//! Mistral: Llama with one sliding window on every layer.

use super::common::{Traits, llama_layout};
use super::family::Family;
use super::layer_types::{layer_count, window};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let windows = vec![window(config)?; layer_count(config)?];
    llama_layout(config, Traits { windows, max_position: 131_072, ..Traits::new("MistralForCausalLM") })
}
