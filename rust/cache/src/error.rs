//! What can go wrong in this crate.

use thiserror::Error;

/// A [`crate::CacheConfig`] that no pool can be made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CacheConfigError {
    /// `num_blocks` is zero.
    #[error("num_blocks is 0; a cache needs at least one block")]
    NoBlocks,
    /// `block_size` is zero.
    #[error("block_size is 0; a block holds at least one token")]
    EmptyBlocks,
    /// A slot number would not fit into 32 bits.
    #[error("num_blocks {num_blocks} x block_size {block_size} exceeds 2^32 - 1 slots; use fewer blocks")]
    TooManySlots {
        /// Blocks asked for.
        num_blocks: u32,
        /// Tokens a block.
        block_size: u32,
    },
    /// `hash_bits` is over 128.
    #[error("hash_bits is {hash_bits}; the prefix hash has 128 bits, use 0..=128")]
    HashBits {
        /// Bits asked for.
        hash_bits: u32,
    },
}

/// A reservation that the pool cannot serve now; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{needed} blocks are needed and {available} are free or evictable; release a table first")]
pub struct OutOfBlocks {
    /// Blocks that the reservation needs, copies on write included.
    pub needed: u32,
    /// Blocks that are free or can be evicted.
    pub available: u32,
}
