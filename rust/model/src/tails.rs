//! Where the floats of partly filled blocks lie in an int8 cache.

use octavo_kernels::{BLOCK_SIZE, SealedBlock, SeqView};

/// No tail.
const NONE: u32 = u32::MAX;

/// Which block has which tail, the same in every layer, and the places of one step.
///
/// A block gets its tail in the step that first writes to it and loses it in the step that fills it. A block that is
/// given up half full keeps its tail until [`Tails::release`], or passes it on with its number.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    /// Tail of each block.
    of: Vec<u32>,
    /// Blocks that have a tail.
    blocks: Vec<u32>,
    free: Vec<u32>,
    /// Tails that exist.
    count: u32,
    /// Slots of the step's tokens: tail * 32 + place.
    pub(crate) slots: Vec<u32>,
    /// Tails of the step's blocks, one sequence after the other.
    tables: Vec<u32>,
    /// Blocks that the step fills.
    pub(crate) filled: Vec<SealedBlock>,
}

impl Tails {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self { of: vec![NONE; num_blocks], ..Self::default() }
    }

    /// Tails that the layers must have.
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    /// Blocks that have a tail now.
    pub(crate) fn in_use(&self) -> usize {
        self.blocks.len()
    }

    /// The tail of `block`, if it has one.
    pub(crate) fn get(&self, block: u32) -> Option<u32> {
        Some(self.of[block as usize]).filter(|&tail| tail != NONE)
    }

    /// The tail of `block`, a new one if it has none.
    pub(crate) fn take(&mut self, block: u32) -> u32 {
        if let Some(tail) = self.get(block) {
            return tail;
        }
        // The lowest free number would keep memory smallest; the last given back is in the cache.
        let tail = self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        self.of[block as usize] = tail;
        self.blocks.push(block);
        tail
    }

    /// Finds the places of a step's tokens. `slots` are those of the scheduler, block * 32 + place.
    pub(crate) fn begin(&mut self, slots: &[u32], seqs: &[SeqView<'_>]) {
        self.slots.clear();
        self.tables.clear();
        self.filled.clear();
        for seq in seqs {
            let first = (seq.context_len - seq.query_len) / BLOCK_SIZE;
            let table = &seq.block_table[first..seq.context_len.div_ceil(BLOCK_SIZE)];
            for (block, number) in table.iter().zip(first..) {
                let tail = self.take(*block);
                self.tables.push(tail);
                if (number + 1) * BLOCK_SIZE <= seq.context_len {
                    self.filled.push(SealedBlock { block: *block, open: tail });
                }
            }
        }
        for &slot in slots {
            let (block, place) = (slot / BLOCK_SIZE as u32, slot % BLOCK_SIZE as u32);
            let tail = self.take(block);
            self.slots.push(tail * BLOCK_SIZE as u32 + place);
        }
    }

    /// The sequences of the step with the tails of their new blocks.
    pub(crate) fn views<'a>(&'a self, seqs: &[SeqView<'a>]) -> Vec<SeqView<'a>> {
        let mut rest: &[u32] = &self.tables;
        let view = |seq: &SeqView<'a>| {
            let first = (seq.context_len - seq.query_len) / BLOCK_SIZE;
            let tails;
            (tails, rest) = rest.split_at(seq.context_len.div_ceil(BLOCK_SIZE) - first);
            SeqView { open_blocks: tails, ..*seq }
        };
        seqs.iter().map(view).collect()
    }

    /// Gives back the tails of the blocks that the step has filled.
    pub(crate) fn end(&mut self) {
        for filled in &self.filled {
            self.of[filled.block as usize] = NONE;
            self.free.push(filled.open);
        }
        self.filled.clear();
        let of = &self.of;
        self.blocks.retain(|&block| of[block as usize] != NONE);
    }

    /// Gives back the tails of blocks that are not `held`.
    pub(crate) fn release(&mut self, held: &dyn Fn(u32) -> bool) {
        let (of, free) = (&mut self.of, &mut self.free);
        self.blocks.retain(|&block| {
            let stays = held(block);
            if !stays {
                free.push(std::mem::replace(&mut of[block as usize], NONE));
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(query_len: usize, context_len: usize, block_table: &[u32]) -> SeqView<'_> {
        SeqView { query_start: 0, query_len, context_len, block_table, open_blocks: &[] }
    }

    /// The scheduler's slots of the new tokens of a sequence.
    fn slots(seq: &SeqView<'_>) -> Vec<u32> {
        let places = seq.context_len - seq.query_len..seq.context_len;
        places
            .map(|p| seq.block_table[p / BLOCK_SIZE] * BLOCK_SIZE as u32 + (p % BLOCK_SIZE) as u32)
            .collect()
    }

    #[test]
    fn a_block_has_a_tail_from_its_first_token_to_the_step_that_fills_it() {
        let mut tails = Tails::new(10);
        let prefill = seq(70, 70, &[4, 9, 2]);
        tails.begin(&slots(&prefill), &[prefill]);
        let table = tails.views(&[prefill])[0].open_blocks.to_vec();
        let filled = |block, tail| SealedBlock { block, open: tail };
        assert_eq!(tails.filled, [filled(4, table[0]), filled(9, table[1])]);
        assert_eq!(tails.slots[69], table[2] * 32 + 5);
        assert_eq!((tails.count(), tails.in_use()), (3, 3));
        tails.end();
        assert_eq!((tails.get(4), tails.get(9), tails.get(2)), (None, None, Some(table[2])));

        // The next tokens go to the same tail; one step fills it and begins a block.
        let more = seq(28, 98, &[4, 9, 2, 7]);
        tails.begin(&slots(&more), &[more]);
        assert_eq!(tails.views(&[more])[0].open_blocks[0], table[2]);
        assert_eq!(tails.filled, [filled(2, table[2])]);
        tails.end();
        assert_eq!(tails.in_use(), 1);
        assert_eq!(tails.count(), 3, "tails that were given back are used again");
    }

    #[test]
    fn blocks_that_nobody_holds_lose_their_tails() {
        let mut tails = Tails::new(4);
        for block in 0..4 {
            tails.take(block);
        }
        tails.release(&|block| block == 2);
        assert_eq!((tails.in_use(), tails.get(1), tails.get(2)), (1, None, Some(2)));
        assert!((0..3).all(|_| tails.take(0) < 4));
        assert_eq!(tails.count(), 4);
    }
}
