//! Adapters of an executor that is a Python object.
//!
//! ```text
//! object.adapter_bytes(rank)    device memory of an adapter
//! object.pack_adapter(file)     copies an opened `AdapterFile` to the device -> any object; dropping it frees the memory
//! ```
//!
//! Files are opened and checked here: every fault of an adapter has one text on all devices.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use octavo_engine::{AdapterBackend, AdapterInfo, EngineError};
use octavo_model::families::Family;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use crate::adapter_file::AdapterFile;

/// The methods that an executor must have for adapters.
const METHODS: [&str; 2] = ["adapter_bytes", "pack_adapter"];

/// Loads adapters with the methods of an executor. It does not keep the executor alive.
pub struct PyAdapters {
    object: Py<PyWeakrefReference>,
    family: Family,
}

/// An adapter on the device: what `pack_adapter` returned.
pub struct PyAdapter(Option<Py<PyAny>>);

impl PyAdapters {
    /// None: the object takes no adapters.
    ///
    /// # Errors
    /// What reading the object's attributes raises.
    pub fn of(object: &Bound<'_, PyAny>, family: Family) -> PyResult<Option<Arc<Self>>> {
        for method in METHODS {
            if !object.hasattr(method)? {
                return Ok(None);
            }
        }
        let object = PyWeakrefReference::new(object)?.unbind();
        Ok(Some(Arc::new(Self { object, family })))
    }

    /// Calls `f` with the executor and the GIL held.
    fn with<T>(
        &self,
        f: impl FnOnce(Python<'_>, &Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Result<T, EngineError> {
        Python::try_attach(|py| {
            let object = self.object.bind(py).upgrade().ok_or_else(EngineError::closed)?;
            f(py, &object).map_err(|e| fault(py, &e))
        })
        .ok_or_else(EngineError::closed)?
    }

    fn info(&self, folder: &Path, file: &AdapterFile) -> Result<AdapterInfo, EngineError> {
        let rank = file.0.rank();
        let packed_bytes = self.with(|_, object| object.call_method1("adapter_bytes", (rank,))?.extract())?;
        Ok(AdapterInfo {
            folder: folder.to_path_buf(),
            digest: file.0.digest().to_string(),
            rank,
            packed_bytes,
            modules: file.0.modules().iter().map(|module| module.name.clone()).collect(),
            warnings: file.0.warnings().to_vec(),
        })
    }
}

impl AdapterBackend for PyAdapters {
    fn open(&self, folder: &Path) -> Result<AdapterInfo, EngineError> {
        self.info(folder, &AdapterFile::open(folder, &self.family)?)
    }

    fn pack(&self, info: &AdapterInfo) -> Result<Arc<dyn Any + Send + Sync>, EngineError> {
        let file = AdapterFile::open(&info.folder, &self.family)?;
        info.check_digest(file.0.digest())?;
        let packed = self.with(|_, object| Ok(object.call_method1("pack_adapter", (file,))?.unbind()))?;
        Ok(Arc::new(PyAdapter(Some(packed))))
    }
}

impl PyAdapter {
    /// What `pack_adapter` returned.
    pub fn object(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.0.as_ref().map(|object| object.clone_ref(py))
    }
}

impl Drop for PyAdapter {
    fn drop(&mut self) {
        // The device's memory is free when this returns: the next adapter may need it.
        let object = self.0.take();
        Python::try_attach(|_| drop(object));
    }
}

/// An exception of the executor. One of octavo keeps its class.
fn fault(py: Python<'_>, error: &PyErr) -> EngineError {
    let value = error.value(py);
    let class = value.get_type().qualname().map_or_else(|_| "exception".into(), |n| n.to_string());
    match class.as_str() {
        "DeviceMemoryError" => EngineError::DeviceMemory(value.to_string()),
        "UnsupportedModelError" => EngineError::UnsupportedModel(value.to_string()),
        _ => EngineError::Execution(format!("{class}: {value}")),
    }
}
