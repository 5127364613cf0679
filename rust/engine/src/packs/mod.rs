//! Knowledge packs in the engine: texts whose keys and values are kept in files, and in the cache while they are loaded.
//!
//! ```text
//! make_pack    caller's thread   the text runs as a prompt; its blocks are held, copied out in slices, and written
//! load_pack    caller's thread   the files are read and checked: sizes, digests, finite numbers, fingerprint
//!              engine thread     blocks are held; slices are copied in; one block is computed again and compared
//! submit       caller's thread   the prompt must begin with the pack's tokens
//! unload_pack  engine thread     the blocks are no longer held; requests that run go on
//! ```
//!
//! The engine thread runs short jobs between steps (`job`). It hashes nothing and reads no file.

mod adapter;
mod between;
mod call;
mod fingerprint;
mod job;
mod kv_file;
mod load;
mod make;
mod manifest;
mod read;
mod registry;
mod slices;

pub use call::PackCall;
pub use fingerprint::PackFacts;
pub(crate) use job::{BetweenSteps, Job};
pub use make::NewPack;
pub use manifest::{PackForm, Source};
pub use read::describe_pack;
pub use registry::LoadedPack;
pub(crate) use registry::Packs;
