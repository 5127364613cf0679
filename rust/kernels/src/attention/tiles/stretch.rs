//! What a task computes in: queries, keys and values as tiles take them, scores and weights as they leave and enter them.
//!
//! Products of tiles take two numbers side by side. Keys lie as pairs of neighbouring channels, values as pairs of tokens, one of the
//! first sixteen of a block and the one sixteen places on.

use std::arch::x86_64::*;

use super::super::BLOCK_SIZE;
use super::super::kv::padded;
use super::super::rows::{HALVES, TILE_DEPTH};
use super::super::tile::State;
use crate::amx::{ROW, ROWS, Tiles};
use crate::simd::LANES;

/// Blocks that are laid out at once.
pub(super) const BLOCKS: usize = 2;
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
    /// `[block][chunks][2 halves of a block][16 pairs of channels]`: for each of 16 tokens two channels.
    keys: Vec<Line>,
    /// `[block][padded head_dim / 16][16 pairs of tokens]`: for each of 16 channels two tokens.
    values: Vec<Line>,
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
        self.keys.resize(BLOCKS * chunks * HALVES * ROWS, Line::ZERO);
        self.values.resize(BLOCKS * vectors * ROWS, Line::ZERO);
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

    /// The scores of tile `index` of rows in the first `blocks` blocks. They stay until those of the tile after the next are made.
    #[inline(always)]
    pub(super) fn scores(&mut self, tiles: &Tiles, index: usize, blocks: usize) {
        if blocks == BLOCKS {
            self.scores_in::<BLOCKS>(tiles, index)
        } else {
            self.scores_in::<1>(tiles, index)
        }
    }

    #[inline(always)]
    fn scores_in<const N: usize>(&mut self, tiles: &Tiles, index: usize) {
        let chunks = self.chunks;
        let q = &self.q[index * chunks * ROWS..(index + 1) * chunks * ROWS];
        let turn = &mut self.scores[index % 2 * BLOCKS * HALVES * ROWS..][..N * HALVES * ROWS];
        let keys = &self.keys[..N * chunks * HALVES * ROWS];
        tiles.zero::<0>();
        tiles.zero::<1>();
        if N > 1 {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for chunk in 0..chunks {
            let keys = |block: usize, half: usize| {
                keys[((block * chunks + chunk) * HALVES + half) * ROWS..][..ROWS].as_ptr().cast()
            };
            // SAFETY: 16 lines of q, and as many of keys for each half of a block.
            unsafe {
                tiles.load::<4>(q[chunk * ROWS..(chunk + 1) * ROWS].as_ptr().cast(), ROW);
                tiles.load::<5>(keys(0, 0), ROW);
                tiles.dot_bf16::<0, 4, 5>();
                tiles.load::<6>(keys(0, 1), ROW);
                tiles.dot_bf16::<1, 4, 6>();
                if N > 1 {
                    tiles.load::<7>(keys(1, 0), ROW);
                    tiles.dot_bf16::<2, 4, 7>();
                    tiles.load::<5>(keys(1, 1), ROW);
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

    /// acc += weights times values of N blocks from `block` on, for tile `index` of rows: acc `[16][padded head_dim]`.
    #[inline(always)]
    pub(super) fn weigh<const N: usize>(
        &self,
        tiles: &Tiles,
        index: usize,
        block: usize,
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
                4.. => self.columns::<N, 4>(tiles, block, vector, acc),
                2 | 3 => self.columns::<N, 2>(tiles, block, vector, acc),
                _ => self.columns::<N, 1>(tiles, block, vector, acc),
            };
        }
    }

    /// The part of [`weigh`](Self::weigh) for W vectors from `vector` on, with weights in tiles 4 and 5. Gives W.
    #[inline(always)]
    fn columns<const N: usize, const W: usize>(
        &self,
        tiles: &Tiles,
        block: usize,
        vector: usize,
        acc: &mut [[f32; LANES]],
    ) -> usize {
        let vectors = acc.len() / ROWS;
        let stride = vectors * ROW;
        assert!(vector + W <= vectors);
        let values = &self.values[block * vectors * ROWS..(block + N) * vectors * ROWS];
        let values = |block: usize, w: usize| {
            values[(block * vectors + vector + w) * ROWS..][..ROWS].as_ptr().cast::<u8>()
        };
        let acc = acc.as_mut_ptr().cast::<u8>();
        let to = |w: usize| acc.wrapping_add((vector + w) * ROW);
        // SAFETY: 16 lines of values for each vector of a block, and 16 rows of acc, `stride` bytes apart.
        unsafe {
            tiles.load::<0>(to(0), stride);
            tiles.load::<6>(values(0, 0), ROW);
            tiles.dot_bf16::<0, 4, 6>();
            if W > 1 {
                tiles.load::<1>(to(1), stride);
                tiles.load::<7>(values(0, 1), ROW);
                tiles.dot_bf16::<1, 4, 7>();
            }
            if W > 2 {
                tiles.load::<2>(to(2), stride);
                tiles.load::<6>(values(0, 2), ROW);
                tiles.dot_bf16::<2, 4, 6>();
                tiles.load::<3>(to(3), stride);
                tiles.load::<7>(values(0, 3), ROW);
                tiles.dot_bf16::<3, 4, 7>();
            }
            if N > 1 {
                tiles.load::<6>(values(1, 0), ROW);
                tiles.dot_bf16::<0, 5, 6>();
                if W > 1 {
                    tiles.load::<7>(values(1, 1), ROW);
                    tiles.dot_bf16::<1, 5, 7>();
                }
                if W > 2 {
                    tiles.load::<6>(values(1, 2), ROW);
                    tiles.dot_bf16::<2, 5, 6>();
                    tiles.load::<7>(values(1, 3), ROW);
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

    /// Lays out block `index` of the stretch, of whose values those of the first `limit` tokens are read. Says whether these are all
    /// finite.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn lay_out(
        &mut self,
        index: usize,
        keys: &[[u16; LANES]],
        values: &[[u16; LANES]],
        head_dim: usize,
        limit: usize,
    ) -> bool {
        // Numbers of two rows in turn, a0 b0 a1 b1 ...: of the first sixteen of each, and of the others. Unpacking takes each second
        // eight bytes, which are brought there first.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        let pairs = |a: __m512i, b: __m512i| {
            let (a, b) = (_mm512_permutexvar_epi64(order, a), _mm512_permutexvar_epi64(order, b));
            (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b))
        };
        let store = |line: &mut Line, v: __m512i| {
            // SAFETY: a line has 64 bytes.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) }
        };
        let (channels, _) = keys[..HALVES * head_dim].as_chunks::<HALVES>();
        let channel = |index: usize| match channels.get(index) {
            // SAFETY: 32 tokens are read.
            Some(tokens) => unsafe { _mm512_loadu_si512(tokens.as_ptr().cast()) },
            None => _mm512_setzero_si512(),
        };
        let to = &mut self.keys[index * self.chunks * HALVES * ROWS..][..self.chunks * HALVES * ROWS];
        for pair in 0..self.chunks * TILE_DEPTH / 2 {
            let (first, others) = pairs(channel(2 * pair), channel(2 * pair + 1));
            let at = pair / ROWS * HALVES * ROWS + pair % ROWS;
            store(&mut to[at], first);
            store(&mut to[at + ROWS], others);
        }
        let vectors = values.len() / BLOCK_SIZE;
        let to = &mut self.values[index * vectors * ROWS..][..vectors * ROWS];
        let exponent = _mm512_set1_epi16(EXPONENT);
        let mut faults = 0;
        for pair in 0..ROWS {
            for vector in (0..vectors).step_by(2) {
                let wide = vector + 1 < vectors;
                let token = |token: usize| {
                    let mask = match (token < limit, wide) {
                        (false, _) => 0,
                        (true, true) => u32::MAX,
                        (true, false) => 0xffff,
                    };
                    let at = &values[token * vectors + vector];
                    // SAFETY: the mask covers one array or, where there are two, two that follow each other.
                    unsafe { _mm512_maskz_loadu_epi16(mask, at.as_ptr().cast()) }
                };
                let (a, b) = (token(pair), token(pair + ROWS));
                for v in [a, b] {
                    faults |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, exponent), exponent);
                }
                let (first, others) = pairs(a, b);
                store(&mut to[vector * ROWS + pair], first);
                if wide {
                    store(&mut to[(vector + 1) * ROWS + pair], others);
                }
            }
        }
        faults == 0
    }
}
