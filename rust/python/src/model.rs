//! What an executor in Python needs of a model folder: the spec, the names of tensors, and their checked bytes.

use std::path::PathBuf;
use std::sync::Arc;

use octavo_engine::EngineError;
use octavo_model::{Dtype, ModelError, open, read_family};
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use serde_json::json;

use crate::buffer::Buffer;
use crate::errors::to_python;
use crate::json;

fn raise(py: Python<'_>, error: ModelError) -> PyErr {
    to_python(py, &EngineError::from(error))
}

/// Spec and tensor names of a model folder, and its ropes where no sequence is longer than `context`.
pub fn read(py: Python<'_>, folder: PathBuf, context: usize) -> PyResult<Bound<'_, PyAny>> {
    let family = py.detach(|| read_family(&*open(&folder)?)).map_err(|e| raise(py, e))?;
    let rope = |r: &octavo_model::RopeSpec| json!({"inverse_frequencies": r.inverse_frequencies(context), "amplitude": r.amplitude()});
    let ropes: Vec<_> = family.spec.ropes.iter().map(rope).collect();
    let value = json!({
        "spec": family.spec,
        "names": family.names,
        "ropes": ropes,
        "longest_context": family.spec.longest_context(),
        "parameters": family.spec.parameters(),
    });
    json::to_python(py, &value)
}

/// The safetensors files of a model folder, mapped, every name and offset checked.
#[pyclass(frozen, module = "octavo._core")]
pub struct Checkpoint(Arc<octavo_model::Checkpoint>);

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        let open = || open(&folder)?.tensors();
        py.detach(open).map(|c| Self(Arc::new(c))).map_err(|e| raise(py, e))
    }

    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name).map(<[usize]>::to_vec)
    }

    fn tensor<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        shape: Vec<usize>,
    ) -> PyResult<(&'static str, Bound<'py, PyMemoryView>)> {
        if self.0.int8(name, &shape).map_err(|e| raise(py, e))?.is_some() {
            // It was found a moment ago, in a checkpoint that does not change.
            let codes =
                Buffer::view(py, &self.0, |c| c.int8(name, &shape).ok().flatten().unwrap_or_default());
            return Ok(("int8", codes?));
        }
        let dtype: Dtype = self.0.tensor(name, &shape).map_err(|e| raise(py, e))?.dtype;
        let data = Buffer::view(py, &self.0, |c| c.tensor(name, &shape).map_or(&[][..], |t| t.data));
        Ok((dtype.name(), data?))
    }
}
