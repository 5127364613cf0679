//! Adapters as Python dictionaries.

use octavo_engine::LoadedAdapter;
use pyo3::prelude::*;
use serde_json::Value;

use crate::json;

/// The fields of an adapter by name.
pub fn described<'py>(py: Python<'py>, adapter: &LoadedAdapter) -> PyResult<Bound<'py, PyAny>> {
    json::to_python(py, &serde_json::to_value(adapter).unwrap_or(Value::Null))
}
