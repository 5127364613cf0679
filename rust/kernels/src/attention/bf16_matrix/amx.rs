//! Products on the tiles of AMX, which read the blocks in the cache.
//!
//! A tile has 16 rows of 64 bytes. `TDPBF16PS` adds to a tile of f32 the product of a tile of 16 x 16 bf16 pairs and a
//! tile of 16 pairs x 16 columns. The eight tiles of a thread hold:
//!
//! ```text
//!     qk              0-3  scores [block][half]           4    queries             5-7  keys
//!     accumulate_pv   0-3  acc of up to four vectors      4-5  weights, 2 blocks   6-7  values
//! ```

use std::ops::Range;

use super::super::kv_cache::{HALVES, MATRIX_DEPTH};
use super::super::params::BLOCK_SIZE;
use super::products::{Bf16Block, BlockProducts, PAIR_BLOCKS, PairLine, ScoreLine};
use crate::amx::{ROW, ROWS, Tiles};
use crate::simd::LANES;

/// Bytes between rows of a tile of keys.
const KEYS_APART: usize = HALVES * ROW;

const _: () =
    assert!(size_of::<PairLine>() == ROW && size_of::<ScoreLine>() == ROW && BLOCK_SIZE == MATRIX_DEPTH);

/// The loaded blocks, and the tiles of this thread.
pub(super) struct AmxProducts<'a> {
    tiles: Tiles,
    blocks: [Bf16Block<'a>; PAIR_BLOCKS],
}

