//! Commands from callers to the engine thread.

use crate::EngineError;
use crate::adapters::PackedAdapter;
use crate::packs::Job;
use crate::request::EngineRequest;

/// A command to the engine thread.
pub(crate) enum Command {
    /// Runs a request.
    Submit(Box<EngineRequest>),
    /// The adapter of this held request is in memory.
    AdapterReady {
        /// Which request.
        request: u64,
        /// Pinned for it.
        adapter: PackedAdapter,
    },
    /// The adapter of this held request cannot be packed.
    AdapterFailed {
        /// Which request.
        request: u64,
        /// Why.
        error: EngineError,
    },
    /// Work between two steps.
    Job(Job),
    /// Ends the request of this id.
    Cancel(u64),
    /// Rejects new requests, and closes when nothing runs.
    Drain,
    /// Closes at once.
    Close,
}
