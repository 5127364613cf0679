//! Counters of the cache.

/// A snapshot of the pool and its counters since the start.
/// `free_blocks + cached_blocks + pinned_blocks + live_blocks = num_blocks`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks in the pool.
    pub num_blocks: u32,
    /// Blocks that hold nothing.
    pub free_blocks: u32,
    /// Blocks that no table holds but the prefix index can still find.
    pub cached_blocks: u32,
    /// Blocks that packs hold, whether or not sequences use them.
    pub pinned_blocks: u32,
    /// Blocks that sequences hold, and no pack.
    pub live_blocks: u32,
    /// Prompt tokens looked up in the prefix index.
    pub query_tokens: u64,
    /// Prompt tokens found there.
    pub hit_tokens: u64,
    /// Cached blocks evicted to make room.
    pub evictions: u64,
}
