//! Arrays of packed weights: owned, or mapped from an octavo file.

use std::marker::PhantomData;
use std::ops::Deref;

use crate::pages::{Pages, Plain};
use crate::region::Region;

/// Why bytes are not a packed array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// Wrong number of bytes.
    #[error("{found} bytes, {expected} are expected")]
    Size {
        /// Bytes of the shape.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// Wrong alignment for kernels.
    #[error("it does not begin at a multiple of {0} bytes")]
    Alignment(usize),
    /// Shape overflow, or a wrong number of arrays.
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
    /// `len` values in `region`, without a copy.
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
            // The creator of the map promises that the file does not change (see `octavo_model::buffer`).
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
