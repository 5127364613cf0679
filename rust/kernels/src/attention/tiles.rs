//! Attention over bf16 keys and values on the tiles of AMX: the sums of [`super::tile`], sixteen rows at a time.
//!
//! A block's keys and values are laid out for tiles once for all rows of a task. Products of tiles take two numbers side by
//! side, so keys lie as pairs of channels and values as pairs of tokens.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::kv::padded;
use super::rows::{HALVES, TILE_DEPTH, weigh};
use super::source::Held;
use super::tile::{State, Tile};
use super::{BLOCK_SIZE, first_visible};
use crate::amx::{ROW, ROWS, Tiles};
use crate::isa::Isa;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Rows that a task holds at most: their sums stay in the caches, and laying out a block is little beside them.
pub(super) const ROWS_PER_TASK: usize = 64;
/// Fewer rows are computed without tiles.
const FEWEST_ROWS: usize = ROWS;
/// The exponent of bf16: all ones in an infinity and in NaN.
const EXPONENT: i16 = 0x7f80;

/// A row of a tile: 32 numbers of bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; TILE_DEPTH]);

const _: () = assert!(size_of::<Line>() == ROW && BLOCK_SIZE == TILE_DEPTH);

/// What a task computes in.
#[derive(Default)]
struct Buffers {
    /// `[tiles of rows][ceil(head_dim / 32)][16]`: a row's channels.
    q: Vec<Line>,
    /// `[ceil(head_dim / 32)][2 halves][16 pairs of channels]`: for each of 16 tokens two channels.
    keys: Vec<Line>,
    /// `[padded head_dim / 16][16 pairs of tokens]`: for each of 16 channels two tokens.
    values: Vec<Line>,
    /// `[2 halves][16 rows]`
    scores: Vec<[f32; LANES]>,
    /// Of sixteen rows.
    weights: Vec<[f32; BLOCK_SIZE]>,
    /// The same in bf16.
    packed: Vec<Line>,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static KEPT: RefCell<(State, Buffers)> = RefCell::default();
}

/// Runs the task, if its level has tiles and it has rows enough. Says whether it did.
pub(super) fn run(tile: &Tile<'_, u16>) -> bool {
    let fits = tile.kernels.isa() == Isa::Amx && tile.rounds() && tile.count * tile.group() >= FEWEST_ROWS;
    if fits {
        dispatch(tile.kernels, OnTiles { tile });
    }
    fits
}

struct OnTiles<'a> {
    tile: &'a Tile<'a, u16>,
}

impl Op for OnTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.tile;
        let (mut state, mut buffers) = KEPT.take();
        let rows = tile.count * tile.group();
        let vectors = padded(tile.params.head_dim) / LANES;
        tile.start(&mut state);
        state.acc.resize(rows.next_multiple_of(ROWS) * vectors, [0.0; LANES]);
        buffers.start(tile.params.head_dim, rows, &state);
        // SAFETY: the level is AMX (`run`), and a task holds no other tiles.
        let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
        let first_block = first_visible(tile.position(0), tile.params.window) / BLOCK_SIZE;
        let last_block = tile.position(tile.count - 1) / BLOCK_SIZE;
        for block in first_block..=last_block {
            let Held::Float { keys, values } = tile.held(block, false) else {
                unreachable!("rows are rounded where all blocks are floats")
            };
            let limit = (tile.seq.context_len - block * BLOCK_SIZE).min(BLOCK_SIZE);
            // SAFETY: the level has AVX-512 (`run`).
            let finite = unsafe { buffers.lay_out(keys, values, tile.params.head_dim, limit) };
            for first in (0..rows).step_by(ROWS) {
                let rows = first..rows.min(first + ROWS);
                if tile.visible(block, rows.end - 1).1 == 0 {
                    continue;
                }
                buffers.scores(&tiles, first / ROWS);
                let rescale = self.weights(s, &mut state, &mut buffers, block, rows.clone());
                for (row, &rescale) in rows.clone().zip(&rescale) {
                    if rescale != 1.0 {
                        for acc in &mut state.acc[row * vectors..(row + 1) * vectors] {
                            s.store(s.mul(s.load(acc), s.splat(rescale)), acc);
                        }
                    }
                }
                if finite {
                    // SAFETY: the level has AVX-512.
                    unsafe { buffers.pack_weights() };
                    buffers.weigh(&tiles, &mut state.acc[first * vectors..(first + ROWS) * vectors]);
                } else {
                    // Zero times infinity would reach rows that do not see the token.
                    for row in rows {
                        let acc = &mut state.acc[row * vectors..(row + 1) * vectors];
                        let weights = &buffers.weights[row - first..=row - first];
                        weigh(
                            tile.kernels,
                            acc,
                            values,
                            weights,
                            &[1.0],
                            tile.visible(block, row),
                            keys.as_ptr().cast(),
                        );
                    }
                }
            }
        }
        drop(tiles);
        tile.finish(s, &state);
        KEPT.set((state, buffers));
    }
}

