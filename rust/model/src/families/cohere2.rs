//! Cohere 2 (Command R7B): attention and feed-forward side by side after one LayerNorm, interleaved rope on sliding layers
//! and none on the others, a factor on logits.

use super::common::{Traits, heads_mut, llama_layout, refuse_flag};
use super::family::Family;
use super::layer_types::{sliding_pattern, window, windows};
use crate::ModelError;
use crate::config::Config;
use crate::spec::{NormKind, NormPlacement};

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    refuse_flag(config, "use_qk_norm")?;
    if !config.flag("use_parallel_block", true)? {
        return Err(ModelError::Unsupported("use_parallel_block false in config.json".into()));
    }
    let bias = config.flag("attention_bias", false)?;
    let sliding = sliding_pattern(config, 4)?;
    let traits = Traits {
        qkv_bias: bias,
        out_bias: bias,
        windows: windows(&sliding, window(config)?),
        max_position: 8192,
        interleaved: true,
        tied: true,
        ..Traits::new("Cohere2ForCausalLM")
    };
    let mut family = llama_layout(config, traits)?;
    for (attention, slides) in heads_mut(&mut family.spec).zip(sliding) {
        attention.rope = slides.then_some(0);
    }
    family.spec.norm.kind = NormKind::Layer;
    family.spec.norm.eps = config.float("layer_norm_eps", 0.0, 1.0)?.unwrap_or(1e-5) as f32;
    family.spec.norm_placement = NormPlacement::Parallel;
    family.spec.logit_scale = config.float("logit_scale", 0.0, 1e6)?.unwrap_or(0.0625) as f32;
    Ok(family)
}
