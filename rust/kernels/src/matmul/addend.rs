//! What a product adds to its outputs piece by piece, while a piece is in the cache.

use std::ops::Range;

use crate::parallel::Shared;

/// Adds to pieces of a product's y. The pieces of a product have different rows or panels.
pub(crate) trait Addend: Sync {
    /// Adds to the panels `panels` of the rows `rows`, whose first value is y[start]. Rows are `stride` apart.
    ///
    /// # Safety
    /// No other thread reads or writes these rows and panels of y meanwhile.
    unsafe fn add(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        y: &Shared<'_, f32>,
        place: (usize, usize),
    );

    /// As [`Self::add`] to memory of one thread: y `[rows][panels][16]`, where rows are `stride` apart.
    fn add_to(&self, rows: Range<usize>, panels: Range<usize>, y: &mut [f32], stride: usize) {
        // SAFETY: y is borrowed.
        unsafe { self.add(rows, panels, &Shared::new(y), (0, stride)) }
    }
}
