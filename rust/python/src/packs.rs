//! Packs as Python dictionaries.

use std::path::PathBuf;

use octavo_engine::{LoadedPack, NewPack, PackForm, Source};
use pyo3::prelude::*;
use serde_json::Value;

use crate::errors::{raise, to_python};
use crate::json;

/// The fields of a loaded pack by name.
pub fn described<'py>(py: Python<'py>, pack: &LoadedPack) -> PyResult<Bound<'py, PyAny>> {
    json::to_python(py, &serde_json::to_value(pack).unwrap_or(Value::Null))
}

/// What a pack is made of. `sources`: title, first character, and the character behind the last one.
pub fn new_pack(
    py: Python<'_>,
    form: &str,
    text: String,
    sources: Vec<(String, u64, u64)>,
    tokens: Vec<u32>,
    lora: Option<String>,
    replace: bool,
) -> PyResult<NewPack> {
    let form = [PackForm::Chat, PackForm::Text].into_iter().find(|known| known.name() == form);
    let form =
        form.ok_or_else(|| raise(py, "InvalidRequestError", "form: \"chat\" or \"text\" is expected"))?;
    let sources = sources.into_iter().map(|(title, start, end)| Source { title, start, end }).collect();
    Ok(NewPack { form, text, sources, tokens, lora, replace })
}

/// What pack.json of a folder says. Needs no model.
#[pyfunction]
pub fn read_pack(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let described = py.detach(|| octavo_engine::describe_pack(&path));
    json::to_python(py, &described.map_err(|e| to_python(py, &e))?)
}
