//! Bytes of a mapped file, read in place by packed weights.

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// A part of a read-only map. The map lives as long as any of its parts.
#[derive(Debug, Clone)]
pub struct Region {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Region {
    /// The bytes `range` of `map`; None if out of bounds.
    pub fn new(map: &Arc<Mmap>, range: Range<usize>) -> Option<Region> {
        map.get(range.clone())?;
        Some(Region { map: Arc::clone(map), range })
    }

    /// `count` consecutive parts of equal size; None if the size is not divisible.
    pub fn split(&self, count: usize) -> Option<Vec<Region>> {
        let size = self.range.len().checked_div(count).filter(|size| size * count == self.range.len())?;
        let starts = (0..count).map(|i| self.range.start + i * size);
        Some(starts.map(|start| Region { map: Arc::clone(&self.map), range: start..start + size }).collect())
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}
