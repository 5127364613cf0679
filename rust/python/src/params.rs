//! Sampling parameters as a Python class.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::errors::to_python;
use crate::json;

/// A checked set of sampling parameters, made once and shared by requests.
#[pyclass(frozen, module = "octavo._core")]
pub struct SamplingParams(pub Arc<octavo_engine::SamplingParams>);

#[pymethods]
impl SamplingParams {
    #[new]
    fn new(fields: &Bound<'_, PyAny>) -> PyResult<Self> {
        let params = json::read_fields(fields, octavo_engine::SamplingParams::from_fields)?;
        params.check().map_err(|e| to_python(fields.py(), &e))?;
        Ok(Self(Arc::new(params)))
    }
}
