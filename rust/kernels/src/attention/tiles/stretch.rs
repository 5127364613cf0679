//! The products of a task's rows with blocks, and the buffers between them: queries, scores and weights as tiles take or leave them.

use std::arch::x86_64::*;

use super::super::BLOCK_SIZE;
use super::super::kv::padded;
use super::super::rows::{HALVES, TILE_DEPTH};
use super::super::tile::State;
use crate::amx::{ROW, ROWS, Tiles};
use crate::simd::LANES;

/// Blocks that are gone through at once.
pub(super) const BLOCKS: usize = 2;
/// Bytes from a row of a tile of keys to the next.
const KEYS_APART: usize = HALVES * ROW;
/// The exponent of bf16: all ones in an infinity and in NaN.
const EXPONENT: i16 = 0x7f80;

/// A row of a tile: 32 numbers of bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; TILE_DEPTH]);

impl Line {
    const ZERO: Line = Line([0; TILE_DEPTH]);
}

/// A row of a tile of sums.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Sums([f32; LANES]);

const _: () = assert!(size_of::<Line>() == ROW && size_of::<Sums>() == ROW && BLOCK_SIZE == TILE_DEPTH);

/// The buffers of a thread.
#[derive(Default)]
pub(super) struct Buffers {
    /// `[tiles of rows][chunks of 32 channels][16 rows]`: a row's channels.
    q: Vec<Line>,
    /// `[tiles of rows in turn, 2][block][half][16 rows]`
    scores: Vec<Sums>,
    /// `[tiles of rows in turn, 2][block][16 rows]`: weights of the tokens in pairs, as those of values.
    weights: Vec<Line>,
    /// Chunks of 32 channels.
    chunks: usize,
}

impl Buffers {
    /// Sizes for `rows` rows of `head_dim` channels, and the queries of `state` in bf16, which they are exactly.
    #[inline(always)]
    pub(super) fn start(&mut self, head_dim: usize, rows: usize, state: &State) {
        self.chunks = head_dim.div_ceil(TILE_DEPTH);
        let (chunks, vectors) = (self.chunks, padded(head_dim) / LANES);
        self.q.resize(rows.next_multiple_of(ROWS) * chunks, Line::ZERO);
        for (row, q) in state.q.chunks_exact(vectors).enumerate() {
            for (chunk, q) in q.chunks(2).enumerate() {
                let line = &mut self.q[(row / ROWS * chunks + chunk) * ROWS + row % ROWS].0;
                let q = q.as_flattened();
                // In order, not in pairs of vectors.
                line.iter_mut().zip(q).for_each(|(to, x)| *to = (x.to_bits() >> 16) as u16);
                line[q.len()..].fill(0);
            }
        }
        self.scores.resize(2 * BLOCKS * HALVES * ROWS, Sums::default());
        self.weights.clear();
        self.weights.resize(2 * BLOCKS * ROWS, Line::ZERO);
    }

    /// The scores of half a block that [`scores`](Self::scores) made for a row.
    #[inline(always)]
    pub(super) fn scores_of(&self, row: usize, block: usize, half: usize) -> &[f32; LANES] {
        let turn = row / ROWS % 2;
        &self.scores[((turn * BLOCKS + block) * HALVES + half) * ROWS + row % ROWS].0
    }

    /// Where a row's weights in a block go.
    #[inline(always)]
    pub(super) fn weights_of(&mut self, row: usize, block: usize) -> &mut [u16; BLOCK_SIZE] {
        &mut self.weights[(row / ROWS % 2 * BLOCKS + block) * ROWS + row % ROWS].0
    }

