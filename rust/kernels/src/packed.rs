//! Arrays of packed weights: made here, or read in place from a file that holds them as they are made.

use std::marker::PhantomData;
use std::ops::Deref;

use crate::pages::{Pages, Plain};
use crate::region::Region;

/// Why bytes are no packed array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// The number of bytes is another.
    #[error("{found} bytes, {expected} are expected")]
    Size {
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Kernels could not load from there.
    #[error("it does not begin at a multiple of {0} bytes")]
    Alignment(usize),
    /// The shape has more elements than memory has bytes, or there are too many arrays or too few.
    #[error("impossible sizes")]
    Shape,
}

/// A read-only slice of `T`.
#[derive(Debug, Clone)]
pub(crate) enum Packed<T: Plain> {
    Made(Pages<T>),
    Mapped(Region, PhantomData<T>),
}

impl<T: Plain> Packed<T> {
    /// `len` values in `region`, where they stay.
    pub(crate) fn mapped(region: Region, len: usize) -> Result<Packed<T>, PackedError> {
        let expected = len.checked_mul(size_of::<T>()).ok_or(PackedError::Shape)?;
        if region.len() != expected {
            return Err(PackedError::Size { expected, found: region.len() });
        }
        if !region.as_ptr().cast::<T>().is_aligned() {
            return Err(PackedError::Alignment(align_of::<T>()));
        }
        Ok(Packed::Mapped(region, PhantomData))
    }

    /// The values as bytes, in the order of this machine.
    pub(crate) fn bytes(&self) -> &[u8] {
        let values: &[T] = self;
        // SAFETY: `Plain` types hold no padding, and u8 has no alignment.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }
}

impl<T: Plain> Deref for Packed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Packed::Made(pages) => pages,
            // SAFETY: `mapped` has checked length and alignment, a region never moves, and any bytes are a `Plain`.
            // Whoever made the map has promised that nobody changes the file (see `octavo_model::buffer`).
            Packed::Mapped(region, _) => unsafe {
                std::slice::from_raw_parts(region.as_ptr().cast(), region.len() / size_of::<T>())
            },
        }
    }
}

impl<T: Plain> From<Pages<T>> for Packed<T> {
    fn from(pages: Pages<T>) -> Packed<T> {
        Packed::Made(pages)
    }
}
