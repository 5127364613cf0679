//! octavo._core: the engine as a Python module. This crate converts and holds no logic.
#![deny(unsafe_code)]

mod adapter_backend;
mod adapter_file;
mod adapters;
mod bench;
mod buffer;
mod engine;
mod errors;
mod executor;
mod interrupt;
mod json;
mod model;
mod output;
mod params;
mod plan;
mod pooling;
mod prompt;
mod stats;

use pyo3::prelude::*;

/// The compiled engine: everything between a prompt and its output.
#[pymodule(gil_used = false)]
mod _core {
    use std::path::PathBuf;

    use octavo_engine::machine_memory;
    use octavo_kernels::{Isa, default_threads};
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyDict};

    #[pymodule_export]
    use crate::adapter_file::AdapterFile;
    #[pymodule_export]
    use crate::bench::{bench_attention, bench_kernels};
    #[pymodule_export]
    use crate::engine::{Engine, Stream, resolve};
    #[pymodule_export]
    use crate::model::Checkpoint;
    #[pymodule_export]
    use crate::output::{Delta, Logprob, SampleDelta};
    #[pymodule_export]
    use crate::params::SamplingParams;
    #[pymodule_export]
    use crate::plan::Plan;

    /// What a model folder holds.
    #[pyfunction]
    #[pyo3(signature = (folder, *, context=0, weights=true))]
    fn read_model(
        py: Python<'_>,
        folder: std::path::PathBuf,
        context: usize,
        weights: bool,
    ) -> PyResult<Bound<'_, PyAny>> {
        crate::model::read(py, folder, context, weights)
    }

    /// Facts of this build and machine.
    #[pyfunction]
    fn build_info(py: Python<'_>) -> PyResult<Py<PyDict>> {
        let info = PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        let isa = Isa::from_env()
            .map_err(|e| crate::errors::raise(py, "InvalidRequestError", &format!("OCTAVO_ISA: {e}")))?;
        info.set_item("isa", isa.name())?;
        info.set_item("isa_available", Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>())?;
        info.set_item("cpu", crate::engine::cpu_name())?;
        info.set_item("threads", default_threads())?;
        info.set_item("memory_bytes", machine_memory().0)?;
        Ok(info.unbind())
    }

    /// Types and ranges of the fields of `SamplingParams`, as a JSON schema.
    #[pyfunction]
    fn sampling_schema(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        crate::json::to_python(py, &octavo_engine::SamplingParams::schema())
    }

    /// The nearest JSON schema that a grammar holds: its text; (pointer, keyword, why) for each part where it is wider;
    /// and the names of formats that hold nothing.
    #[pyfunction]
    #[pyo3(signature = (text, *, closed=true))]
    #[allow(clippy::type_complexity)]
    fn fit_schema(
        py: Python<'_>,
        text: &str,
        closed: bool,
    ) -> PyResult<(String, Vec<(String, String, String)>, Vec<String>)> {
        let fitted = py.detach(|| octavo_engine::fit_schema(text, closed));
        let fitted = fitted.map_err(|e| crate::errors::to_python(py, &e))?;
        let losses = fitted.losses.into_iter().map(|loss| (loss.pointer, loss.keyword, loss.why)).collect();
        Ok((fitted.schema.to_string(), losses, fitted.formats.into_iter().collect()))
    }

    /// Reads JSON of strangers.
    #[pyfunction]
    #[pyo3(signature = (text, *, max_depth=64, max_values=1_000_000))]
    fn parse_json<'py>(
        py: Python<'py>,
        text: &[u8],
        max_depth: usize,
        max_values: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let limits = octavo_engine::JsonLimits { depth: max_depth, values: max_values };
        let value = py.detach(|| octavo_engine::parse_strict(text, limits));
        crate::json::to_python(py, &value.map_err(|e| crate::errors::to_python(py, &e))?)
    }

    /// The float32 values (little-endian) of an embedding as a JSON array: the shortest digits that give each back.
    #[pyfunction]
    fn floats_json<'py>(py: Python<'py>, values: &[u8]) -> Bound<'py, PyBytes> {
        let text = py.detach(|| crate::pooling::json_array(values));
        PyBytes::new(py, text.as_bytes())
    }

    /// What pack.json of a folder says. Needs no model.
    #[pyfunction]
    fn read_pack(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
        let described = py.detach(|| octavo_engine::describe_pack(&path));
        crate::json::to_python(py, &described.map_err(|e| crate::errors::to_python(py, &e))?)
    }

    /// Writes a folder's weights as a file that loads by mapping.
    #[pyfunction]
    #[pyo3(signature = (model, output, source, *, quantization="auto", threads=None))]
    fn quantize_weights<'py>(
        py: Python<'py>,
        model: PathBuf,
        output: PathBuf,
        source: &str,
        quantization: &str,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = octavo_engine::EngineConfig {
            quantization: quantization.into(),
            threads,
            ..octavo_engine::EngineConfig::default()
        };
        let write = || octavo_engine::quantize_weights(&model, &output, source, &options);
        let report = py.detach(write).map_err(|e| crate::errors::to_python(py, &e))?;
        crate::json::to_python(py, &report)
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("JSON_WHITESPACE", octavo_engine::JSON_WHITESPACE)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
