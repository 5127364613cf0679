//! Options of dynamic attention: the one place of this crate that names them.

pub use octavo_kernels::{DynamicParams as AttentionConfig, Mode as AttentionMode};
use serde::{Deserialize, Deserializer};

use crate::EngineError;

/// Dynamic attention as `octavo.DynamicAttention` has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DynamicAttention {
    mode: String,
    error_bound: f32,
    min_context: usize,
    sink_blocks: usize,
    local_blocks: usize,
    max_blocks: Option<usize>,
    audit: usize,
}

/// Reads the options; None: dense attention.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<AttentionConfig>, D::Error> {
    let Some(a) = Option::<DynamicAttention>::deserialize(d)? else { return Ok(None) };
    let known = || AttentionMode::ALL.map(AttentionMode::name).join(", ");
    let mode = AttentionMode::ALL.into_iter().find(|mode| mode.name() == a.mode);
    let mode = mode.ok_or_else(|| {
        serde::de::Error::custom(format!("mode {:?} is unknown, expected one of {}", a.mode, known()))
    })?;
    Ok(Some(AttentionConfig {
        mode,
        error_bound: a.error_bound,
        min_context: a.min_context,
        sink_blocks: a.sink_blocks,
        local_blocks: a.local_blocks,
        max_blocks: a.max_blocks.unwrap_or(usize::MAX),
        audit: a.audit,
    }))
}

/// Checks the options by themselves.
///
/// # Errors
/// `InvalidRequest` names the option, its value and what is allowed.
pub(crate) fn check(a: &AttentionConfig) -> Result<(), EngineError> {
    let invalid = |text: String| Err(EngineError::InvalidRequest(text));
    if !(a.error_bound > 0.0 && a.error_bound < 1.0) {
        let value = a.error_bound;
        return invalid(format!("error_bound is {value:?}: a number above 0 and below 1 is expected"));
    }
    if a.mode == AttentionMode::Budget && a.max_blocks == 0 {
        return invalid("max_blocks is 0: at least 1 is expected".into());
    }
    Ok(())
}