    /// The scores of tile `index` of rows in one block or two. They stay until those of the tile after the next are made.
    #[inline(always)]
    pub(super) fn scores(&mut self, tiles: &Tiles, index: usize, blocks: &[Block<'_>]) {
        if blocks.len() == BLOCKS {
            self.scores_in::<BLOCKS>(tiles, index, blocks);
        } else {
            self.scores_in::<1>(tiles, index, blocks);
        }
    }

    #[inline(always)]
    fn scores_in<const N: usize>(&mut self, tiles: &Tiles, index: usize, blocks: &[Block<'_>]) {
        let chunks = self.chunks;
        let q = &self.q[index * chunks * ROWS..(index + 1) * chunks * ROWS];
        let turn = &mut self.scores[index % 2 * BLOCKS * HALVES * ROWS..][..N * HALVES * ROWS];
        tiles.zero::<0>();
        tiles.zero::<1>();
        if N > 1 {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for chunk in 0..chunks {
            let keys = |block: usize, half: usize| blocks[block].keys(chunk, half);
            // SAFETY: 16 lines of q, and as many of keys for each half of a block, as `keys` checks.
            unsafe {
                tiles.load::<4>(q[chunk * ROWS..(chunk + 1) * ROWS].as_ptr().cast(), ROW);
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
        let to = turn.as_mut_ptr().cast::<u8>();
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

    /// acc += weights times values for tile `index` of rows: the weights of N blocks from `block` on, the values of the first N of
    /// `blocks`; acc `[16][padded head_dim]`.
    #[inline(always)]
    pub(super) fn weigh<const N: usize>(
        &self,
        tiles: &Tiles,
        index: usize,
        block: usize,
        blocks: &[Block<'_>],
        acc: &mut [[f32; LANES]],
    ) {
        let vectors = acc.len() / ROWS;
        let weights = &self.weights[(index % 2 * BLOCKS + block) * ROWS..][..N * ROWS];
        // SAFETY: 16 lines of weights a block.
        unsafe {
            tiles.load::<4>(weights.as_ptr().cast(), ROW);
            if N > 1 {
                tiles.load::<5>(weights[ROWS..].as_ptr().cast(), ROW);
            }
        }
        let mut vector = 0;
        while vector < vectors {
            vector += match vectors - vector {
                4.. => columns::<N, 4>(tiles, blocks, vector, acc),
                2 | 3 => columns::<N, 2>(tiles, blocks, vector, acc),
                _ => columns::<N, 1>(tiles, blocks, vector, acc),
            };
        }
    }
}

/// The part of [`Buffers::weigh`] for W vectors from `vector` on, with weights in tiles 4 and 5. Gives W.
#[inline(always)]
fn columns<const N: usize, const W: usize>(
    tiles: &Tiles,
    blocks: &[Block<'_>],
    vector: usize,
    acc: &mut [[f32; LANES]],
) -> usize {
    let vectors = acc.len() / ROWS;
    let stride = vectors * ROW;
    assert!(
        vector + W <= vectors && blocks[..N].iter().all(|block| block.values.len() == BLOCK_SIZE * vectors)
    );
    let values =
        |block: usize, w: usize| blocks[block].values.as_ptr().cast::<u8>().wrapping_add((vector + w) * ROW);
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

/// A block of keys and values as they lie in the cache: in the pairs that tiles take.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// `[chunks of 32 channels][16 pairs of channels][2 halves]`: for each of 16 tokens two channels.
    pub(super) keys: &'a [[u16; LANES]],
    /// `[16 pairs of tokens][padded head_dim / 16]`: for each of 16 channels two tokens.
    pub(super) values: &'a [[u16; LANES]],
}

impl Block<'_> {
    /// Where the tile of keys of a chunk and half begins; its rows are `KEYS_APART` bytes apart.
    #[inline(always)]
    fn keys(&self, chunk: usize, half: usize) -> *const u8 {
        let first = chunk * ROWS * HALVES + half;
        assert!(self.keys.len() >= 2 * HALVES * ROWS * (chunk + 1) && half < HALVES);
        self.keys.as_ptr().cast::<u8>().wrapping_add(first * ROW)
    }

    /// Whether no value is infinite or not a number.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn is_finite(&self) -> bool {
        let exponent = _mm512_set1_epi16(EXPONENT);
        let mut faults = 0;
        for pair in self.values.as_chunks::<2>().0 {
            // SAFETY: 64 bytes are read.
            let values = unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) };
            faults |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
        }
        faults == 0
    }
}
