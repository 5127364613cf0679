//! From a model folder to its weights as a file that loads by mapping.

use std::path::Path;

use octavo_model::{Quantized, open, quantization_config, quantize, read_family};
use serde_json::{Value, json};

use crate::EngineError;
use crate::config::EngineConfig;
use crate::info::kept_in_bf16_sentences;
use crate::limits::Device;
use crate::load::kernels;
use crate::resolve::resolve;

/// Writes the weights of `folder` to the new file `output`, as `options` hold them. `source` is the model's name for the file.
///
/// # Errors
/// As `Engine::load`; `InvalidRequest` for options without int8, or if `output` cannot be written.
pub fn quantize_weights(
    folder: &Path,
    output: &Path,
    source: &str,
    options: &EngineConfig,
) -> Result<Value, EngineError> {
    let folder = &*open(folder)?;
    let family = read_family(folder)?;
    let format = resolve(options, &family.spec, Device::Cpu)?.weights;
    let kernels = kernels(options)?;
    let made_by = concat!("octavo ", env!("CARGO_PKG_VERSION"));
    let made = quantize(&kernels, folder, &family, format, output, source, made_by)?;
    let Quantized { bytes, kept_in_bf16, warnings, origin, scheme } = made;
    Ok(json!({
        "bytes": bytes,
        "kept_in_bf16": kept_in_bf16_sentences(&kept_in_bf16, format.error_budget),
        "warnings": warnings,
        "origin": origin,
        "quantization_config": quantization_config(scheme),
    }))
}
