//! Commands to the loader thread.

use octavo_scheduler::PoolKey;

/// A command to the loader thread.
pub(crate) enum LoaderCommand {
    /// A request waits for its adapter.
    Look,
    /// A request of this adapter has ended, with all steps that it was in.
    Unpin(u32),
    /// A request that waited has ended.
    Forget(PoolKey),
    /// The engine has ended.
    Close,
}