impl OnTiles<'_> {
    /// The weights of up to sixteen rows, from their scores, and what the rows' sums are to be multiplied with before.
    #[inline(always)]
    fn weights<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        buffers: &mut Buffers,
        block: usize,
        rows: std::ops::Range<usize>,
    ) -> [f32; ROWS] {
        let all = self.tile.seen_by_all(block);
        let mut rescale = [1.0; ROWS];
        let first = rows.start;
        buffers.weights[rows.len()..].fill([0.0; BLOCK_SIZE]);
        for row in rows {
            let r = row - first;
            let seen = if all { (0, BLOCK_SIZE) } else { self.tile.visible(block, row) };
            if seen.0 >= seen.1 {
                buffers.weights[r] = [0.0; BLOCK_SIZE];
                continue;
            }
            let mut score = [s.zero(); HALVES];
            for half in 0..HALVES {
                score[half] = self.tile.bounded(s, s.load(&buffers.scores[half * ROWS + r]), half, seen);
            }
            let (largest, sum) = (&mut state.largest[row], &mut state.sum[row]);
            rescale[r] = self.tile.soften(s, score, largest, sum, &mut buffers.weights[r]);
        }
        rescale
    }
}

impl Buffers {
    /// Sizes for `rows` rows of `head_dim` channels, and the queries of `state` in bf16, which they are exactly.
    fn start(&mut self, head_dim: usize, rows: usize, state: &State) {
        let chunks = head_dim.div_ceil(TILE_DEPTH);
        let width = padded(head_dim);
        let zero = Line([0; TILE_DEPTH]);
        self.q.clear();
        self.q.resize(rows.next_multiple_of(ROWS) * chunks, zero);
        for (row, q) in state.q.as_flattened().chunks_exact(width).enumerate() {
            for (chunk, q) in q.chunks(TILE_DEPTH).enumerate() {
                let line = &mut self.q[(row / ROWS * chunks + chunk) * ROWS + row % ROWS];
                line.0.iter_mut().zip(q).for_each(|(to, x)| *to = (x.to_bits() >> 16) as u16);
            }
        }
        self.keys.resize(chunks * HALVES * ROWS, zero);
        self.values.resize(width / LANES * ROWS, zero);
        self.scores.resize(HALVES * ROWS, [0.0; LANES]);
        self.weights.resize(ROWS, [0.0; BLOCK_SIZE]);
        self.weights.fill([0.0; BLOCK_SIZE]);
        self.packed.resize(ROWS, zero);
    }

