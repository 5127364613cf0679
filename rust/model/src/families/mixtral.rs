//! Mixtral: Mistral with a mixture of experts in every layer.

use super::common::{Traits, activation, intermediate, llama_layout};
use super::family::Family;
use super::layer_types::{layer_count, window};
use super::names::{ExpertNames, LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::spec::{FeedForwardSpec, MoeSpec, Scoring};

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let experts = ExpertNames {
        router: "model.layers.{i}.block_sparse_moe.gate",
        gate_up: &[
            "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
            "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
        ],
        down: "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
        ..LLAMA_NAMES.experts
    };
    let traits = Traits {
        windows: vec![window(config)?; layer_count(config)?],
        max_position: 131_072,
        norm_eps: 1e-5,
        theta: 1e6,
        names: TensorNames { experts, ..LLAMA_NAMES },
        ..Traits::new("MixtralForCausalLM")
    };
    let mut family = llama_layout(config, traits)?;
    let experts = config.int("num_local_experts", 1..=4096)?.unwrap_or(8);
    let moe = MoeSpec {
        experts,
        num_experts_per_tok: config.int("num_experts_per_tok", 1..=experts as u64)?.unwrap_or(2),
        intermediate: intermediate(config, "intermediate_size")?,
        activation: activation(config)?,
        scoring: Scoring::Softmax,
        e_score_correction_bias: false,
        groups: None,
        normalize: true,
        scale: 1.0,
        shared: None,
    };
    family.spec.layers.iter_mut().for_each(|l| l.mlp = FeedForwardSpec::Experts(moe.clone()));
    Ok(family)
}
