//! Sharing slices among tasks.

use std::marker::PhantomData;
use std::ops::Range;

use crate::threads::ThreadPool;

/// A mutable slice that several tasks write in disjoint parts.
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out by `part`, whose callers promise that no two live parts overlap; T crosses threads.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Shared { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Start of the slice, for address computations.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.data
    }

    /// Address of element `index`. Writes through it must keep the promise of `part`.
    pub(crate) fn element_ptr(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        self.data.wrapping_add(index)
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {} elements", self.len);
        // SAFETY: inside the borrowed slice by the check; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.end - range.start) }
    }
}

/// Splits the `rows` rows of `data` (row `r` begins at `r * stride`; the last row may end early) into chunks of
/// rows and calls `f(first row, rows of the chunk, its elements)` for each, in parallel. A chunk has at least `grain` rows.
pub(crate) fn for_row_runs<T: Send>(
    pool: &ThreadPool,
    data: &mut [T],
    rows: usize,
    stride: usize,
    grain: usize,
    f: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    if rows == 0 {
        return;
    }
    let run = rows.div_ceil(4 * pool.threads()).max(grain.max(1));
    let len = data.len();
    let shared = Shared::new(data);
    pool.run(rows.div_ceil(run), &|task| {
        let first = task * run;
        let count = run.min(rows - first);
        let end = if first + count == rows { len } else { (first + count) * stride };
        // SAFETY: runs of different tasks cover different rows, and no two tasks have the same index.
        f(first, count, unsafe { shared.part(first * stride..end) });
    });
}