    /// Lays out a block, of whose values those of the first `limit` tokens are read. Says whether these are all finite.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn lay_out(
        &mut self,
        keys: &[[u16; LANES]],
        values: &[[u16; LANES]],
        head_dim: usize,
        limit: usize,
    ) -> bool {
        // Numbers of two rows in turn: a0 b0 a1 b1 ...; the first sixteen of each, and the others.
        let mut order = [[0_i16; 32]; 2];
        for (half, order) in order.iter_mut().enumerate() {
            for (i, place) in order.iter_mut().enumerate() {
                *place = (16 * half + i / 2 + 32 * (i % 2)) as i16;
            }
        }
        // SAFETY: loads of 64 bytes from arrays of that size.
        let order = order.map(|order| unsafe { _mm512_loadu_si512(order.as_ptr().cast()) });
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
        for pair in 0..head_dim.next_multiple_of(TILE_DEPTH) / 2 {
            let (a, b) = (channel(2 * pair), channel(2 * pair + 1));
            let first = pair / ROWS * HALVES * ROWS + pair % ROWS;
            store(&mut self.keys[first], _mm512_permutex2var_epi16(a, order[0], b));
            store(&mut self.keys[first + ROWS], _mm512_permutex2var_epi16(a, order[1], b));
        }
        let vectors = values.len() / BLOCK_SIZE;
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
                let (a, b) = (token(2 * pair), token(2 * pair + 1));
                for x in [a, b] {
                    faults |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
                }
                store(&mut self.values[vector * ROWS + pair], _mm512_permutex2var_epi16(a, order[0], b));
                if wide {
                    store(
                        &mut self.values[(vector + 1) * ROWS + pair],
                        _mm512_permutex2var_epi16(a, order[1], b),
                    );
                }
            }
        }
        faults == 0
    }

    /// The scores of row tile `index`.
    #[inline(always)]
    fn scores(&mut self, tiles: &Tiles, index: usize) {
        let chunks = self.keys.len() / (HALVES * ROWS);
        let q = &self.q[index * chunks * ROWS..(index + 1) * chunks * ROWS];
        tiles.zero::<0>();
        tiles.zero::<1>();
        let scores = self.scores.as_mut_ptr().cast::<u8>();
        for chunk in 0..chunks {
            let q = q[chunk * ROWS..(chunk + 1) * ROWS].as_ptr().cast();
            let keys = &self.keys[chunk * HALVES * ROWS..(chunk + 1) * HALVES * ROWS];
            // SAFETY: 16 lines of q and twice as many of keys.
            unsafe {
                tiles.load::<4>(q, ROW);
                tiles.load::<5>(keys.as_ptr().cast(), ROW);
                tiles.dot_bf16::<0, 4, 5>();
                tiles.load::<6>(keys[ROWS..].as_ptr().cast(), ROW);
                tiles.dot_bf16::<1, 4, 6>();
            }
        }
        // SAFETY: room for two tiles.
        unsafe {
            tiles.store::<0>(scores, ROW);
            tiles.store::<1>(scores.wrapping_add(ROWS * ROW), ROW);
        }
    }

    /// The weights in bf16, which they are exactly.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn pack_weights(&mut self) {
        for (weights, line) in self.weights.iter().zip(&mut self.packed) {
            for (weights, line) in
                weights.as_chunks::<LANES>().0.iter().zip(line.0.as_chunks_mut::<LANES>().0)
            {
                // SAFETY: 16 values are read and written.
                unsafe {
                    let bits = _mm512_castps_si512(_mm512_loadu_ps(weights.as_ptr()));
                    let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
                    _mm256_storeu_si256(line.as_mut_ptr().cast(), upper);
                }
            }
        }
    }

    /// acc += weights times values, for sixteen rows: acc `[16][padded head_dim]`.
    #[inline(always)]
    fn weigh(&self, tiles: &Tiles, acc: &mut [[f32; LANES]]) {
        let vectors = acc.len() / ROWS;
        assert_eq!(self.values.len(), vectors * ROWS);
        let stride = vectors * ROW;
        // SAFETY: 16 lines of weights, 16 lines of values for each vector, and 16 rows of acc, `stride` bytes apart.
        unsafe {
            tiles.load::<4>(self.packed.as_ptr().cast(), ROW);
            for vector in (0..vectors).step_by(2) {
                let to = acc.as_mut_ptr().cast::<u8>().wrapping_add(vector * ROW);
                let values = self.values.as_ptr().cast::<u8>().wrapping_add(vector * ROWS * ROW);
                tiles.load::<0>(to, stride);
                tiles.load::<5>(values, ROW);
                tiles.dot_bf16::<0, 4, 5>();
                if vector + 1 < vectors {
                    tiles.load::<1>(to.wrapping_add(ROW), stride);
                    tiles.load::<6>(values.wrapping_add(ROWS * ROW), ROW);
                    tiles.dot_bf16::<1, 4, 6>();
                    tiles.store::<1>(to.wrapping_add(ROW), stride);
                }
                tiles.store::<0>(to, stride);
            }
        }
    }
}
