//! Gemma 1, 2 and 3 (text): scaled embeddings and norms by (1 + w). Gemma 2 adds norms after the blocks, soft caps and
//! sliding layers; Gemma 3 norms of heads and a rope of their own for sliding layers.

use super::common::{Traits, head_sizes, heads_mut, llama_layout, refuse_flag};
use super::family::Family;
use super::layer_types::{sliding_layers, sliding_pattern, window, windows};
use super::names::{LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::rope_config::{RopeTraits, rope_specs_by_layer_type};
use crate::spec::{ActivationKind, NormPlacement, QkNorm};

const SANDWICH: TensorNames = TensorNames {
    mlp_norm: "model.layers.{i}.pre_feedforward_layernorm.weight",
    mlp_post_norm: "model.layers.{i}.post_feedforward_layernorm.weight",
    ..LLAMA_NAMES
};

pub fn gemma1(config: &Config<'_>) -> Result<Family, ModelError> {
    build(config, Traits { max_position: 8192, ..Traits::new("GemmaForCausalLM") })
}

pub fn gemma2(config: &Config<'_>) -> Result<Family, ModelError> {
    let windows = windows(&sliding_layers(config, |i| i.is_multiple_of(2))?, window(config)?);
    let traits = Traits { windows, max_position: 8192, names: SANDWICH, ..Traits::new("Gemma2ForCausalLM") };
    sandwich(config, build(config, traits)?, (Some(50.0), Some(30.0)))
}

pub fn gemma3(config: &Config<'_>) -> Result<Family, ModelError> {
    let sliding = sliding_pattern(config, 6)?;
    let head_dim = head_sizes(config, Some(256))?.head_dim;
    let rope =
        |theta: f64| RopeTraits { head_dim, theta, partial: None, interleaved: false, max_position: 131_072 };
    let ropes = rope_specs_by_layer_type(config, rope(1e6), "rope_local_base_freq", rope(1e4))?;
    let traits = Traits {
        qk_norm: QkNorm::Heads,
        windows: windows(&sliding, window(config)?),
        max_position: 131_072,
        ropes: Some(ropes.into()),
        names: SANDWICH,
        ..Traits::new("Gemma3ForCausalLM")
    };
    let mut family = sandwich(config, build(config, traits)?, (None, None))?;
    for (attention, slides) in heads_mut(&mut family.spec).zip(sliding) {
        attention.rope = Some(usize::from(slides));
    }
    Ok(family)
}

/// What all three have.
fn build(config: &Config<'_>, traits: Traits) -> Result<Family, ModelError> {
    refuse_flag(config, "use_bidirectional_attention")?;
    let bias = config.flag("attention_bias", false)?;
    let act = match config.text("hidden_activation")? {
        Some(act) => act,
        None => config.text("hidden_act")?.unwrap_or("gelu_pytorch_tanh"),
    };
    // "gelu" in the first releases of Gemma meant the tanh form too.
    if !matches!(act, "gelu" | "gelu_pytorch_tanh") {
        return Err(ModelError::Unsupported(format!(
            "hidden_activation {act:?}: known is \"gelu_pytorch_tanh\""
        )));
    }
    let traits = Traits {
        qkv_bias: bias,
        out_bias: bias,
        head_dim: Some(256),
        activation: Some(ActivationKind::GeluTanh),
        tied: true,
        ..traits
    };
    let mut family = llama_layout(config, traits)?;
    family.spec.embedding_scale = (family.spec.hidden as f32).sqrt();
    family.spec.norm.offset = 1.0;
    Ok(family)
}

/// What Gemma 2 and 3 add; `caps` are the defaults of the soft caps on attention and on logits.
fn sandwich(
    config: &Config<'_>,
    mut family: Family,
    caps: (Option<f64>, Option<f64>),
) -> Result<Family, ModelError> {
    let cap = |key: &str, default: Option<f64>| -> Result<Option<f32>, ModelError> {
        let value = if config.names(key) { config.float(key, 0.0, 1e6)? } else { default };
        Ok(value.map(|v| v as f32))
    };
    let softcap = cap("attn_logit_softcapping", caps.0)?;
    let scalar = config.float("query_pre_attn_scalar", 0.0, 1e6)?.unwrap_or(256.0);
    for attention in heads_mut(&mut family.spec) {
        attention.softcap = softcap;
        attention.scale = scalar.powf(-0.5) as f32;
    }
    family.spec.logit_softcap = cap("final_logit_softcapping", caps.1)?;
    family.spec.norm_placement = NormPlacement::Sandwich;
    Ok(family)
}
