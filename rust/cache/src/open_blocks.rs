//! Open blocks: a second, small pool beside the blocks of an int8 cache.
//!
//! A block is quantised when it is full. Until then its tokens are floats in an *open block*. The step that fills a
//! block seals it: the executor quantises the floats into the block, and the open block is free for the next step.
//!
//! ```text
//! table of a sequence, 9 tokens, 4 tokens a block     block 5      block 2      block 7
//!                                                    [int8 x 4]   [int8 x 4]   [ empty ]
//! open block of block 7                                                        open block 0
//!                                                                              [f32 - - -]
//! step with 4 more tokens: seals block 7, opens block 3
//!   open_blocks [0 1]   open_slots [1 2 3 | 4]   sealed [[7 0]]
//! ```
//!
//! The pool grows on demand and never refuses. What one plan gives back, the next plan hands out: within one step an
//! open block belongs to one block, and copies and seals need no order. Steps run in the order of their plans, hence
//! the next plan may reuse an open block while this step is in flight.

use std::ops::Range;

use crate::block::{BlockId, NONE};

/// The lists of a plan that [`crate::Cache::write_open_blocks`] appends to.
pub struct OpenWrites<'a> {
    /// Open blocks that the new tokens are written to.
    pub blocks: &'a mut Vec<u32>,
    /// Slots of the new tokens: `open_block * block_size + offset`.
    pub slots: &'a mut Vec<u32>,
    /// `[block, open block]`: blocks that become full.
    pub sealed: &'a mut Vec<[u32; 2]>,
    /// `[source, destination]`: copies on write of open blocks.
    pub copies: &'a mut Vec<[u32; 2]>,
}

/// The open block of each block. Every operation is O(1).
#[derive(Debug)]
pub(crate) struct OpenBlocks {
    /// `[num_blocks]`; [`NONE`]: the block is empty or sealed.
    open: Vec<BlockId>,
    free: Vec<u32>,
    /// Given back by the plan being made, or since the last one.
    retired: Vec<u32>,
    /// Open blocks that exist.
    count: u32,
}

impl OpenBlocks {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self { open: vec![NONE; num_blocks as usize], free: Vec::new(), retired: Vec::new(), count: 0 }
    }

    /// Open blocks that exist; their ids are below.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The open block of `block`, if it has one.
    pub(crate) fn get(&self, block: BlockId) -> Option<u32> {
        Some(self.open[block as usize]).filter(|&open| open != NONE)
    }

    /// Open blocks that belong to no block: free ones, then retired ones.
    pub(crate) fn unused(&self) -> impl Iterator<Item = u32> + '_ {
        self.free.iter().chain(&self.retired).copied()
    }

    /// Makes free what was given back. Called when a plan begins.
    pub(crate) fn recycle(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// The open block of `block`, a new one if it has none.
    pub(crate) fn open(&mut self, block: BlockId) -> u32 {
        if let Some(open) = self.get(block) {
            return open;
        }
        let open = self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            // Both lists hold every open block without growing.
            self.free.reserve(self.count as usize);
            self.retired.reserve((self.count as usize).saturating_sub(self.retired.len()));
            self.count - 1
        });
        self.open[block as usize] = open;
        open
    }

    /// Gives the open block of `block` back, if it has one.
    pub(crate) fn close(&mut self, block: BlockId) {
        let open = std::mem::replace(&mut self.open[block as usize], NONE);
        if open != NONE {
            self.retired.push(open);
        }
    }

    /// Plans the write of the tokens at `positions` of the sequence with these `blocks`.
    pub(crate) fn write(
        &mut self,
        blocks: &[BlockId],
        block_size: u32,
        positions: Range<u32>,
        out: &mut OpenWrites<'_>,
    ) {
        let mut position = positions.start;
        while position < positions.end {
            let (i, offset) = (position / block_size, position % block_size);
            let block = blocks[i as usize];
            let len = (block_size - offset).min(positions.end - position);
            let open = self.open(block);
            out.blocks.push(open);
            let slot = open * block_size + offset;
            out.slots.extend(slot..slot + len);
            if offset + len == block_size {
                out.sealed.push([block, open]);
                self.close(block);
            }
            position += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Plan {
        blocks: Vec<u32>,
        slots: Vec<u32>,
        sealed: Vec<[u32; 2]>,
        copies: Vec<[u32; 2]>,
    }

    /// Plans one write in a plan of its own.
    fn write(pool: &mut OpenBlocks, blocks: &[BlockId], positions: Range<u32>) -> Plan {
        let mut plan = Plan::default();
        let Plan { blocks: open, slots, sealed, copies } = &mut plan;
        pool.recycle();
        pool.write(blocks, 4, positions, &mut OpenWrites { blocks: open, slots, sealed, copies });
        plan
    }

    #[test]
    fn a_block_is_open_from_its_first_token_to_the_step_that_fills_it() {
        let mut pool = OpenBlocks::new(10);
        let prefill = write(&mut pool, &[5, 2, 7], 0..9);
        assert_eq!((&prefill.blocks[..], &prefill.sealed[..]), (&[0, 1, 2][..], &[[5, 0], [2, 1]][..]));
        assert_eq!(prefill.slots, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!([pool.get(5), pool.get(2), pool.get(7)], [None, None, Some(2)]);
        // One step fills the block and begins the next one, in an open block that the last plan gave back.
        let more = write(&mut pool, &[5, 2, 7, 3], 9..13);
        assert_eq!((&more.sealed[..], more.blocks[0]), (&[[7, 2]][..], 2));
        assert_eq!(more.slots, [9, 10, 11, 4 * more.blocks[1]]);
        assert_eq!(pool.count(), 3);
    }

    #[test]
    fn a_plan_does_not_reuse_what_it_gave_back() {
        let mut pool = OpenBlocks::new(4);
        let first = pool.open(0);
        pool.close(0);
        assert_ne!(pool.open(1), first);
        pool.recycle();
        assert_eq!(pool.open(2), first);
        assert_eq!((pool.count(), pool.unused().count()), (2, 0));
    }
}
