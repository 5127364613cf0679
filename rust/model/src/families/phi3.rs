//! Phi-3 and Phi-4-mini: fused projections, rope over a share of each head, LongRoPE.

use super::common::{Traits, llama_layout};
use super::family::Family;
use super::layer_types::{layer_count, window};
use super::names::{LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let names = TensorNames {
        qkv: &["model.layers.{i}.self_attn.qkv_proj"],
        gate_up: &["model.layers.{i}.mlp.gate_up_proj"],
        ..LLAMA_NAMES
    };
    let traits = Traits {
        windows: vec![window(config)?; layer_count(config)?],
        max_position: 4096,
        norm_eps: 1e-5,
        partial_rotary: Some(1.0),
        names,
        ..Traits::new("Phi3ForCausalLM")
    };
    llama_layout(config, traits)
}
