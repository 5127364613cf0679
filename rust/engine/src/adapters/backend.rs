//! What a device does for adapters.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::EngineError;
use crate::adapters::loader_command::LoaderCommand;

/// A device that takes adapters. Its methods are called in threads of callers and in the loader thread, never in the engine
/// thread.
pub trait AdapterBackend: Send + Sync {
    /// Checks the files of an adapter. Takes no memory for its weights.
    ///
    /// # Errors
    /// `ModelNotFound`, `UnsupportedModel`, `CorruptModel`: with the file and the field.
    fn open(&self, folder: &Path) -> Result<AdapterInfo, EngineError>;

    /// Reads the weights into the device's memory. Steps read them there.
    ///
    /// # Errors
    /// As `open`, and `CorruptModel` if the files are others than those that were opened.
    fn pack(&self, info: &AdapterInfo) -> Result<Arc<dyn Any + Send + Sync>, EngineError>;
}

/// A checked adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Where its files are.
    pub folder: PathBuf,
    /// SHA-256 of everything that its effect depends on, in hexadecimal digits.
    pub digest: String,
    /// The largest rank of its projections.
    pub rank: usize,
    /// Memory that it takes when it is packed.
    pub packed_bytes: u64,
    /// The projections that it changes.
    pub modules: Vec<String>,
    /// Sentences about its files.
    pub warnings: Vec<String>,
}

impl AdapterInfo {
    /// Checks that the files still hold what was registered, for `AdapterBackend::pack`: an adapter id names one content.
    ///
    /// # Errors
    /// `CorruptModel`, with the remedy.
    pub fn check_digest(&self, found: &str) -> Result<(), EngineError> {
        if self.digest == found {
            return Ok(());
        }
        Err(EngineError::CorruptModel(format!(
            "the adapter files in {} changed after they were loaded: load the adapter again with load_adapter",
            self.folder.display()
        )))
    }
}

/// An adapter in memory, pinned there until the last clone is dropped.
#[derive(Clone)]
pub struct PackedAdapter(Arc<Pin>);

struct Pin {
    id: u32,
    /// None only while it is dropped.
    packed: Option<Arc<dyn Any + Send + Sync>>,
    loader: Sender<LoaderCommand>,
}

impl PackedAdapter {
    pub(super) fn new(id: u32, packed: Arc<dyn Any + Send + Sync>, loader: Sender<LoaderCommand>) -> Self {
        Self(Arc::new(Pin { id, packed: Some(packed), loader }))
    }

    /// What the backend made, if it is a `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.packed.as_ref()?.downcast_ref()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // First the reference, then the news: the loader thread holds the last one, and frees the memory.
        self.packed = None;
        // An error means that the loader thread has ended, and with it the pool.
        let _ = self.loader.send(LoaderCommand::Unpin(self.id));
    }
}

impl std::fmt::Debug for PackedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedAdapter({})", self.0.id)
    }
}

impl PartialEq for PackedAdapter {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}