impl AmxProducts<'_> {
    /// # Safety
    /// The machine has tiles, and this thread holds no others.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the caller's promise.
        let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
        AmxProducts { tiles, blocks: [Bf16Block::NONE; PAIR_BLOCKS] }
    }

    /// Scores of 16 rows against N blocks: one step for each chunk of 32 channels.
    #[inline(always)]
    fn qk_blocks<const N: usize>(&self, queries: &[PairLine], to: &mut [ScoreLine]) {
        let AmxProducts { tiles, blocks } = self;
        assert!(to.len() == N * HALVES * ROWS);
        tiles.zero::<0>();
        tiles.zero::<1>();
        if N > 1 {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for (chunk, queries) in queries.as_chunks::<ROWS>().0.iter().enumerate() {
            let keys = |block: usize, half: usize| keys(&blocks[block], chunk, half);
            // SAFETY: 16 lines of queries, and as many of keys for each half of a block, as `keys` checks.
            unsafe {
                tiles.load::<4>(queries.as_ptr().cast(), ROW);
                tiles.load::<5>(keys(0, 0), KEYS_APART);
                tiles.dot_bf16::<0, 4, 5>();
                tiles.load::<6>(keys(0, 1), KEYS_APART);
                tiles.dot_bf16::<1, 4, 6>();
                if N > 1 {
                    tiles.load::<7>(keys(1, 0), KEYS_APART);
                    tiles.dot_bf16::<2, 4, 7>();
                    tiles.load::<5>(keys(1, 1), KEYS_APART);
                    tiles.dot_bf16::<3, 4, 5>();
                }
            }
        }
        let to = to.as_mut_ptr().cast::<u8>();
        // SAFETY: room for two tiles a block.
        unsafe {
            tiles.store::<0>(to, ROW);
            tiles.store::<1>(to.wrapping_add(ROWS * ROW), ROW);
            if N > 1 {
                tiles.store::<2>(to.wrapping_add(2 * ROWS * ROW), ROW);
                tiles.store::<3>(to.wrapping_add(3 * ROWS * ROW), ROW);
            }
        }
    }

    /// acc += weights times the values of N blocks: one step for each block, four vectors of acc at a time.
    #[inline(always)]
    fn accumulate_pv_blocks<const N: usize>(
        &self,
        weights: &[PairLine],
        blocks: &[Bf16Block<'_>],
        acc: &mut [[f32; LANES]],
    ) {
        let vectors = acc.len() / ROWS;
        assert!(weights.len() == N * ROWS && blocks.len() == N);
        // SAFETY: 16 lines of weights a block.
        unsafe {
            self.tiles.load::<4>(weights.as_ptr().cast(), ROW);
            if N > 1 {
                self.tiles.load::<5>(weights[ROWS..].as_ptr().cast(), ROW);
            }
        }
        let mut vector = 0;
        while vector < vectors {
            vector += match vectors - vector {
                4.. => self.columns::<N, 4>(blocks, vector, acc),
                2 | 3 => self.columns::<N, 2>(blocks, vector, acc),
                _ => self.columns::<N, 1>(blocks, vector, acc),
            };
        }
    }

    /// The part of [`accumulate_pv_blocks`](Self::accumulate_pv_blocks) for W vectors from `vector` on, with weights
    /// in tiles 4 and 5. Returns W.
    #[inline(always)]
    fn columns<const N: usize, const W: usize>(
        &self,
        blocks: &[Bf16Block<'_>],
        vector: usize,
        acc: &mut [[f32; LANES]],
    ) -> usize {
        let tiles = &self.tiles;
        let vectors = acc.len() / ROWS;
        let stride = vectors * ROW;
        assert!(
            vector + W <= vectors
                && blocks[..N].iter().all(|block| block.values.len() == BLOCK_SIZE * vectors)
        );
        let values = |block: usize, w: usize| {
            blocks[block].values.as_ptr().cast::<u8>().wrapping_add((vector + w) * ROW)
        };
        let acc = acc.as_mut_ptr().cast::<u8>();
        let to = |w: usize| acc.wrapping_add((vector + w) * ROW);
        // SAFETY: 16 rows of values for each vector of a block, and 16 rows of acc, all `stride` bytes apart.
        unsafe {
            tiles.load::<0>(to(0), stride);
            tiles.load::<6>(values(0, 0), stride);
            tiles.dot_bf16::<0, 4, 6>();
            if W > 1 {
                tiles.load::<1>(to(1), stride);
                tiles.load::<7>(values(0, 1), stride);
                tiles.dot_bf16::<1, 4, 7>();
            }
            if W > 2 {
                tiles.load::<2>(to(2), stride);
                tiles.load::<6>(values(0, 2), stride);
                tiles.dot_bf16::<2, 4, 6>();
                tiles.load::<3>(to(3), stride);
                tiles.load::<7>(values(0, 3), stride);
                tiles.dot_bf16::<3, 4, 7>();
            }
            if N > 1 {
                tiles.load::<6>(values(1, 0), stride);
                tiles.dot_bf16::<0, 5, 6>();
                if W > 1 {
                    tiles.load::<7>(values(1, 1), stride);
                    tiles.dot_bf16::<1, 5, 7>();
                }
                if W > 2 {
                    tiles.load::<6>(values(1, 2), stride);
                    tiles.dot_bf16::<2, 5, 6>();
                    tiles.load::<7>(values(1, 3), stride);
                    tiles.dot_bf16::<3, 5, 7>();
                }
            }
            tiles.store::<0>(to(0), stride);
            if W > 1 {
                tiles.store::<1>(to(1), stride);
            }
            if W > 2 {
                tiles.store::<2>(to(2), stride);
                tiles.store::<3>(to(3), stride);
            }
        }
        W
    }
}

impl<'a> BlockProducts<'a> for AmxProducts<'a> {
    #[inline(always)]
    fn load_blocks(&mut self, blocks: &[Bf16Block<'a>]) {
        self.blocks[..blocks.len()].copy_from_slice(blocks);
    }

    #[inline(always)]
    fn qk(&self, queries: &[PairLine], _: usize, count: usize, to: &mut [ScoreLine]) {
        if count == PAIR_BLOCKS {
            self.qk_blocks::<PAIR_BLOCKS>(queries, to);
        } else {
            self.qk_blocks::<1>(queries, to);
        }
    }

    #[inline(always)]
    fn accumulate_pv(&self, weights: &[PairLine], _: usize, blocks: Range<usize>, acc: &mut [[f32; LANES]]) {
        let blocks = &self.blocks[blocks];
        if blocks.len() == PAIR_BLOCKS {
            self.accumulate_pv_blocks::<PAIR_BLOCKS>(weights, blocks, acc);
        } else {
            self.accumulate_pv_blocks::<1>(weights, blocks, acc);
        }
    }
}

/// Address of the tile of keys of a chunk and half; its rows are [`KEYS_APART`] bytes apart.
#[inline(always)]
fn keys(block: &Bf16Block<'_>, chunk: usize, half: usize) -> *const u8 {
    let first = chunk * ROWS * HALVES + half;
    assert!(block.keys.len() >= 2 * HALVES * ROWS * (chunk + 1) && half < HALVES);
    block.keys.as_ptr().cast::<u8>().wrapping_add(first * ROW)
}
