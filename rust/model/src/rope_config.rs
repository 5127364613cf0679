//! Rope settings of config.json, in the spellings of transformers 4 and 5.

use serde_json::Value;

use crate::ModelError;
use crate::config::Config;
use crate::rope::{RopeScaling, RopeSpec};

/// Rope properties of a family that config.json does not give.
#[derive(Clone, Copy)]
pub struct RopeTraits {
    /// Channels of a head; all turn, unless `partial` says otherwise.
    pub head_dim: usize,
    /// `rope_theta` where config.json gives none.
    pub theta: f64,
    /// Default of `partial_rotary_factor`; None: the family does not read that key.
    pub partial: Option<f64>,
    /// Neighbouring channels form a pair.
    pub interleaved: bool,
    /// `max_position_embeddings` where config.json gives none.
    pub max_position: usize,
}

/// Reads rope settings that hold for all layers: `rope_theta` + `rope_scaling`, or `rope_parameters`, which wins.
///
/// # Errors
/// An unknown scaling is refused by name; missing or impossible numbers are named.
pub fn rope_spec(config: &Config<'_>, traits: RopeTraits) -> Result<RopeSpec, ModelError> {
    let nested = match config.object("rope_parameters")? {
        Some(p) => Some(p),
        None => config.object("rope_scaling")?,
    };
    for kind in ["full_attention", "sliding_attention"] {
        if nested.as_ref().is_some_and(|c| c.has(kind)) {
            return Err(ModelError::Unsupported(format!("rope settings for each layer type ({kind})")));
        }
    }
    read(nested, config, "rope_theta", traits)
}

/// Reads the rope of full attention layers and that of sliding ones: `rope_parameters` with a dict for each, or the older
/// `rope_theta` + `rope_scaling` for full attention beside `local_theta_key` without scaling for sliding layers.
///
/// # Errors
/// As [`rope_spec`].
pub fn rope_specs_by_layer_type(
    config: &Config<'_>,
    full: RopeTraits,
    local_theta_key: &str,
    local: RopeTraits,
) -> Result<[RopeSpec; 2], ModelError> {
    let Some(new) = config.object("rope_parameters")? else {
        let scaling = config.object("rope_scaling")?;
        return Ok([read(scaling, config, "rope_theta", full)?, read(None, config, local_theta_key, local)?]);
    };
    if !new.has("full_attention") && !new.has("sliding_attention") {
        return Err(ModelError::Unsupported(
            "one rope for all layers in a family that has one for each layer type".into(),
        ));
    }
    Ok([
        read(new.object("full_attention")?, config, "rope_theta", full)?,
        read(new.object("sliding_attention")?, config, local_theta_key, local)?,
    ])
}

fn read(
    nested: Option<Config<'_>>,
    top: &Config<'_>,
    theta_key: &str,
    traits: RopeTraits,
) -> Result<RopeSpec, ModelError> {
    let inner = |key: &str, high: f64| nested.as_ref().map_or(Ok(None), |c| c.float(key, 0.0, high));
    let theta = match inner("rope_theta", 1e12)? {
        Some(t) => t,
        None => top.float(theta_key, 0.0, 1e12)?.unwrap_or(traits.theta),
    };
    let head_dim = traits.head_dim;
    let rotary_dim = match traits.partial {
        // Some configs carry the key though their family turns whole heads.
        None => head_dim,
        Some(default) => {
            let share = match inner("partial_rotary_factor", 1.0)? {
                Some(share) => share,
                None => top.float("partial_rotary_factor", 0.0, 1.0)?.unwrap_or(default),
            };
            (head_dim as f64 * share) as usize
        }
    };
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(ModelError::Unsupported(format!(
            "rotary embedding over {rotary_dim} channels of a head of {head_dim}: an even number above 0 is needed"
        )));
    }
    let scaling =
        nested.map_or(Ok(RopeScaling::Default), |c| scaling(&c, top, rotary_dim, traits.max_position))?;
    Ok(RopeSpec { theta: theta as f32, rotary_dim, interleaved: traits.interleaved, scaling })
}

