//! Paged KV bookkeeping: reference-counted blocks, block tables with copy on write, and a prefix index.
//!
//! This crate counts blocks and knows no bytes: what a block holds is the executor's matter. It does no I/O, reads
//! no clock, starts no threads and draws no random numbers, so every run replays exactly.
//!
//! A [`Cache`] is one pool of `num_blocks` blocks of `block_size` tokens. A block is in one of three states:
//!
//! - *live*: some [`BlockTable`] holds it;
//! - *cached*: no table holds it, but the prefix index can still find it (evicted in LRU order);
//! - *free*: it holds nothing.
//!
//! A sequence's life: [`Cache::find_prefix`] and [`Cache::open`] make a table from cached blocks,
//! [`Cache::reserve`] gets slots for new tokens before a step, [`Cache::commit`] records what the step wrote and makes
//! full blocks findable, [`Cache::fork`] shares the table with another sample, [`Cache::release`] gives all back.
//!
//! One pool serves one model and one KV data type; what else separates two prompts (salt, adapter) is their
//! [`Namespace`], which no hit ever crosses.

#![forbid(unsafe_code)]

mod block;
mod cache;
mod error;
mod hash;
mod invariants;
mod namespace;
mod open_blocks;
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
