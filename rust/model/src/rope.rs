//! Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864) and its long-context scalings.
//!
//! Angles are computed as transformers does: inverse frequencies and their products with positions in f32.

use serde::Serialize;
use serde_json::Value;

use crate::ModelError;
use crate::config::Config;

/// How the base frequencies are changed for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Plain rope.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above original / low are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below original / high are high frequencies.
        high_freq_factor: f32,
        /// Context of the pre-training, in tokens.
        original_max_position: f32,
    },
}

/// One rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// Rotated channels of a head (even); the rest pass through.
    pub rotary_dim: usize,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// Inverse frequencies `[rotary_dim / 2]`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dim = self.rotary_dim as f32;
        (0..self.rotary_dim / 2).map(|i| self.scaled(1.0 / self.theta.powf((2 * i) as f32 / dim))).collect()
    }

    fn scaled(&self, inv: f32) -> f32 {
        match self.scaling {
            RopeScaling::Default => inv,
            RopeScaling::Linear { factor } => inv / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let wavelength = 2.0 * std::f32::consts::PI / inv;
                if wavelength > original_max_position / low_freq_factor {
                    inv / factor
                } else if wavelength < original_max_position / high_freq_factor {
                    inv
                } else {
                    let smooth = (original_max_position / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * inv / factor + smooth * inv
                }
            }
        }
    }
}

/// Cosines and sines `[positions, rotary_dim / 2]` for the positions of one step.
#[derive(Default)]
pub struct RopeTable {
    /// Cosines, row-major.
    pub cos: Vec<f32>,
    /// Sines, row-major.
    pub sin: Vec<f32>,
}

impl RopeTable {
    /// Fills the table for `positions`, reusing its memory.
    pub fn fill(&mut self, inverse_frequencies: &[f32], positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &p in positions {
            for &inv in inverse_frequencies {
                let (sin, cos) = (f64::from(p as f32 * inv)).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }
}

/// Reads the rope settings in both spellings: `rope_theta` + `rope_scaling`, and `rope_parameters`, which wins.
///
/// # Errors
/// An unknown scaling is refused by name; missing or impossible numbers are named.
pub fn rope_spec(config: &Config<'_>, head_dim: usize, default_theta: f64) -> Result<RopeSpec, ModelError> {
    let nested = match config.object("rope_parameters")? {
        Some(p) => Some(p),
        None => config.object("rope_scaling")?,
    };
    let theta_of = |c: &Config<'_>| c.float("rope_theta", 0.0, 1e12);
    let theta = match nested.as_ref().map(theta_of).transpose()?.flatten() {
        Some(t) => t,
        None => theta_of(config)?.unwrap_or(default_theta),
    };
    for kind in ["full_attention", "sliding_attention"] {
        if nested.as_ref().is_some_and(|c| c.has(kind)) {
            return Err(ModelError::Unsupported(format!("rope settings for each layer type ({kind})")));
        }
    }
    // `partial_rotary_factor` is not read: the families here turn whole heads, whatever config.json says.
    let rotary_dim = head_dim;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(ModelError::Unsupported(format!(
            "rotary embedding over {rotary_dim} channels of a head of {head_dim}: an even number above 0 is needed"
        )));
    }
    let scaling = nested.map_or(Ok(RopeScaling::Default), |c| scaling(&c, config))?;
    Ok(RopeSpec { theta: theta as f32, rotary_dim, scaling })
}

fn scaling(c: &Config<'_>, top: &Config<'_>) -> Result<RopeScaling, ModelError> {
    let kind = match c.text("rope_type")? {
        Some(t) => t,
        None => c.text("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: c.need_float("factor", 0.0, 1e6)? as f32 }),
        "llama3" => {
            let low = c.need_float("low_freq_factor", 0.0, 1e6)?;
            let high = c.need_float("high_freq_factor", 0.0, 1e6)?;
            if high <= low {
                return Err(c.bad(
                    "high_freq_factor",
                    &Value::from(high),
                    format!("more than low_freq_factor ({low}) is expected"),
                ));
            }
            let original = match c.float("original_max_position_embeddings", 0.0, 1e9)? {
                Some(n) => n,
                None => top.need_float("max_position_embeddings", 0.0, 1e9)?,
            };
            Ok(RopeScaling::Llama3 {
                factor: c.need_float("factor", 0.0, 1e6)? as f32,
                low_freq_factor: low as f32,
                high_freq_factor: high as f32,
                original_max_position: original as f32,
            })
        }
        other => Err(ModelError::Unsupported(format!(
            "rope scaling {other:?}: known are \"default\", \"linear\" and \"llama3\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(v: Value) -> Result<RopeSpec, ModelError> {
        rope_spec(&Config::new(v.as_object().expect("object")), 64, 10000.0)
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
        let plain = RopeSpec { scaling: RopeScaling::Default, ..spec }.inverse_frequencies();
        let scaled = spec.inverse_frequencies();
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        assert!(scaled.windows(2).all(|w| w[0] > w[1]));
    }
}
