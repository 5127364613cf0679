//! Qwen2-MoE and Qwen3-MoE: experts on all layers but those that config.json excepts.

use serde_json::Value;

use super::common::{Traits, activation, intermediate, llama_layout};
use super::family::Family;
use super::layer_types::{layer_count, sliding_layers, window, windows};
use super::names::{ExpertNames, LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::spec::{FeedForwardSpec, MoeSpec, QkNorm, Scoring, SharedExpertSpec};

pub fn qwen2(config: &Config<'_>) -> Result<Family, ModelError> {
    let experts = ExpertNames {
        shared_gate_up: &[
            "model.layers.{i}.mlp.shared_expert.gate_proj",
            "model.layers.{i}.mlp.shared_expert.up_proj",
        ],
        shared_down: "model.layers.{i}.mlp.shared_expert.down_proj",
        ..LLAMA_NAMES.experts
    };
    let window = if config.flag("use_sliding_window", false)? { window(config)? } else { None };
    let first = config.int("max_window_layers", 0..=1 << 20)?.unwrap_or(28);
    // Without layer_types each second layer below max_window_layers slides.
    let sliding = sliding_layers(config, |i| window.is_some() && i.is_multiple_of(2) && i < first)?;
    let traits = Traits {
        qkv_bias: config.flag("qkv_bias", true)?,
        windows: windows(&sliding, window),
        max_position: 32_768,
        names: TensorNames { experts, ..LLAMA_NAMES },
        ..Traits::new("Qwen2MoeForCausalLM")
    };
    let shared = SharedExpertSpec {
        intermediate: intermediate(config, "shared_expert_intermediate_size")?,
        gated: true,
    };
    build(config, traits, Some(shared))
}

pub fn qwen3(config: &Config<'_>) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let window = if config.flag("use_sliding_window", false)? { window(config)? } else { None };
    let traits = Traits {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: QkNorm::Heads,
        windows: vec![window; layer_count(config)?],
        max_position: 32_768,
        ..Traits::new("Qwen3MoeForCausalLM")
    };
    build(config, traits, None)
}

fn build(
    config: &Config<'_>,
    traits: Traits,
    shared: Option<SharedExpertSpec>,
) -> Result<Family, ModelError> {
    let mut family = llama_layout(config, traits)?;
    let experts = match config.int("num_experts", 0..=4096)? {
        Some(n) => n,
        None => config.need_int("num_local_experts", 0..=4096)?,
    };
    if experts == 0 {
        return Ok(family);
    }
    let moe = MoeSpec {
        experts,
        num_experts_per_tok: config.need_int("num_experts_per_tok", 1..=experts as u64)?,
        intermediate: intermediate(config, "moe_intermediate_size")?,
        activation: activation(config)?,
        scoring: Scoring::Softmax,
        e_score_correction_bias: false,
        groups: None,
        normalize: config.flag("norm_topk_prob", false)?,
        scale: 1.0,
        shared,
    };
    let step = config.int("decoder_sparse_step", 1..=1024)?.unwrap_or(1);
    let dense = dense_layers(config)?;
    for (i, layer) in family.spec.layers.iter_mut().enumerate() {
        if (i + 1).is_multiple_of(step) && !dense.contains(&i) {
            layer.mlp = FeedForwardSpec::Experts(moe.clone());
        }
    }
    Ok(family)
}

/// `mlp_only_layers`: indices of layers without experts.
fn dense_layers(config: &Config<'_>) -> Result<Vec<usize>, ModelError> {
    let Some(value) = config.value("mlp_only_layers") else { return Ok(Vec::new()) };
    let index = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let list = value.as_array().and_then(|a| a.iter().map(index).collect::<Option<Vec<_>>>());
    list.ok_or_else(|| config.bad("mlp_only_layers", value, "a list of layer indices is expected"))
}
