//! SmolLM3: Llama in which each fourth layer has no rotary embedding.

use serde_json::Value;

use super::common::{Traits, heads_mut, llama_layout};
use super::family::Family;
use super::layer_types::{layer_count, sliding_layers, window, windows};
use crate::ModelError;
use crate::config::Config;

pub fn family(config: &Config<'_>) -> Result<Family, ModelError> {
    let turns = turning_layers(config)?;
    let bias = config.flag("attention_bias", false)?;
    let window = if config.flag("use_sliding_window", false)? { window(config)? } else { None };
    // Without layer_types the layers without rope slide.
    let sliding = sliding_layers(config, |i| window.is_some() && !turns[i])?;
    let traits = Traits {
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        windows: windows(&sliding, window),
        max_position: 32_768,
        theta: 2_000_000.0,
        tied: true,
        ..Traits::new("SmolLM3ForCausalLM")
    };
    let mut family = llama_layout(config, traits)?;
    for (attention, turns) in heads_mut(&mut family.spec).zip(turns) {
        attention.rope = turns.then_some(0);
    }
    Ok(family)
}

/// For each layer whether it has rope: `no_rope_layers`, in which 1 means that it has, or each but the n-th.
fn turning_layers(config: &Config<'_>) -> Result<Vec<bool>, ModelError> {
    let layers = layer_count(config)?;
    let Some(value) = config.value("no_rope_layers") else {
        let interval = config.int("no_rope_layer_interval", 1..=1024)?.unwrap_or(4);
        return Ok((0..layers).map(|i| !(i + 1).is_multiple_of(interval)).collect());
    };
    let flag = |v: &Value| v.as_u64().filter(|n| *n < 2).map(|n| n == 1).or(v.as_bool());
    let flags = value.as_array().and_then(|a| a.iter().map(flag).collect::<Option<Vec<_>>>());
    match flags {
        Some(flags) if flags.len() >= layers => Ok(flags[..layers].to_vec()),
        _ => Err(config.bad("no_rope_layers", value, format!("{layers} entries of 0 or 1 are expected"))),
    }
}
