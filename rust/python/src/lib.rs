//! octavo._core: the engine as a Python module. This crate converts and holds no logic.
#![forbid(unsafe_code)]

mod bench;
mod engine;
mod errors;
mod json;
mod output;
mod params;

use pyo3::prelude::*;

/// The compiled engine: everything between a prompt and its output.
#[pymodule(gil_used = false)]
mod _core {
    use octavo_engine::machine_memory;
    use octavo_kernels::{Isa, default_threads};
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use crate::bench::bench_kernels;
    #[pymodule_export]
    use crate::engine::{Engine, Stream};
    #[pymodule_export]
    use crate::output::{Delta, Logprob, SampleDelta};

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

    /// Checks a set of sampling parameters without an engine.
    #[pyfunction]
    fn check_params(py: Python<'_>, params: &Bound<'_, PyAny>) -> PyResult<()> {
        crate::params::read(params)?.check().map_err(|e| crate::errors::to_python(py, &e))
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

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
