//! What generation_config.json and config.json say about generating: sampling defaults and end-of-sequence tokens.

use octavo_model::{Config, ModelFolder};
use serde_json::Value;

use crate::EngineError;
use crate::generation_keys;
use crate::params::SamplingDefaults;
use crate::tokenizer::Tokenizer;

/// Defaults of the model's own.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct GenerationDefaults {
    /// Sampling defaults.
    pub sampling: SamplingDefaults,
    /// `max_new_tokens`, which `max_tokens=None` takes.
    pub max_new_tokens: Option<u32>,
    /// Tokens that end an output.
    pub eos: Vec<u32>,
    /// Keys that ask for what is not done.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl GenerationDefaults {
    /// Reads a model folder. End-of-sequence ids: those of generation_config.json, else of config.json,
    /// and the tokenizer's.
    pub fn read(folder: &dyn ModelFolder, tokenizer: &Tokenizer) -> Result<Self, EngineError> {
        let generation = folder.generation_config()?;
        let g = Config::of_file(&generation, "generation_config.json");
        let neutral = SamplingDefaults::default();
        let float = |key: &str, high: f64, default: f32| -> Result<f32, EngineError> {
            Ok(g.float(key, -1e-9, high)?.map_or(default, |f| f as f32))
        };
        // Written by some models for "off": top_k -1, top_p 0, repetition_penalty 0.
        let or_off = |value: f32, off: f32| if value > 0.0 { value } else { off };
        let top_k = if g.value("top_k").and_then(Value::as_i64) == Some(-1) {
            None
        } else {
            g.int("top_k", 0..=1 << 22)?
        };
        let mut sampling = SamplingDefaults {
            temperature: float("temperature", 100.0, neutral.temperature)?,
            top_p: or_off(float("top_p", 1.0, neutral.top_p)?, neutral.top_p),
            top_k: top_k.map_or(neutral.top_k, |k| k as u32),
            min_p: float("min_p", 1.0, neutral.min_p)?,
            repetition_penalty: or_off(float("repetition_penalty", 100.0, 1.0)?, neutral.repetition_penalty),
        };
        if g.value("do_sample") == Some(&Value::Bool(false)) {
            sampling.temperature = 0.0;
        }
        let mut eos = ids(generation.get("eos_token_id"));
        if eos.is_empty() {
            eos = ids(folder.config()?.get("eos_token_id"));
        }
        // A chat model's end of turn is often the tokenizer's token only.
        let own = tokenizer.special_token("eos_token").and_then(|t| tokenizer.id_of(t));
        eos.extend(own.filter(|id| !eos.contains(id)));
        let max_new_tokens = g.int("max_new_tokens", 0..=1 << 28)?.filter(|n| *n > 0).map(|n| n as u32);
        Ok(Self { sampling, max_new_tokens, eos, warnings: generation_keys::warnings(&g) })
    }
}

/// One id, or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(v) => id(v).into_iter().collect(),
        None => Vec::new(),
    }
}
