//! What stands between the products and the vectors: queries, scores and weights of a task's rows.

use super::super::BLOCK_SIZE;
use super::super::kv::padded;
use super::super::rows::{HALVES, TILE_DEPTH};
use super::super::tile::State;
use super::products::{BLOCKS, Line, Products, Sums};
use crate::amx::ROWS;
use crate::simd::LANES;

/// The buffers of a thread.
#[derive(Default)]
pub(super) struct Buffers {
    /// `[tiles of rows][chunks of 32 channels][16 rows]`: a row's channels.
    queries: Vec<Line>,
    /// `[tiles of rows in turn, 2][block][half][16 rows]`
    scores: Vec<Sums>,
    /// `[tiles of rows in turn, 2][block][16 rows]`: weights of the tokens in pairs, as those of values.
    weights: Vec<Line>,
    /// Chunks of 32 channels.
    chunks: usize,
    rows: usize,
}

impl Buffers {
    /// Sizes for `rows` rows of `head_dim` channels, and the queries of `state` in bf16, which they are exactly.
    #[inline(always)]
    pub(super) fn start<'a>(
        &mut self,
        products: &mut impl Products<'a>,
        head_dim: usize,
        rows: usize,
        state: &State,
    ) {
        self.rows = rows;
        self.chunks = head_dim.div_ceil(TILE_DEPTH);
        let (chunks, vectors) = (self.chunks, padded(head_dim) / LANES);
        self.queries.resize(rows.next_multiple_of(ROWS) * chunks, Line::ZERO);
        for (row, q) in state.q.chunks_exact(vectors).enumerate() {
            for (chunk, q) in q.chunks(2).enumerate() {
                let line = &mut self.queries[(row / ROWS * chunks + chunk) * ROWS + row % ROWS].0;
                let q = q.as_flattened();
                // In order, not in pairs of vectors.
                line.iter_mut().zip(q).for_each(|(to, x)| *to = (x.to_bits() >> 16) as u16);
                line[q.len()..].fill(0);
            }
        }
        products.start(&mut self.queries);
        self.scores.resize(2 * BLOCKS * HALVES * ROWS, Sums::default());
        self.weights.clear();
        self.weights.resize(2 * BLOCKS * ROWS, Line::ZERO);
    }

    /// The scores of half a block that [`score`](Self::score) made for a row.
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

    /// Rows of tile `index` of rows.
    #[inline(always)]
    fn rows_of(&self, index: usize) -> usize {
        ROWS.min(self.rows - index * ROWS)
    }

    /// The scores of tile `index` of rows in the first `count` blocks held. They stay until those of the tile after the next are made.
    #[inline(always)]
    pub(super) fn score<'a>(&mut self, products: &impl Products<'a>, index: usize, count: usize) {
        let rows = self.rows_of(index);
        let queries = &self.queries[index * self.chunks * ROWS..(index + 1) * self.chunks * ROWS];
        let to = &mut self.scores[index % 2 * BLOCKS * HALVES * ROWS..][..count * HALVES * ROWS];
        products.scores(queries, rows, count, to);
    }

    /// acc += weights times values for tile `index` of rows and `count` of the blocks held, from `block` on; acc `[16][padded head_dim]`.
    #[inline(always)]
    pub(super) fn weigh<'a>(
        &self,
        products: &impl Products<'a>,
        index: usize,
        block: usize,
        count: usize,
        acc: &mut [[f32; LANES]],
    ) {
        let weights = &self.weights[(index % 2 * BLOCKS + block) * ROWS..][..count * ROWS];
        products.weigh(weights, self.rows_of(index), block..block + count, acc);
    }
}
