//! A step plan as Python sees it: arrays in place, no copies.

use std::sync::Arc;

use octavo_engine::Draw;
use octavo_scheduler::StepPlan;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::buffer::Buffer;

/// One step, for an executor in Python. Arrays of it stay valid as long as they are held.
#[pyclass(frozen, module = "octavo._core")]
pub struct Plan {
    pub plan: Arc<StepPlan>,
    pub draws: Arc<Vec<Draw>>,
}

#[pymethods]
impl Plan {
    #[getter]
    fn step(&self) -> u64 {
        self.plan.step
    }

    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.tokens.as_slice())
    }

    #[getter]
    fn placeholders<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.placeholders.as_slice())
    }

    #[getter]
    fn positions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.positions.as_slice())
    }

    #[getter]
    fn slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.slots.as_slice())
    }

    #[getter]
    fn seqs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.seqs.as_slice())
    }

    #[getter]
    fn block_tables<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.block_tables.as_slice())
    }

    #[getter]
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.copies.as_slice())
    }

    #[getter]
    fn open_blocks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.open_blocks.as_slice())
    }

    #[getter]
    fn open_slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.open_slots.as_slice())
    }

    #[getter]
    fn sealed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.sealed.as_slice())
    }

    #[getter]
    fn open_copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.plan, |p| p.open_copies.as_slice())
    }

    #[getter]
    fn draws<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        Buffer::view(py, &self.draws, |d| d.as_slice())
    }
}
