//! Paged KV bookkeeping: reference-counted blocks, block tables with copy on write, and a prefix index.
//!
//! This crate counts blocks; the executor holds their bytes. No I/O, clock, thread or random number: every run replays
//! exactly.
//!
//! A [`Cache`] is one pool of `num_blocks` blocks of `block_size` tokens. A block is in one of three states:
//!
//! - *live*: some [`BlockTable`] holds it;
//! - *cached*: no table holds it, but the prefix index can still find it (evicted in LRU order);
//! - *free*: it holds nothing.
//!
//! The life of a sequence:
//!
//! - [`Cache::find_prefix`] and [`Cache::start_table`] make a table from cached blocks;
//! - [`Cache::reserve`] gets slots for new tokens before a step;
//! - [`Cache::commit`] records what the step wrote and puts full blocks into the prefix index;
//! - [`Cache::fork`] shares the table with another sample;
//! - [`Cache::release`] returns all blocks.
//!
//! A *pack* is a table that is held by name; see `packs`.
//!
//! One pool serves one model and one KV data type. A [`Namespace`] is what else separates two prompts: salt, adapter and
//! attention policy. No hit crosses a namespace.
//!
//! Beside the blocks of an int8 cache there are open blocks, in which tokens are floats until their block is full; see
//! `open_blocks`.

#![forbid(unsafe_code)]

mod block;
mod cache;
mod error;
mod hash;
mod held;
mod invariants;
mod namespace;
mod open_blocks;
mod packs;
mod pool;
mod prefix;
mod stats;
mod table;

pub use block::BlockId;
pub use cache::{Cache, CacheConfig, PrefixMatch};
pub use error::{CacheConfigError, OutOfBlocks};
pub use namespace::Namespace;
pub use open_blocks::OpenWrites;
pub use prefix::EvictedBlock;
pub use stats::CacheStats;
pub use table::BlockTable;
