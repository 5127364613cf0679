//! Reference counts, the free list and the LRU list of cached blocks.

use crate::block::{BlockId, NONE};

#[derive(Debug, Clone)]
struct Entry {
    /// Table entries that name this block.
    refs: u32,
    /// LRU links, used while the block is cached.
    older: BlockId,
    newer: BlockId,
}

/// The states of all blocks. Every operation is O(1).
#[derive(Debug)]
pub(crate) struct Pool {
    entries: Vec<Entry>,
    free: Vec<BlockId>,
    oldest: BlockId,
    newest: BlockId,
    cached: u32,
}

impl Pool {
    pub(crate) fn new(num_blocks: u32) -> Self {
        let entry = Entry { refs: 0, older: NONE, newer: NONE };
        Self {
            entries: vec![entry; num_blocks as usize],
            free: (0..num_blocks).rev().collect(),
            oldest: NONE,
            newest: NONE,
            cached: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    pub(crate) fn free(&self) -> &[BlockId] {
        &self.free
    }

    pub(crate) fn cached(&self) -> u32 {
        self.cached
    }

    /// Blocks that can be handed out: free ones, and cached ones after eviction.
    pub(crate) fn available(&self) -> u32 {
        self.free.len() as u32 + self.cached
    }

    pub(crate) fn refs(&self, block: BlockId) -> u32 {
        self.entries[block as usize].refs
    }

    /// A free block with one reference.
    pub(crate) fn take_free(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.entries[block as usize].refs = 1;
        Some(block)
    }

    /// The cached block unused for longest, out of the list and with one reference. The caller drops it from the
    /// prefix index.
    pub(crate) fn take_oldest(&mut self) -> Option<BlockId> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.entries[block as usize].refs = 1;
        Some(block)
    }

    /// One more reference to a live or cached block.
    pub(crate) fn retain(&mut self, block: BlockId) {
        if self.entries[block as usize].refs == 0 {
            self.unlink(block);
        }
        self.entries[block as usize].refs += 1;
    }

    /// Drops one reference. With the last one the block is cached if `keep`, else free. Returns whether it was the last.
    pub(crate) fn release(&mut self, block: BlockId, keep: bool) -> bool {
        let entry = &mut self.entries[block as usize];
        debug_assert!(entry.refs > 0, "block {block} is released more often than held");
        entry.refs -= 1;
        if entry.refs > 0 {
            return false;
        }
        if keep {
            self.link_newest(block);
        } else {
            self.free.push(block);
        }
        true
    }

    /// The cached blocks, the one to be evicted first in front.
    pub(crate) fn lru(&self) -> impl Iterator<Item = BlockId> + '_ {
        let next = |&block: &BlockId| Some(self.entries[block as usize].newer).filter(|&b| b != NONE);
        std::iter::successors(Some(self.oldest).filter(|&b| b != NONE), next)
    }

    fn link_newest(&mut self, block: BlockId) {
        let before = self.newest;
        let entry = &mut self.entries[block as usize];
        entry.older = before;
        entry.newer = NONE;
        match before {
            NONE => self.oldest = block,
            _ => self.entries[before as usize].newer = block,
        }
        self.newest = block;
        self.cached += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Entry { older, newer, .. } = self.entries[block as usize];
        match older {
            NONE => self.oldest = newer,
            _ => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.entries[newer as usize].older = older,
        }
        self.cached -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_leave_in_lru_order_and_a_retained_one_stays() {
        let mut pool = Pool::new(4);
        let blocks: Vec<_> = (0..4).filter_map(|_| pool.take_free()).collect();
        assert_eq!(blocks, [0, 1, 2, 3]);
        assert_eq!(pool.take_free(), None);
        for block in [2, 0, 3] {
            pool.release(block, true);
        }
        pool.release(1, false);
        assert_eq!(pool.lru().collect::<Vec<_>>(), [2, 0, 3]);
        assert_eq!((pool.available(), pool.cached(), pool.free()), (4, 3, &[1][..]));
        pool.retain(0);
        assert_eq!(pool.lru().collect::<Vec<_>>(), [2, 3]);
        assert_eq!([pool.take_oldest(), pool.take_oldest(), pool.take_oldest()], [Some(2), Some(3), None]);
    }
}
