//! A step plan as Python sees it: arrays in place, no copies.

use std::sync::Arc;

use octavo_engine::{PackedAdapter, StepInput};
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::adapter_backend::PyAdapter;
use crate::buffer::Buffer;

/// One step, for an executor in Python. Its arrays stay valid as long as they are held.
#[pyclass(frozen, module = "octavo._core")]
pub struct Plan(pub Arc<StepInput>);

/// Getters of arrays of the step.
macro_rules! arrays {
    ($($name:ident: $($field:ident).+),* $(,)?) => {
        #[pymethods]
        impl Plan {
            #[getter]
            fn step(&self) -> u64 {
                self.0.plan.step
            }

            /// (adapter id, what the executor's `pack_adapter` returned) of each adapter of the step.
            #[getter]
            fn adapters(&self, py: Python<'_>) -> Vec<(u32, Option<Py<PyAny>>)> {
                let object = |adapter: &PackedAdapter| adapter.get::<PyAdapter>().and_then(|a| a.object(py));
                self.0.adapters.iter().map(|(id, adapter)| (*id, object(adapter))).collect()
            }
            $(#[getter]
            fn $name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
                Buffer::view(py, &self.0, |step| step.$($field).+.as_slice())
            })*
        }
    };
}

arrays! {
    tokens: plan.tokens,
    placeholders: plan.placeholders,
    positions: plan.positions,
    slots: plan.slots,
    seqs: plan.seqs,
    block_tables: plan.block_tables,
    copies: plan.copies,
    open_blocks: plan.open_blocks,
    open_slots: plan.open_slots,
    sealed: plan.sealed,
    open_copies: plan.open_copies,
    samples: samples,
}
