//! Which layers slide: `layer_types`, and the older keys that meant the same.

use serde_json::Value;

use crate::ModelError;
use crate::config::Config;

/// Number of layers.
pub fn layer_count(config: &Config<'_>) -> Result<usize, ModelError> {
    config.need_int("num_hidden_layers", 1..=1024)
}

/// The sliding window; None where it is absent, null or 0.
pub fn window(config: &Config<'_>) -> Result<Option<u32>, ModelError> {
    Ok(config.int("sliding_window", 0..=1 << 30)?.filter(|w| *w > 0).map(|w| w as u32))
}

/// For each layer whether it slides: `layer_types`, else what `default` says of its index.
pub fn sliding_layers(config: &Config<'_>, default: impl Fn(usize) -> bool) -> Result<Vec<bool>, ModelError> {
    let layers = layer_count(config)?;
    let Some(types) = config.texts("layer_types")? else { return Ok((0..layers).map(default).collect()) };
    if types.len() != layers {
        let expected = format!("one entry for each of {layers} layers is expected");
        return Err(config.bad("layer_types", &Value::from(types.len()), expected));
    }
    let slides = |t: &&str| match *t {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(ModelError::Unsupported(format!("layer type {other:?}"))),
    };
    types.iter().map(slides).collect()
}

/// For each layer whether it slides, where all but each `sliding_window_pattern`-th layer do.
pub fn sliding_pattern(config: &Config<'_>, default: usize) -> Result<Vec<bool>, ModelError> {
    let pattern = config.int("sliding_window_pattern", 1..=1024)?.unwrap_or(default);
    sliding_layers(config, |i| !(i + 1).is_multiple_of(pattern))
}

/// The window of each layer that slides.
pub fn windows(sliding: &[bool], window: Option<u32>) -> Vec<Option<u32>> {
    sliding.iter().map(|&s| window.filter(|_| s)).collect()
}

/// The window of each layer for configs with `use_sliding_window`, `max_window_layers` and `layer_types`.
pub fn qwen_windows(config: &Config<'_>) -> Result<Vec<Option<u32>>, ModelError> {
    let layers = layer_count(config)?;
    let window = window(config)?;
    if !config.flag("use_sliding_window", false)? || window.is_none() {
        return Ok(vec![None; layers]);
    }
    let first = config.int("max_window_layers", 0..=1 << 20)?.unwrap_or(layers);
    Ok(windows(&sliding_layers(config, |i| i >= first)?, window))
}
