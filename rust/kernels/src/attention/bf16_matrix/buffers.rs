//! Buffers between matrix products and vector code: queries, scores and weights of a task's rows, in tiles of 16 rows.
//!
//! Scores and weights of two tiles of rows are kept in turn: while the unit computes the scores of one tile, vectors
//! make the weights of the other.

use super::super::kv_cache::{HALVES, MATRIX_DEPTH, padded};
use super::super::params::BLOCK_SIZE;
use super::super::state::SoftmaxState;
use super::products::{BlockProducts, PAIR_BLOCKS, PairLine, ScoreLine};
use crate::amx::ROWS;
use crate::simd::LANES;

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct MatrixBuffers {
    /// `[tiles of rows][chunks of 32 channels][16 rows]`: a row's channels.
    queries: Vec<PairLine>,
    /// `[tiles of rows in turn, 2][block][half][16 rows]`
    scores: Vec<ScoreLine>,
    /// `[tiles of rows in turn, 2][block][16 rows]`: weights, in pairs of tokens sixteen apart.
    weights: Vec<PairLine>,
    /// Chunks of 32 channels.
    chunks: usize,
    rows: usize,
}

impl MatrixBuffers {
    /// Sizes the buffers for `rows` rows of `head_dim` channels, and converts the queries of `state` to bf16 (exact).
    #[inline(always)]
    pub(super) fn start<'a>(
        &mut self,
        products: &mut impl BlockProducts<'a>,
        head_dim: usize,
        rows: usize,
        state: &SoftmaxState,
    ) {
        self.rows = rows;
        self.chunks = head_dim.div_ceil(MATRIX_DEPTH);
        let (chunks, vectors) = (self.chunks, padded(head_dim) / LANES);
        self.queries.resize(rows.next_multiple_of(ROWS) * chunks, PairLine::ZERO);
        for (row, q) in state.q.chunks_exact(vectors).enumerate() {
            for (chunk, q) in q.chunks(2).enumerate() {
                let line = &mut self.queries[(row / ROWS * chunks + chunk) * ROWS + row % ROWS].0;
                let q = q.as_flattened();
                line.iter_mut().zip(q).for_each(|(to, x)| *to = (x.to_bits() >> 16) as u16);
                line[q.len()..].fill(0);
            }
        }
        products.start(&mut self.queries);
        self.scores.resize(2 * PAIR_BLOCKS * HALVES * ROWS, ScoreLine::default());
        self.weights.clear();
        self.weights.resize(2 * PAIR_BLOCKS * ROWS, PairLine::ZERO);
    }

    /// The scores of half a block that [`qk`](Self::qk) made for a row.
    #[inline(always)]
    pub(super) fn scores_of(&self, row: usize, block: usize, half: usize) -> &[f32; LANES] {
        let turn = row / ROWS % 2;
        &self.scores[((turn * PAIR_BLOCKS + block) * HALVES + half) * ROWS + row % ROWS].0
    }

    /// The weights of a row in a block.
    #[inline(always)]
    pub(super) fn weights_of(&mut self, row: usize, block: usize) -> &mut [u16; BLOCK_SIZE] {
        &mut self.weights[(row / ROWS % 2 * PAIR_BLOCKS + block) * ROWS + row % ROWS].0
    }

    /// Number of rows of tile `index`.
    #[inline(always)]
    fn rows_of(&self, index: usize) -> usize {
        ROWS.min(self.rows - index * ROWS)
    }

    /// Scores of tile `index` against the first `count` loaded blocks. They stay until the scores of tile `index + 2`.
    #[inline(always)]
    pub(super) fn qk<'a>(&mut self, products: &impl BlockProducts<'a>, index: usize, count: usize) {
        let rows = self.rows_of(index);
        let queries = &self.queries[index * self.chunks * ROWS..(index + 1) * self.chunks * ROWS];
        let to = &mut self.scores[index % 2 * PAIR_BLOCKS * HALVES * ROWS..][..count * HALVES * ROWS];
        products.qk(queries, rows, count, to);
    }

    /// acc += weights times values for tile `index` and `count` loaded blocks from `block` on; acc is `[16][padded
    /// head_dim]`.
    #[inline(always)]
    pub(super) fn accumulate_pv<'a>(
        &self,
        products: &impl BlockProducts<'a>,
        index: usize,
        block: usize,
        count: usize,
        acc: &mut [[f32; LANES]],
    ) {
        let weights = &self.weights[(index % 2 * PAIR_BLOCKS + block) * ROWS..][..count * ROWS];
        products.accumulate_pv(weights, self.rows_of(index), block..block + count, acc);
    }
}
