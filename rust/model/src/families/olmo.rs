//! OLMo 2 and 3: norms after the blocks, and a norm over all heads of queries and of keys. OLMo 3 slides on three of four
//! layers and scales the rope of the others only.

use super::common::{Traits, head_sizes, heads_mut, llama_layout};
use super::family::Family;
use super::layer_types::{sliding_layers, window, windows};
use super::names::{LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::rope_config::{RopeTraits, rope_specs_by_layer_type};
use crate::spec::{NormPlacement, QkNorm};

pub fn olmo2(config: &Config<'_>) -> Result<Family, ModelError> {
    build(config, Traits::new("Olmo2ForCausalLM"))
}

pub fn olmo3(config: &Config<'_>) -> Result<Family, ModelError> {
    let sliding = sliding_layers(config, |i| !(i + 1).is_multiple_of(4))?;
    let window = window(config)?;
    let head_dim = head_sizes(config, None)?.head_dim;
    let rope =
        RopeTraits { head_dim, theta: 500_000.0, partial: None, interleaved: false, max_position: 2048 };
    let ropes = rope_specs_by_layer_type(config, rope, "rope_theta", rope)?;
    let windows = windows(&sliding, window);
    let ropes = Some(ropes.into());
    let mut family = build(config, Traits { windows, ropes, ..Traits::new("Olmo3ForCausalLM") })?;
    for (attention, slides) in heads_mut(&mut family.spec).zip(sliding) {
        attention.rope = Some(usize::from(slides));
    }
    Ok(family)
}

fn build(config: &Config<'_>, traits: Traits) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let names = TensorNames {
        attention_post_norm: "model.layers.{i}.post_attention_layernorm.weight",
        mlp_post_norm: "model.layers.{i}.post_feedforward_layernorm.weight",
        ..LLAMA_NAMES
    };
    let traits =
        Traits { qkv_bias: bias, out_bias: bias, qk_norm: QkNorm::Whole, norm_eps: 1e-5, names, ..traits };
    let mut family = llama_layout(config, traits)?;
    family.spec.norm_placement = NormPlacement::Post;
    Ok(family)
}
