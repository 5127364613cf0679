//! Attention over bf16 keys and values by products of pairs, on the tiles of AMX or by the dot instruction of AVX-512: the sums of
//! [`super::tile`], sixteen rows at a time.
//!
//! Two blocks at a time are gone through by all rows of a task. While tiles compute the scores of sixteen rows, the vectors make
//! weights of the scores of the sixteen before them, and the tiles add the values of those before.

mod buffers;
mod dots;
mod products;
mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use super::kv::{Pair, key_block, padded, value_block};
use super::rows::{HALVES, fetch, weigh};
use super::source::Source;
use super::tile::{HEADROOM, State, Tile};
use super::{BLOCK_SIZE, first_visible};
use crate::amx::ROWS;
use crate::bf16_dot;
use crate::isa::Isa;
use crate::simd::{self, Avx512, LANES, Simd};
use buffers::Buffers;
use dots::{ByDots, Panels};
use products::{BLOCKS, Block, Products};
use tiles::OnTiles;

/// Rows that a task holds at most: their sums stay in the caches, and reading a block is little beside them.
const ROWS_PER_TASK: usize = 256;

thread_local! {
    /// Kept between tasks to spare allocations.
    static KEPT: RefCell<(State, Buffers, Panels)> = RefCell::default();
}

/// What a level has for products of pairs.
#[derive(Clone, Copy)]
enum Means {
    Tiles,
    Dots,
}

impl Means {
    fn of(isa: Isa) -> Option<Means> {
        match isa {
            Isa::Amx => Some(Means::Tiles),
            _ => bf16_dot::available(isa).then_some(Means::Dots),
        }
    }

    /// Fewer rows are computed by products in f32: on tiles with four, vectors keep up with memory; and dots first copy each block.
    fn fewest_rows(self) -> usize {
        match self {
            Means::Tiles => 6,
            Means::Dots => ROWS,
        }
    }
}

/// Rows that a task over bf16 blocks holds at most on this level, if products of pairs make more than usual pay.
pub(super) fn rows_per_task(isa: Isa) -> Option<usize> {
    Means::of(isa).map(|_| ROWS_PER_TASK)
}

