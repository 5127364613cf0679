//! The one place of this crate with `unsafe`: read-only memory maps of weight files.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::ModelError;

/// Maps a file for reading. ModelWeights that are packed are copied out of the map; those of a quantised file stay in it.
pub fn map_file(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    // SAFETY: the map is read-only. Nothing here can keep another process from writing to the file or cutting it meanwhile:
    // bytes that change are other weights (any bytes are numbers, and no kernel takes an address or a length from them),
    // and a page that is cut off raises SIGBUS, as with every engine that maps its weights. SECURITY.md tells users so.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
    // Where the page cache has large pages the map gets them, too. Refused by kernels that know no such thing.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Arc::new(map))
}

/// Takes `bytes` of `map`, and what lies within `around` bytes of their ends, out of this process's memory. They stay in the
/// page cache while the system has room, and come back when they are read. Nothing happens for bytes of another map.
pub fn give_back(map: &Mmap, bytes: &[u8], around: usize) {
    let Some(start) = bytes.as_ptr().addr().checked_sub(map.as_ptr().addr()) else { return };
    if bytes.is_empty() || start + bytes.len() > map.len() {
        return;
    }
    let end = (start + bytes.len() + around).min(map.len());
    let start = start.saturating_sub(around);
    #[cfg(unix)]
    // SAFETY: the map is of a file and read-only, so that dropped pages come back with what the file holds, under every
    // reference to them; the range lies in the map.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
}
