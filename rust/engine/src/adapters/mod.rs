//! Adapters in the engine: names, files, and what is in memory.
//!
//! ```text
//! load_adapter   caller's thread   files are checked; a name stands for an adapter id (octavo_scheduler::AdapterNames)
//! submit         caller's thread   the name is resolved once; the adapter is pinned if it is in memory
//! otherwise      loader thread     it is packed beside the pinned ones (octavo_scheduler::AdapterPool); the request, which
//!                                  the scheduler holds meanwhile, is released
//! a step         engine thread     takes the packed adapters from its requests; nothing is locked
//! a request ends engine thread     tells the loader thread, which may drop the adapter
//! ```

mod backend;
mod claim;
mod loader;
mod loader_command;
mod registry;
mod state;
mod usage;

pub use backend::{AdapterBackend, AdapterInfo, PackedAdapter};
pub(crate) use claim::AdapterClaim;
pub use registry::LoadedAdapter;
pub(crate) use registry::{AdapterLimits, Adapters};
pub use usage::AdapterStats;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod stress_tests;
#[cfg(test)]
mod tests;