/// Runs the task, if its level has products of pairs and it has rows enough. Says whether it did.
pub(super) fn run(tile: &Tile<'_, u16>) -> bool {
    let Some(means) = Means::of(tile.kernels.isa()) else { return false };
    if !tile.rounds() || tile.count * tile.group() < means.fewest_rows() {
        return false;
    }
    // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
    let (mut state, mut buffers, mut panels) = KEPT.take();
    match means {
        // SAFETY: the level has what `means` says.
        Means::Tiles => unsafe { run_on_tiles(tile, &mut state, &mut buffers) },
        // SAFETY: as above.
        Means::Dots => unsafe { run_by_dots(tile, &mut state, &mut buffers, &mut panels) },
    }
    KEPT.set((state, buffers, panels));
    true
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_on_tiles(tile: &Tile<'_, u16>, state: &mut State, buffers: &mut Buffers) {
    // SAFETY: this function's own features; and the level has tiles, of which a task holds no others.
    unsafe { attend(Avx512::new(), OnTiles::new(), tile, state, buffers) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
fn run_by_dots(tile: &Tile<'_, u16>, state: &mut State, buffers: &mut Buffers, panels: &mut Panels) {
    // SAFETY: this function's own features.
    unsafe { attend(Avx512::new(), ByDots::new(panels), tile, state, buffers) }
}

/// Reads all that the task's queries see, and writes their rows out.
#[inline(always)]
fn attend<'a, S: Simd>(
    s: S,
    mut products: impl Products<'a>,
    tile: &'a Tile<'a, u16>,
    state: &mut State,
    buffers: &mut Buffers,
) {
    let rows = tile.count * tile.group();
    let vectors = padded(tile.params.head_dim) / LANES;
    tile.start(state);
    state.acc.resize(rows.next_multiple_of(ROWS) * vectors, [0.0; LANES]);
    buffers.start(&mut products, tile.params.head_dim, rows, state);
    let first_block = first_visible(tile.position(0), tile.params.window) / BLOCK_SIZE;
    let last_block = tile.position(tile.count - 1) / BLOCK_SIZE;
    for block in (first_block..=last_block).step_by(BLOCKS) {
        let blocks = block..(block + BLOCKS).min(last_block + 1);
        // SAFETY: the level has AVX-512 (`run`).
        let stretch = unsafe { Stretch::new(tile, blocks) };
        products.hold(&stretch.held[..stretch.blocks.len()]);
        stretch.run(s, &products, state, buffers);
    }
    drop(products);
    tile.finish(s, state);
}

/// Up to sixteen rows whose weights are made.
struct Weighted {
    first: usize,
    last: usize,
    /// Blocks of the stretch that they see.
    count: usize,
    /// What their sums are to be multiplied with before each of these is added.
    rescale: [[f32; ROWS]; BLOCKS],
}

/// Some blocks, for all rows of a task.
struct Stretch<'a> {
    tile: &'a Tile<'a, u16>,
    pair: &'a Pair<u16>,
    blocks: Range<usize>,
    held: [Block<'a>; BLOCKS],
    /// Whether every row sees all of it.
    all: bool,
    /// Whether scores are used as they are besides.
    plain: bool,
    /// Whether no value can reach rows that do not see its token: zero times infinity is no number.
    apart: bool,
}

impl<'a> Stretch<'a> {
    /// Some blocks, at least one.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn new(tile: &'a Tile<'a, u16>, blocks: Range<usize>) -> Self {
        let Source::Float(pair) = tile.source else {
            unreachable!("rows are rounded where all blocks are floats")
        };
        let mut held = [Block::NONE; BLOCKS];
        for (held, block) in held.iter_mut().zip(blocks.clone()) {
            let (keys, values) = pair.head(tile.place(block), tile.params.head_dim);
            *held = Block { keys, values };
        }
        let seen = tile.seen_by_all_rows();
        let all = blocks.clone().all(|block| seen.contains(&block));
        let apart = all || held.iter().all(|block| block.is_finite());
        Stretch { tile, pair, blocks, held, all, plain: all && tile.params.softcap.is_none(), apart }
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, products: &impl Products<'a>, state: &mut State, buffers: &mut Buffers) {
        let rows = self.tile.count * self.tile.group();
        // Rows that see nothing of it come first.
        let mut first = (0..rows).step_by(ROWS).find(|&first| self.seen_by(first, rows) > 0).unwrap_or(rows);
        if first < rows {
            buffers.score(products, first / ROWS, self.seen_by(first, rows));
        }
        // Tiles and vectors work side by side, on three tiles of rows that follow each other.
        let mut weighted = None;
        self.fetch_keys(s, rows);
        while first < rows {
            let (next, count) = (first + ROWS, self.seen_by(first, rows));
            if next < rows {
                buffers.score(products, next / ROWS, self.seen_by(next, rows));
            }
            if let Some(weighted) = weighted.take() {
                self.weigh(s, products, state, buffers, &weighted);
            }
            weighted = Some(self.weights(s, state, buffers, first..rows.min(next), count));
            first = next;
        }
        self.fetch_values(s, rows);
        if let Some(weighted) = weighted {
            self.weigh(s, products, state, buffers, &weighted);
        }
    }

    /// Blocks that come next, where so few rows read them that memory is the limit.
    fn fetched(&self, rows: usize) -> Range<usize> {
        let last = self.tile.position(self.tile.count - 1) / BLOCK_SIZE;
        let count = if rows <= ROWS { BLOCKS } else { 0 };
        self.blocks.end..(self.blocks.end + count).min(last + 1)
    }

    /// Asks for their keys.
    #[inline(always)]
    fn fetch_keys<S: Simd>(&self, s: S, rows: usize) {
        for block in self.fetched(rows) {
            let size = key_block::<u16>(self.tile.params.head_dim);
            fetch(s, &self.pair.keys, self.tile.place(block), size);
        }
    }

    /// Asks for their values: later, so that not all is asked for at once.
    #[inline(always)]
    fn fetch_values<S: Simd>(&self, s: S, rows: usize) {
        for block in self.fetched(rows) {
            let size = value_block(self.tile.params.head_dim);
            fetch(s, &self.pair.values, self.tile.place(block), size);
        }
    }

    /// Adds the weighted values of sixteen rows to their sums.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        products: &impl Products<'a>,
        state: &mut State,
        buffers: &mut Buffers,
        weighted: &Weighted,
    ) {
        let Weighted { first, last, count, rescale } = weighted;
        let vectors = padded(self.tile.params.head_dim) / LANES;
        let acc = &mut state.acc[first * vectors..(first + ROWS) * vectors];
        let turn = first / ROWS;
        multiply(s, acc, &rescale[0]);
        if *count == BLOCKS && rescale[1] == [1.0; ROWS] && self.apart {
            buffers.weigh(products, turn, 0, BLOCKS, acc);
            return;
        }
        for block in 0..*count {
            if block > 0 {
                multiply(s, acc, &rescale[block]);
            }
            if self.apart {
                buffers.weigh(products, turn, block, 1, acc);
            } else {
                self.weigh_row_by_row(s, buffers, acc, block, *first..*last);
            }
        }
    }

    /// Blocks that any of sixteen rows sees.
    #[inline(always)]
    fn seen_by(&self, first: usize, rows: usize) -> usize {
        let last = rows.min(first + ROWS) - 1;
        let own = self.tile.position(last / self.tile.group()) / BLOCK_SIZE;
        (own + 1).clamp(self.blocks.start, self.blocks.end) - self.blocks.start
    }

    /// The weights of up to sixteen rows in the first `count` blocks, from their scores.
    #[inline(always)]
    fn weights<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        buffers: &mut Buffers,
        rows: Range<usize>,
        count: usize,
    ) -> Weighted {
        let mut rescale = [[1.0; ROWS]; BLOCKS];
        for row in rows.clone() {
            if self.plain && count == BLOCKS && self.go_on(s, state, buffers, row) {
                continue;
            }
            for block in 0..count {
                rescale[block][row % ROWS] = self.soften(s, state, buffers, row, block);
            }
        }
        Weighted { first: rows.start, last: rows.end, count, rescale }
    }

    /// The weights of a row that sees all blocks, if its reference stays, as it most often does. Says whether it is so.
    #[inline(always)]
    fn go_on<S: Simd>(&self, s: S, state: &mut State, buffers: &mut Buffers, row: usize) -> bool {
        let reference = state.reference[row];
        // Loops: intrinsics in a closure for `from_fn` are calls.
        let mut scores = [[s.zero(); HALVES]; BLOCKS];
        let mut top = s.splat(reference);
        for block in 0..BLOCKS {
            for half in 0..HALVES {
                scores[block][half] = s.load(buffers.scores_of(row, block, half));
                top = s.max(scores[block][half], top);
            }
        }
        if s.any_lt(s.splat(reference + HEADROOM), top) {
            return false;
        }
        let mut total = s.load(&state.sum[row]);
        for (block, [first, others]) in scores.into_iter().enumerate() {
            let weights = (simd::weight(s, first, reference), simd::weight(s, others, reference));
            total = s.add(s.add(total, weights.0), weights.1);
            s.store_bf16_pairs(weights, buffers.weights_of(row, block));
        }
        s.store(total, &mut state.sum[row]);
        true
    }

    /// The weights of a row in a block, whatever it sees of it. Gives what its sums are to be multiplied with before.
    #[inline(always)]
    fn soften<S: Simd>(
        &self,
        s: S,
        state: &mut State,
        buffers: &mut Buffers,
        row: usize,
        block: usize,
    ) -> f32 {
        let seen = if self.all { (0, BLOCK_SIZE) } else { self.tile.visible(self.blocks.start + block, row) };
        if seen.0 >= seen.1 {
            *buffers.weights_of(row, block) = [0; BLOCK_SIZE];
            return 1.0;
        }
        let mut score = [s.zero(); HALVES];
        for half in 0..HALVES {
            score[half] = self.tile.bounded(s, s.load(buffers.scores_of(row, block, half)), half, seen);
        }
        let mut weights = [0.0; BLOCK_SIZE];
        let rescale =
            self.tile.soften(s, score, &mut state.reference[row], &mut state.sum[row], &mut weights);
        let weights = weights.as_chunks().0;
        s.store_bf16_pairs((s.load(&weights[0]), s.load(&weights[1])), buffers.weights_of(row, block));
        rescale
    }

    /// Without tiles: zero times infinity would reach rows that do not see the token.
    #[inline(always)]
    fn weigh_row_by_row<S: Simd>(
        &self,
        s: S,
        buffers: &mut Buffers,
        acc: &mut [[f32; LANES]],
        block: usize,
        rows: Range<usize>,
    ) {
        let (at, values) = (self.blocks.start + block, self.held[block].values);
        for (row, acc) in rows.zip(acc.chunks_exact_mut(acc.len() / ROWS)) {
            let (first, others) = s.load_bf16_pairs(buffers.weights_of(row, block));
            let mut weights = [[0.0; BLOCK_SIZE]];
            let halves = weights[0].as_chunks_mut().0;
            s.store(first, &mut halves[0]);
            s.store(others, &mut halves[1]);
            let seen = self.tile.visible(at, row);
            weigh(self.tile.kernels, acc, values, &weights, &[1.0], seen, values.as_ptr().cast());
        }
    }
}

/// Multiplies the sums of sixteen rows, most often all by 1.
#[inline(always)]
fn multiply<S: Simd>(s: S, acc: &mut [[f32; LANES]], factors: &[f32; ROWS]) {
    if *factors == [1.0; ROWS] {
        return;
    }
    let vectors = acc.len() / ROWS;
    for (acc, &factor) in acc.chunks_exact_mut(vectors).zip(factors) {
        if factor != 1.0 {
            for acc in acc {
                s.store(s.mul(s.load(acc), s.splat(factor)), acc);
            }
        }
    }
}
