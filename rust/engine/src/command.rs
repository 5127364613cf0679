//! Commands from callers to the engine thread.

use crate::request::EngineRequest;

/// A command to the engine thread.
pub(crate) enum Command {
    /// Runs a request.
    Submit(Box<EngineRequest>),
    /// Ends the request of this id.
    Cancel(u64),
    /// Rejects new requests, and closes when nothing runs.
    Drain,
    /// Closes at once.
    Close,
}
