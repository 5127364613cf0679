//! The name of a block.

/// Index of a block in its pool, `0..num_blocks`. The slot of a token is `block * block_size + offset`.
pub type BlockId = u32;

/// "No block": the end of a list, or the parent of a first block.
pub(crate) const NONE: BlockId = BlockId::MAX;
