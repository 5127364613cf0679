//! An adapter's folder for an executor in Python: its modules, and their checked bytes.

use std::path::Path;

use octavo_engine::EngineError;
use octavo_kernels::WeightDtype;
use octavo_model::families::Family;
use octavo_model::{AdapterFile as File, AdapterModule, AdapterTensor};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors::to_python;

/// An opened adapter: every name, shape and value is checked.
#[pyclass(frozen, module = "octavo._core")]
pub struct AdapterFile(pub File);

impl AdapterFile {
    /// Opens an adapter for a model.
    pub fn open(folder: &Path, family: &Family) -> Result<Self, EngineError> {
        // The element type is for the bytes on the CPU.
        let file = File::open(folder, &family.spec, &family.names, &|_, _| WeightDtype::F32)?;
        Ok(Self(file))
    }

    fn described<'py>(&self, py: Python<'py>, module: &AdapterModule) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("name", &module.name)?;
        dict.set_item("rank", module.rank)?;
        dict.set_item("scale", module.scale)?;
        let tensors = [
            ("a", AdapterTensor::A),
            ("b", AdapterTensor::B),
            ("magnitude", AdapterTensor::Magnitude),
            ("bias", AdapterTensor::Bias),
        ];
        for (name, kind) in tensors {
            let found = self.0.tensor(module, kind).map_err(|e| to_python(py, &e.into()))?;
            dict.set_item(
                name,
                found.map(|t| (t.dtype.name(), t.shape.to_vec(), PyBytes::new(py, &t.data))),
            )?;
        }
        Ok(dict)
    }
}

#[pymethods]
impl AdapterFile {
    /// The largest rank of its modules.
    #[getter]
    fn rank(&self) -> usize {
        self.0.rank()
    }

    /// One dict for each module: name, rank, scale, and (element type, shape, bytes) of a, b, magnitude and bias, or None.
    fn modules<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.0.modules().iter().map(|module| self.described(py, module)).collect()
    }
}
