//! Fits a checkpoint to the names that a family has for its tensors, and the spec to what the checkpoint holds.
//!
//! ```text
//! names   embed_tokens.weight, module.model.norm.weight, ...   -> model.embed_tokens.weight, ...      (prefix)
//! experts mlp.experts.gate_up_proj [experts, 2 inner, hidden]  -> views, one for each expert          (experts)
//! head    one of two tied tensors; another head than config.json says; none                           (head)
//! ```
//!
//! Only the table of names changes. No tensor is copied.

mod experts;
mod head;
mod prefix;
mod unused;

pub(crate) use prefix::module_name;
pub use unused::warn_of_unused;

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::families::Family;
use crate::folder::{ModelFolder, read_family};

/// Reads config.json and opens the weights, fitted to each other.
///
/// # Errors
/// As [`ModelFolder::config`] and [`ModelFolder::tensors`]; `Unsupported` for tensors that are named in another way.
pub fn open_model(folder: &dyn ModelFolder) -> Result<(Family, Checkpoint), ModelError> {
    let mut family = read_family(folder)?;
    let checkpoint = open_fitted(folder, &mut family)?;
    Ok((family, checkpoint))
}

/// The weights of `folder`, and `family` fitted to them.
pub(crate) fn open_fitted(folder: &dyn ModelFolder, family: &mut Family) -> Result<Checkpoint, ModelError> {
    let mut checkpoint = folder.tensors()?;
    for warning in &family.warnings {
        checkpoint.warn(warning.clone());
    }
    if family.packed.is_some() {
        head::fit_packed(family, &checkpoint);
        return Ok(checkpoint);
    }
    prefix::fit(family, &mut checkpoint)?;
    experts::fit(family, &mut checkpoint)?;
    head::fit(family, &mut checkpoint)?;
    Ok(checkpoint)
}
