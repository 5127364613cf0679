//! What an executor in Python needs of a model folder: the spec, the names of tensors, and their checked bytes.

use std::path::PathBuf;
use std::sync::Arc;

use octavo_engine::EngineError;
use octavo_model::families::Family;
use octavo_model::{Dtype, ModelError, open, open_model, read_family, warn_of_unused};
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use serde_json::json;

use crate::buffer::Buffer;
use crate::errors::to_python;
use crate::json;

fn raise(py: Python<'_>, error: ModelError) -> PyErr {
    to_python(py, &EngineError::from(error))
}

/// Spec and tensor names of a model folder, and its ropes where no sequence is longer than `context`. Without `weights` they
/// are what config.json says alone.
pub fn read(py: Python<'_>, folder: PathBuf, context: usize, weights: bool) -> PyResult<Bound<'_, PyAny>> {
    let family = py.detach(|| {
        let folder = &*open(&folder)?;
        if weights { Ok(open_model(folder)?.0) } else { read_family(folder) }
    });
    let family = family.map_err(|e| raise(py, e))?;
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
pub struct Checkpoint {
    family: Family,
    files: Arc<octavo_model::Checkpoint>,
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        let open = || open_model(&*open(&folder)?);
        let opened = py.detach(open).map_err(|e| raise(py, e))?;
        Ok(Self { family: opened.0, files: Arc::new(opened.1) })
    }

    #[getter]
    fn bytes(&self) -> usize {
        self.files.bytes()
    }

    /// Sentences about the files, and about tensors that were not asked for until now.
    fn warnings(&self) -> Vec<String> {
        let unused = warn_of_unused(&self.files, &self.family);
        self.files.warnings().iter().cloned().chain(unused).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files.shape(name).map(<[usize]>::to_vec)
    }

    fn tensor<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        shape: Vec<usize>,
    ) -> PyResult<(&'static str, Bound<'py, PyMemoryView>)> {
        if self.files.int8(name, &shape).map_err(|e| raise(py, e))?.is_some() {
            // It was found a moment ago, in a checkpoint that does not change.
            let codes =
                Buffer::view(py, &self.files, |c| c.int8(name, &shape).ok().flatten().unwrap_or_default());
            return Ok(("int8", codes?));
        }
        if self.files.doubles(name, &shape).map_err(|e| raise(py, e))?.is_some() {
            let data =
                Buffer::view(py, &self.files, |c| c.doubles(name, &shape).ok().flatten().unwrap_or_default());
            return Ok(("float64", data?));
        }
        let dtype: Dtype = self.files.tensor(name, &shape).map_err(|e| raise(py, e))?.dtype;
        let data = Buffer::view(py, &self.files, |c| c.bytes_of(name, &shape).unwrap_or_default());
        Ok((dtype.name(), data?))
    }
}
