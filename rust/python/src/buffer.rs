//! The one place of this crate with `unsafe`: memory of Rust that Python reads in place, through the buffer protocol.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_int;
use std::sync::Arc;

use octavo_engine::SampleSpec;
use octavo_scheduler::PlanSeq;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

/// Elements whose bytes may be read as they lie.
///
/// # Safety
/// The type has no padding, and no references.
pub unsafe trait Plain {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: two integers side by side.
unsafe impl Plain for [u32; 2] {}
// SAFETY: C layout without gaps: u64, eight u32, f32, an enum of 32 bits, two u32.
unsafe impl Plain for PlanSeq {}
// SAFETY: C's layout: four u32, u64, f64, three f32, i32.
unsafe impl Plain for SampleSpec {}
const _: () = assert!(size_of::<PlanSeq>() == 8 + 12 * 4 && size_of::<SampleSpec>() == 4 * 4 + 8 + 8 + 4 * 4);

/// Bytes of a value that Rust owns, read-only. A reader keeps the value alive. Python sees it as a memoryview.
#[pyclass(frozen, module = "octavo._core")]
pub struct Buffer {
    /// Address of the first byte; inside what `owner` holds.
    start: usize,
    bytes: usize,
    /// Never changed while it is shared, so what lies at `start` stays.
    owner: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    /// A view of the slice that `part` finds in `owner`.
    pub fn view<'py, T: Send + Sync + 'static, E: Plain>(
        py: Python<'py>,
        owner: &Arc<T>,
        part: impl FnOnce(&T) -> &[E],
    ) -> PyResult<Bound<'py, PyMemoryView>> {
        let slice = part(owner);
        let (start, bytes) = (slice.as_ptr().expose_provenance(), size_of_val(slice));
        PyMemoryView::from(Bound::new(py, Self { start, bytes, owner: Arc::clone(owner) as _ })?.as_any())
    }
}

#[pymethods]
impl Buffer {
    /// # Safety
    /// CPython calls this with a `view` to fill, or NULL.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill"));
        }
        let this = slf.get();
        debug_assert!(Arc::strong_count(&this.owner) > 0);
        let start = std::ptr::with_exposed_provenance_mut(this.start);
        // SAFETY: the bytes live as long as `owner`, hence as long as this object, to which the view takes a reference;
        // it is read-only. `view` is CPython's.
        let done = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, this.bytes as ffi::Py_ssize_t, 1, flags)
        };
        if done == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    /// # Safety
    /// CPython calls this with a view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}
}
