//! Model families: each a small function from config.json to a `ModelSpec` and the names of its tensors.
//!
//! To add one: a file here with `pub fn family(&Config) -> Result<Family, ModelError>`, its row in `table.rs`, its defaults in `defaults.rs`, its line in
//! docs/models.md.

mod architecture;
mod cohere2;
mod common;
mod deepseek;
mod defaults;
mod family;
mod gemma;
mod glm4;
mod granite;
mod layer_types;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen_moe;
mod smollm3;
mod table;

pub use family::Family;
pub use names::{ExpertNames, MlaNames, TensorNames};
pub use table::known;

use crate::config::Config;
use crate::octavo_file::format as octavo_file;
use crate::{ModelError, compressed_tensors};

/// Reads config.json into a spec.
///
/// # Errors
/// `Unsupported` names an architecture or option that the spec cannot express; `BadConfig` an impossible value.
pub fn read(config: &Config<'_>) -> Result<Family, ModelError> {
    let chosen = architecture::choose(config)?;
    if !config.flag("is_causal", true)? {
        return Err(ModelError::Unsupported(
            "is_causal false in config.json: attention to later tokens, as some embedding models have it"
                .into(),
        ));
    }
    quantised_elsewhere(config)?;
    let quantization = match config.object("quantization_config")? {
        Some(q) => Some(q),
        // The first compressed-tensors checkpoints have it under this name.
        None => config.object("compression_config")?,
    };
    let packed = match quantization {
        None => None,
        Some(q) => match octavo_file::scheme_of(&q)? {
            None => compressed_tensors::check(&q).map(|()| None)?,
            scheme => scheme,
        },
    };
    let filled = defaults::fill(config, chosen.model_type);
    let mut family = (chosen.read)(&Config::new(&filled))?;
    family.spec.max_position = family.spec.scaled_context();
    Ok(Family { packed, base: chosen.base, warnings: chosen.warnings, ..family })
}

/// Refuses weights of MLX, which have a key of their own.
fn quantised_elsewhere(config: &Config<'_>) -> Result<(), ModelError> {
    match config.value("quantization") {
        None => Ok(()),
        Some(how) => Err(ModelError::Unsupported(format!(
            "the checkpoint is quantised by MLX (quantization {how} in config.json). Give the model in bfloat16, float16 or \
             float32 that it was made from"
        ))),
    }
}
