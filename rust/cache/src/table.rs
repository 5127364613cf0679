//! The blocks of one sequence.

use crate::block::BlockId;
use crate::namespace::Namespace;

/// The blocks that hold one sequence's keys and values, in order of position.
///
/// A table is a reference to each of its blocks: return it with [`crate::Cache::release`]. [`crate::Cache::fork`] makes a
/// second one.
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) computed: u32,
    /// Tokens from position 0 on that have a slot: computed, or written by a step that is planned or in flight.
    pub(crate) reserved: u32,
    pub(crate) namespace: Namespace,
}

impl BlockTable {
    /// The blocks; token `p` lies in block `p / block_size` of this list.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens from position 0 on whose keys and values are in the cache (found there or committed).
    pub fn computed(&self) -> u32 {
        self.computed
    }

    /// Allocates memory for `blocks` blocks in total: the table does not allocate as it grows up to there.
    pub fn reserve(&mut self, blocks: u32) {
        self.blocks.reserve_exact((blocks as usize).saturating_sub(self.blocks.len()));
    }

    /// The namespace whose prefix index this table reads and feeds.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }
}
