//! GLM-4 (0414): norms around the blocks, interleaved rope over half of each head, a fused gate and up projection.

use super::common::{Traits, llama_layout};
use super::family::Family;
use super::names::{LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::spec::NormPlacement;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let names = TensorNames {
        attention_post_norm: "model.layers.{i}.post_self_attn_layernorm.weight",
        mlp_post_norm: "model.layers.{i}.post_mlp_layernorm.weight",
        gate_up: &["model.layers.{i}.mlp.gate_up_proj"],
        ..LLAMA_NAMES
    };
    let traits = Traits {
        qkv_bias: config.flag("attention_bias", true)?,
        head_dim: Some(128),
        max_position: 131_072,
        norm_eps: 1.5625e-7,
        partial_rotary: Some(0.5),
        interleaved: true,
        names,
        ..Traits::new("Glm4ForCausalLM")
    };
    let mut family = llama_layout(config, traits)?;
    family.spec.norm_placement = NormPlacement::Sandwich;
    Ok(family)
}
