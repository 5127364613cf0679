//! A model folder: config.json beside safetensors files.

use std::path::Path;

use crate::ModelError;
use crate::config::{Config, read_json};
use crate::families::{self, Family};

/// Reads config.json of a model folder.
///
/// # Errors
/// `NotFound` without the folder or config.json; else as `families::read`.
pub fn read_family(folder: &Path) -> Result<Family, ModelError> {
    let missing = |what: &str| ModelError::NotFound { path: folder.to_path_buf(), what: what.into() };
    if !folder.is_dir() {
        return Err(missing("there is no such folder"));
    }
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(missing("there is no config.json in it"));
    }
    families::read(&Config::new(&read_json(&config)?))
}
