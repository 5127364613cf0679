//! The one place of this crate with `unsafe`: read-only memory maps of weight files.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::ModelError;

/// Maps a file for reading. The map lives only while weights are packed, so a file that is replaced later does no harm.
pub fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    // SAFETY: the map is private and read-only. Another process that truncates the file while it is being loaded could
    // still raise SIGBUS; that window is the load itself, as with every engine that maps its weights.
    unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))
}
