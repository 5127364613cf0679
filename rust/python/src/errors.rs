//! Rust errors to the Python hierarchy of octavo.errors.

use octavo_engine::EngineError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The exception `octavo.errors.<class>` with `message`.
pub fn raise(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let found =
        py.import("octavo.errors").and_then(|m| m.getattr(class)?.cast_into::<PyType>().map_err(Into::into));
    match found {
        Ok(class) => PyErr::from_type(class, message.to_string()),
        Err(_) => PyRuntimeError::new_err(message.to_string()),
    }
}

/// The exception of an engine error.
pub fn to_python(py: Python<'_>, error: &EngineError) -> PyErr {
    raise(py, error.class_name(), &error.to_string())
}
