//! The one place of this crate with `unsafe`: read-only memory maps of weight files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::ModelError;

/// Maps a file for reading. Packing copies weights out of the map. Weights of a quantised file stay in it.
pub fn map_file(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    // SAFETY: the map is read-only. Another process may write to the file or cut it. Bytes that change are other weights:
    // any bytes are numbers, and no kernel reads an address or a length from them. A page that is cut off raises SIGBUS, as
    // in every engine that maps its weights. SECURITY.md documents this.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
    // Large pages where the page cache has them. Operating systems without them return an error, which is ignored.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Arc::new(map))
}

/// Reads a file into memory of the same type as a map. Unlike a map, it does not change with the file, and a file that is cut
/// does no harm. Its pages must not be given back.
pub fn read_file(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let io = |e| ModelError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let bytes = usize::try_from(bytes).map_err(|e| io(std::io::Error::other(e)))?;
    let mut memory = MmapMut::map_anon(bytes).map_err(io)?;
    file.read_exact(&mut memory).map_err(io)?;
    memory.make_read_only().map(Arc::new).map_err(io)
}

/// Releases the pages of `bytes`, and those within `around` bytes of their ends, from this process's memory. The page cache
/// keeps them while the system has room; reading loads them again. Does nothing for bytes of another map.
pub fn give_back(map: &Mmap, bytes: &[u8], around: usize) {
    let Some(start) = bytes.as_ptr().addr().checked_sub(map.as_ptr().addr()) else { return };
    if bytes.is_empty() || start + bytes.len() > map.len() {
        return;
    }
    let end = (start + bytes.len() + around).min(map.len());
    let start = start.saturating_sub(around);
    #[cfg(unix)]
    // SAFETY: the range lies in the map. The map is of a file and read-only: dropped pages come back with the content of the
    // file, under every reference to them.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
}
