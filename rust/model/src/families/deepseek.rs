//! DeepSeek V2 and V3 (R1): latent attention, many small experts beside shared ones.

use serde_json::Value;

use super::common::{Traits, activation, intermediate, llama_layout, refuse_flag};
use super::family::Family;
use crate::ModelError;
use crate::config::Config;
use crate::rope_config::{RopeTraits, rope_spec, yarn_mscale};
use crate::spec::{
    AttentionSpec, ExpertGroups, FeedForwardSpec, MlaSpec, MoeSpec, Scoring, SharedExpertSpec,
};

pub fn v2(config: &Config<'_>) -> Result<Family, ModelError> {
    refuse_flag(config, "mlp_bias")?;
    // The reference ignores it; a checkpoint that was trained with it would run wrong.
    refuse_flag(config, "norm_topk_prob")?;
    expect(config, "scoring_func", "softmax")?;
    let experts = experts(config, None)?;
    let groups = match config.text("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => Some(groups(config, experts, 1, (1, 1))?),
        other => {
            return Err(ModelError::Unsupported(format!(
                "topk_method {other:?}: known are \"greedy\" and \"group_limited_greedy\""
            )));
        }
    };
    let moe = MoeSpec { groups, ..moe(config, experts, 1.0)? };
    build(config, "DeepseekV2ForCausalLM", true, moe, 0)
}

pub fn v3(config: &Config<'_>) -> Result<Family, ModelError> {
    expect(config, "scoring_func", "sigmoid")?;
    expect(config, "topk_method", "noaux_tc")?;
    let experts = experts(config, Some(256))?;
    let moe = MoeSpec {
        scoring: Scoring::Sigmoid,
        e_score_correction_bias: true,
        groups: Some(groups(config, experts, 2, (8, 4))?),
        normalize: config.flag("norm_topk_prob", true)?,
        ..moe(config, experts, 2.5)?
    };
    build(config, "DeepseekV3ForCausalLM", config.flag("rope_interleave", true)?, moe, 3)
}

fn build(
    config: &Config<'_>,
    architecture: &'static str,
    interleaved: bool,
    moe: MoeSpec,
    dense_default: usize,
) -> Result<Family, ModelError> {
    let max_position = if dense_default == 0 { 2048 } else { 4096 };
    if config.int("moe_layer_freq", 1..=1024)?.is_some_and(|n| n != 1) {
        return Err(ModelError::Unsupported("moe_layer_freq other than 1".into()));
    }
    let (heads, qk_rope_head_dim) =
        (config.need_int("num_attention_heads", 1..=4096)?, config.need_int("qk_rope_head_dim", 2..=1024)?);
    let rope =
        RopeTraits { head_dim: qk_rope_head_dim, theta: 10_000.0, partial: None, interleaved, max_position };
    let latent = MlaSpec {
        heads,
        q_lora_rank: config.int("q_lora_rank", 1..=1 << 16)?,
        kv_lora_rank: config.need_int("kv_lora_rank", 1..=1 << 14)?,
        qk_nope_head_dim: config.need_int("qk_nope_head_dim", 1..=1024)?,
        qk_rope_head_dim,
        v_head_dim: config.need_int("v_head_dim", 1..=1024)?,
        scale: scale(config)?,
        bias: config.flag("attention_bias", false)?,
        norm_eps: 1e-6,
        rope: 0,
    };
    let traits = Traits {
        // The sizes of heads come from `latent`; this keeps hidden / heads from being asked for.
        head_dim: Some(qk_rope_head_dim),
        ropes: Some(vec![rope_spec(config, rope)?]),
        max_position,
        ..Traits::new(architecture)
    };
    let mut family = llama_layout(config, traits)?;
    let dense = config.int("first_k_dense_replace", 0..=1024)?.unwrap_or(dense_default);
    for (i, layer) in family.spec.layers.iter_mut().enumerate() {
        layer.attention = AttentionSpec::Mla(latent.clone());
        if i >= dense {
            layer.mlp = FeedForwardSpec::Experts(moe.clone());
        }
    }
    Ok(family)
}

/// 1 / sqrt(channels of a head), sharpened where YaRN asks for it.
fn scale(config: &Config<'_>) -> Result<f32, ModelError> {
    let channels =
        config.need_int("qk_nope_head_dim", 1..=1024)? + config.need_int("qk_rope_head_dim", 2..=1024)?;
    let rope = match config.object("rope_parameters")? {
        Some(rope) => Some(rope),
        None => config.object("rope_scaling")?,
    };
    let mut sharper = 1.0;
    if let Some(rope) = rope {
        let kind = rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default");
        let weight = rope.float("mscale_all_dim", -1e-9, 1e3)?.filter(|w| *w > 0.0);
        if let (Some(weight), true) = (weight, kind != "default") {
            sharper = yarn_mscale(rope.need_float("factor", 0.0, 1e6)?, weight).powi(2);
        }
    }
    Ok(((channels as f64).powf(-0.5) * sharper) as f32)
}

fn experts(config: &Config<'_>, default: Option<usize>) -> Result<usize, ModelError> {
    match config.int("n_routed_experts", 1..=4096)?.or(default) {
        Some(n) => Ok(n),
        None => config.need_int("n_routed_experts", 1..=4096),
    }
}

fn moe(config: &Config<'_>, experts: usize, scale: f64) -> Result<MoeSpec, ModelError> {
    let inner = intermediate(config, "moe_intermediate_size")?;
    let shared = config.int("n_shared_experts", 0..=1024)?.unwrap_or(0);
    Ok(MoeSpec {
        experts,
        num_experts_per_tok: config.need_int("num_experts_per_tok", 1..=experts as u64)?,
        intermediate: inner,
        activation: activation(config)?,
        scoring: Scoring::Softmax,
        e_score_correction_bias: false,
        groups: None,
        normalize: false,
        scale: config.float("routed_scaling_factor", 0.0, 1e6)?.unwrap_or(scale) as f32,
        shared: (shared > 0).then_some(SharedExpertSpec { intermediate: shared * inner, gated: false }),
    })
}

/// Groups whose score is the sum of their `best` best experts; `default` are their number and how many of them a token uses.
fn groups(
    config: &Config<'_>,
    experts: usize,
    best: usize,
    default: (usize, usize),
) -> Result<ExpertGroups, ModelError> {
    let count = config.int("n_group", 1..=experts as u64)?.unwrap_or(default.0);
    let chosen = config.int("topk_group", 1..=count as u64)?.unwrap_or(default.1);
    let size = experts / count;
    let num_experts_per_tok = config.need_int("num_experts_per_tok", 1..=experts as u64)?;
    if !experts.is_multiple_of(count) || size < best || chosen * size < num_experts_per_tok {
        let expected = format!(
            "a divisor of {experts} experts is expected, with {best} experts or more in a group and {num_experts_per_tok} in \
             {chosen} groups"
        );
        return Err(config.bad("n_group", &Value::from(count), expected));
    }
    Ok(ExpertGroups { count, chosen, best })
}

/// Refuses any other value of `key` than the one of the family.
fn expect(config: &Config<'_>, key: &str, known: &str) -> Result<(), ModelError> {
    match config.text(key)? {
        Some(other) if other != known => {
            Err(ModelError::Unsupported(format!("{key} {other:?}: known is {known:?}")))
        }
        _ => Ok(()),
    }
}