fn scaling(
    c: &Config<'_>,
    top: &Config<'_>,
    rotary_dim: usize,
    max_default: usize,
) -> Result<RopeScaling, ModelError> {
    let kind = match c.text("rope_type")? {
        Some(t) => t,
        None => c.text("type")?.unwrap_or("default"),
    };
    let max_position = || {
        let given = top.float("max_position_embeddings", 0.0, 1e9)?;
        Ok::<_, ModelError>(given.unwrap_or(max_default as f64))
    };
    let original = || match top.float("original_max_position_embeddings", 0.0, 1e9)? {
        Some(n) => Ok(n),
        None => c.float("original_max_position_embeddings", 0.0, 1e9)?.map_or_else(max_position, Ok),
    };
    let factor = || c.need_float("factor", 0.0, 1e6);
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? as f32 }),
        "dynamic" if rotary_dim == 2 => {
            Err(ModelError::Unsupported("dynamic rope scaling over two channels of a head".into()))
        }
        "dynamic" => Ok(RopeScaling::Dynamic {
            factor: factor()? as f32,
            original_max_position: max_position()? as f32,
        }),
        "llama3" => {
            let low = c.need_float("low_freq_factor", 0.0, 1e6)?;
            let high = c.need_float("high_freq_factor", 0.0, 1e6)?;
            if high <= low {
                let expected = format!("more than low_freq_factor ({low}) is expected");
                return Err(c.bad("high_freq_factor", &Value::from(high), expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()? as f32,
                low_freq_factor: low as f32,
                high_freq_factor: high as f32,
                original_max_position: original()? as f32,
            })
        }
        "yarn" => yarn(
            c,
            original()?,
            c.float("factor", 0.0, 1e6)?.map_or_else(|| Ok(max_position()? / original()?), Ok)?,
        ),
        // The first Phi-3 checkpoints call it "su".
        "longrope" | "su" => longrope(c, original()?, max_position()?, rotary_dim / 2),
        other => Err(ModelError::Unsupported(format!(
            "rope scaling {other:?}: known are \"default\", \"linear\", \"dynamic\", \"llama3\", \"yarn\" and \"longrope\""
        ))),
    }
}

/// The growth of attention's sharpness with the context that YaRN recommends: 1 + 0.1 weight ln(factor).
pub fn yarn_mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

fn yarn(c: &Config<'_>, original: f64, factor: f64) -> Result<RopeScaling, ModelError> {
    // 0 means "not given" in the configs of DeepSeek.
    let weight = |key: &str| Ok::<_, ModelError>(c.float(key, -1e-9, 1e3)?.filter(|w| *w > 0.0));
    let attention_factor =
        match (c.float("attention_factor", -1e-9, 1e6)?, weight("mscale")?, weight("mscale_all_dim")?) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all),
            (None, _, _) => yarn_mscale(factor, 1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: c.float("beta_fast", 0.0, 1e6)?.unwrap_or(32.0),
        beta_slow: c.float("beta_slow", 0.0, 1e6)?.unwrap_or(1.0),
        original_max_position: original,
        truncate: c.flag("truncate", true)?,
        attention_factor: attention_factor as f32,
    })
}

fn longrope(
    c: &Config<'_>,
    original: f64,
    max_position: f64,
    channels: usize,
) -> Result<RopeScaling, ModelError> {
    let list = |key: &str| -> Result<Vec<f32>, ModelError> {
        let value = c.value(key).unwrap_or(&Value::Null);
        let numbers = value
            .as_array()
            .map(|a| a.iter().filter_map(Value::as_f64).filter(|f| *f > 0.0).collect::<Vec<_>>());
        match numbers {
            Some(n) if n.len() == channels && value.as_array().is_some_and(|a| a.len() == channels) => {
                Ok(n.into_iter().map(|f| f as f32).collect())
            }
            _ => Err(c.bad(key, value, format!("a list of {channels} numbers above 0 is expected"))),
        }
    };
    let factor = c.float("factor", 0.0, 1e6)?.unwrap_or(max_position / original);
    let attention_factor = match c.float("attention_factor", -1e-9, 1e6)? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeScaling::Longrope {
        short_factor: list("short_factor")?,
        long_factor: list("long_factor")?,
        factor: factor as f32,
        original_max_position: original as f32,
        attention_factor: attention_factor as f32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(v: Value) -> Result<RopeSpec, ModelError> {
        let traits = RopeTraits {
            head_dim: 64,
            theta: 10000.0,
            partial: None,
            interleaved: false,
            max_position: 2048,
        };
        rope_spec(&Config::new(v.as_object().expect("object")), traits)
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64});
        let old = read(json!({"rope_theta": 5e5, "rope_scaling": scaling})).expect("old");
        let mut with_theta = scaling;
        with_theta["rope_theta"] = json!(5e5);
        let new = read(json!({"rope_theta": 1.0, "rope_parameters": with_theta})).expect("new");
        assert_eq!(old, new);
        assert_eq!(
            read(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).expect("alias").scaling,
            RopeScaling::Linear { factor: 2.0 }
        );
    }

    #[test]
    fn an_unknown_scaling_is_refused_by_name() {
        let error = read(json!({"rope_scaling": {"rope_type": "spiral"}})).expect_err("refused");
        assert!(error.to_string().contains("spiral"), "{error}");
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let spec = read(json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}))
        .expect("spec");
        let plain = RopeSpec { scaling: RopeScaling::Default, ..spec.clone() }.inverse_frequencies(64);
        let scaled = spec.inverse_frequencies(64);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        assert!(scaled.windows(2).all(|w| w[0] > w[1]));
    }
}
