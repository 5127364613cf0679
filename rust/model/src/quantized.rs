//! Checkpoints that are quantised already. Two forms are read: octavo's own (see `packed`), and compressed-tensors with int8
//! weights and a scale per row or per tensor, whose activations are quantised while the model runs, as LLM Compressor
//! publishes them ("W8A8").
//!
//! Which layers of the latter are quantised is seen from the tensors themselves: one stored as I8 beside a `..._scale`.

use serde_json::Value;

use crate::ModelError;
use crate::config::Config;
use crate::packed_form::{METHOD, check_layout};

/// How the weights of a checkpoint are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One tensor for each matrix.
    Plain,
    /// As kernels read them, by `octavo quantize`.
    Packed,
}

/// Checks `quantization_config`; fine if there is none.
///
/// # Errors
/// `Unsupported` names what is in it that is not read.
pub fn check(config: &Config<'_>) -> Result<Form, ModelError> {
    let Some(q) = config.object("quantization_config")? else { return Ok(Form::Plain) };
    let refuse = |what: String| {
        Err(ModelError::Unsupported(format!(
            "the checkpoint is quantised with {what} (quantization_config). Give one in bfloat16, float16 or float32 (octavo quantises it while it \
             loads), or compressed-tensors with int8 weights, one scale per channel and dynamic int8 activations (W8A8)"
        )))
    };
    let method = q.text("quant_method")?.unwrap_or("none named");
    if method == METHOD {
        let version = q.int("version", 0..=u64::from(u32::MAX))?.map(|version| version.to_string());
        check_layout(version.as_deref(), q.text("layout")?, "config.json")?;
        return Ok(Form::Packed);
    }
    if method != "compressed-tensors" {
        return refuse(format!("quant_method {method:?}"));
    }
    let format = q.text("format")?.unwrap_or("none named");
    if format != "int-quantized" {
        return refuse(format!("compressed-tensors format {format:?}"));
    }
    for key in ["kv_cache_scheme", "transform_config"] {
        if q.value(key).is_some_and(|v| !is_empty(v)) {
            return refuse(format!("compressed-tensors {key}"));
        }
    }
    let dense = q.object("sparsity_config")?.map_or(Ok(None), |s| s.text("format"))?.unwrap_or("dense");
    if dense != "dense" {
        return refuse(format!("compressed-tensors sparsity format {dense:?}"));
    }
    let groups = q.value("config_groups").and_then(Value::as_object);
    let Some(groups) = groups.filter(|g| !g.is_empty()) else {
        return refuse("compressed-tensors without config_groups".into());
    };
    for (name, group) in groups {
        let Some(group) = group.as_object() else { return refuse(format!("config_groups.{name} {group}")) };
        let part = |key: &str| group.get(key).filter(|v| !v.is_null());
        let Some(weights) = part("weights") else {
            return refuse(format!("no weights in config_groups.{name}"));
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
                return refuse(format!("weights of {key} {value} (config_groups.{name})"));
            }
        }
        if part("output_activations").is_some() {
            return refuse(format!("output_activations (config_groups.{name})"));
        }
        let Some(activations) = part("input_activations") else { continue };
        for (key, known) in [
            ("num_bits", Value::from(8)),
            ("type", "int".into()),
            ("symmetric", true.into()),
            ("dynamic", true.into()),
        ] {
            let value = activations.get(key).unwrap_or(&Value::Null);
            if *value != known {
                return refuse(format!("activations of {key} {value} (config_groups.{name})"));
            }
        }
    }
    Ok(Form::Plain)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}
