//! Large zeroed buffers, on huge pages where the system has them.
//!
//! A step reads all weights and caches once. With pages of 4 KiB, each page costs a page-table walk (two in a virtual
//! machine), and the hardware prefetcher stops at its end.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Smaller buffers come from the allocator: they have no whole huge page.
const MAPPED_BYTES: usize = 2 << 20;

/// Types without padding for which any bytes are a valid value.
///
/// # Safety
/// As said.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for i8 {}
// SAFETY: an array has no padding beyond its elements'.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// A cache line: small buffers are vectors of lines, for their alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// A boxed slice, zeroed and aligned to a cache line. The system allocates memory at the first write.
pub(crate) struct Pages<T> {
    memory: PageMemory<T>,
    len: usize,
}

enum PageMemory<T> {
    Small(Vec<CacheLine>, PhantomData<T>),
    Mapped(MmapMut, PhantomData<T>),
}

impl<T: Plain> Pages<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Pages<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a size that fits the address space");
        let mapped = if bytes < MAPPED_BYTES { None } else { MmapMut::map_anon(bytes).ok() };
        let memory = match mapped {
            Some(map) => {
                // Fails on kernels without huge pages: only slower.
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                assert!(align_of::<T>() <= 4096, "mappings begin at pages");
                PageMemory::Mapped(map, PhantomData)
            }
            None => {
                assert!(align_of::<T>() <= align_of::<CacheLine>(), "small buffers begin at lines");
                PageMemory::Small(
                    vec![CacheLine([0; 64]); bytes.div_ceil(size_of::<CacheLine>())],
                    PhantomData,
                )
            }
        };
        Pages { memory, len }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            // SAFETY: the lines hold `len` values, live as long as self, and any bytes are a T; alignment was checked.
            PageMemory::Small(lines, _) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), self.len)
            },
            // SAFETY: as above; the map begins at a page.
            PageMemory::Mapped(map, _) => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast(), self.len)
            },
        }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            // SAFETY: as above; self is borrowed exclusively.
            PageMemory::Small(lines, _) => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), self.len)
            },
            // SAFETY: as above.
            PageMemory::Mapped(map, _) => unsafe {
                std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len)
            },
        }
    }
}

impl<T: Plain> Clone for Pages<T> {
    fn clone(&self) -> Pages<T> {
        let mut copy = Pages::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> std::fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} x {} bytes)", self.len, size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_mapped_buffers_begin_as_zeros_and_keep_what_is_written() {
        for len in [0, 1, 1000, MAPPED_BYTES / 4, MAPPED_BYTES / 4 + 7] {
            let mut pages = Pages::<f32>::zeroed(len);
            assert_eq!(pages.len(), len);
            assert!(pages.as_ptr().addr().is_multiple_of(64));
            assert!(pages.iter().all(|&x| x == 0.0));
            pages.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            let copy = pages.clone();
            assert!(copy.iter().enumerate().all(|(i, &x)| x == i as f32));
        }
    }
}
