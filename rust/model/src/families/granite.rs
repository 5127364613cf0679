//! Granite: Llama with factors on embeddings, residuals, attention and logits.

use super::common::{Traits, heads_mut, llama_layout};
use super::family::Family;
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let traits = Traits { qkv_bias: bias, out_bias: bias, mlp_bias, ..Traits::new("GraniteForCausalLM") };
    let mut family = llama_layout(config, traits)?;
    let factor = |key: &str| Ok::<_, ModelError>(config.float(key, 0.0, 1e6)?.unwrap_or(1.0) as f32);
    family.spec.embedding_scale = factor("embedding_multiplier")?;
    family.spec.residual_scale = factor("residual_multiplier")?;
    family.spec.logit_scale = 1.0 / factor("logits_scaling")?;
    let scale = factor("attention_multiplier")?;
    heads_mut(&mut family.spec).for_each(|a| a.scale = scale);
    Ok(family)
}
