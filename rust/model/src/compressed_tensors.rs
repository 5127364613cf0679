//! compressed-tensors checkpoints with int8 weights and int8 activations, as LLM Compressor publishes them ("W8A8").
//!
//! A quantised matrix is stored as I8 `NAME` beside `NAME_scale` (a scale per row or per tensor). Activations are quantised
//! while the model runs. The tensors show which layers are quantised; config.json is only checked.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::config::Config;

/// Checks a `quantization_config` other than octavo's own.
///
/// # Errors
/// `Unsupported` names the method or the setting that is not supported.
pub fn check(q: &Config<'_>) -> Result<(), ModelError> {
    let method = q.text("quant_method")?.unwrap_or("none named");
    if method != "compressed-tensors" {
        return unsupported(format!("quant_method {method:?}"));
    }
    let format = q.text("format")?.unwrap_or("none named");
    if format != "int-quantized" {
        return unsupported(format!("compressed-tensors format {format:?}"));
    }
    for key in ["kv_cache_scheme", "transform_config"] {
        if q.value(key).is_some_and(|v| !is_empty(v)) {
            return unsupported(format!("compressed-tensors {key}"));
        }
    }
    let dense = q.object("sparsity_config")?.map_or(Ok(None), |s| s.text("format"))?.unwrap_or("dense");
    if dense != "dense" {
        return unsupported(format!("compressed-tensors sparsity format {dense:?}"));
    }
    let groups = q.value("config_groups").and_then(Value::as_object);
    let Some(groups) = groups.filter(|g| !g.is_empty()) else {
        return unsupported("compressed-tensors without config_groups".into());
    };
    groups.iter().try_for_each(|(name, group)| match group.as_object() {
        Some(group) => check_group(name, group),
        None => unsupported(format!("config_groups.{name} {group}")),
    })
}

/// Checks one entry of `config_groups`.
fn check_group(name: &str, group: &Map<String, Value>) -> Result<(), ModelError> {
    let part = |key: &str| group.get(key).filter(|v| !v.is_null());
    let Some(weights) = part("weights") else {
        return unsupported(format!("no weights in config_groups.{name}"));
    };
    for (key, known) in [
        ("num_bits", &[Value::from(8)][..]),
        ("type", &["int".into()]),
        ("symmetric", &[true.into()]),
        ("strategy", &["channel".into(), "tensor".into()]),
        ("actorder", &[Value::Null, "weight".into(), "static".into()]),
    ] {
        let value = weights.get(key).unwrap_or(&Value::Null);
        if !known.contains(value) {
            return unsupported(format!("weights of {key} {value} (config_groups.{name})"));
        }
    }
    if part("output_activations").is_some() {
        return unsupported(format!("output_activations (config_groups.{name})"));
    }
    let Some(activations) = part("input_activations") else { return Ok(()) };
    for (key, known) in [
        ("num_bits", Value::from(8)),
        ("type", "int".into()),
        ("symmetric", true.into()),
        ("dynamic", true.into()),
    ] {
        let value = activations.get(key).unwrap_or(&Value::Null);
        if *value != known {
            return unsupported(format!("activations of {key} {value} (config_groups.{name})"));
        }
    }
    Ok(())
}

fn unsupported(what: String) -> Result<(), ModelError> {
    Err(ModelError::Unsupported(format!(
        "the checkpoint is quantised with {what} (quantization_config). Give one in bfloat16, float16 or float32 (octavo quantises it while it \
         loads), or compressed-tensors with int8 weights, one scale per channel and dynamic int8 activations (W8A8)"
    )))
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}
