//! Paged attention over latents: all heads share one key per token, whose first values are the token's value too.
//!
//! The cache holds a token's latent once, `[block][32 tokens][padded width]`. A task turns each block's keys channel-major
//! in its own memory and uses them for all its rows (a query position times a head). Sums have one order per row, over
//! whole blocks with a mask, as in `attention`: the bits are the same alone, in a chunk or in a batch.

use std::cell::RefCell;

use half::bf16;

use crate::attention::{BLOCK_SIZE, KvDtype, SeqView};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// Rows (a query position times a head) of a task.
const ROWS_PER_TILE: usize = 32;
/// Rows that are computed together at most.
const ROWS: usize = 4;
/// Vectors of keys in a block.
const HALVES: usize = BLOCK_SIZE / LANES;

/// The latents of one layer.
#[derive(Debug)]
pub struct MlaCache {
    num_blocks: usize,
    width: usize,
    store: Store,
}

#[derive(Debug)]
enum Store {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

/// Values from one token of a block to the next.
fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

impl MlaCache {
    /// Storage for `num_blocks` blocks of tokens of `width` values. Memory comes from the system as blocks are first
    /// written.
    pub fn new(num_blocks: usize, width: usize, dtype: KvDtype) -> MlaCache {
        assert!(width > 0, "latents of no values");
        let values = num_blocks * BLOCK_SIZE * padded(width);
        let store = match dtype {
            KvDtype::F32 => Store::F32(vec![0.0; values]),
            KvDtype::Bf16 => Store::Bf16(vec![0; values]),
            KvDtype::Int8(_) => panic!("latents are held as floats, not in {dtype:?}"),
        };
        MlaCache { num_blocks, width, store }
    }

    /// Bytes that one block of such a layer takes.
    pub fn bytes_per_block(width: usize, dtype: KvDtype) -> usize {
        BLOCK_SIZE * padded(width) * dtype.float_bytes()
    }

    /// Copies block `from` onto block `to`.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        assert!(
            from < self.num_blocks && to < self.num_blocks,
            "copy {from} -> {to} of {} blocks",
            self.num_blocks
        );
        let size = BLOCK_SIZE * padded(self.width);
        match &mut self.store {
            Store::F32(values) => values.copy_within(from * size..(from + 1) * size, to * size),
            Store::Bf16(values) => values.copy_within(from * size..(from + 1) * size, to * size),
        }
    }

    /// Writes rows of `width` values, one after the other, into `slots` (block * 32 + place).
    pub fn write(&mut self, rows: &[f32], slots: &[u32]) {
        assert_eq!(rows.len(), slots.len() * self.width, "length of rows");
        let stride = padded(self.width);
        for (row, &slot) in rows.chunks_exact(self.width).zip(slots) {
            let slot = slot as usize;
            assert!(slot < self.num_blocks * BLOCK_SIZE, "slot {slot} of {} blocks", self.num_blocks);
            let place = slot * stride..slot * stride + self.width;
            match &mut self.store {
                Store::F32(values) => values[place].copy_from_slice(row),
                Store::Bf16(values) => {
                    values[place].iter_mut().zip(row).for_each(|(to, &x)| *to = bf16::from_f32(x).to_bits());
                }
            }
        }
    }
}

/// What latent attention needs to know of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlaParams {
    /// Query heads.
    pub heads: usize,
    /// Leading values of a latent that are its token's value.
    pub value_width: usize,
    /// Factor of the scores.
    pub scale: f32,
}

/// Attention of new queries over the cached latents, which already hold the new tokens.
///
/// `q` is `[T, heads, width]`; `out` is `[T, heads, value_width]`, of which the rows of `seqs` are written. Sequences come
/// in order of `query_start` and do not overlap.
pub fn mla_attention(
    kernels: &Kernels,
    layer: &MlaCache,
    q: &[f32],
    seqs: &[SeqView<'_>],
    params: MlaParams,
    out: &mut [f32],
) {
    let MlaParams { heads, value_width, .. } = params;
    assert!(heads > 0 && (1..=layer.width).contains(&value_width), "{heads} heads, values of {value_width}");
    let positions = (ROWS_PER_TILE / heads).max(1);
    let mut tasks = Vec::new();
    let mut free = 0;
    for view in seqs {
        assert!(
            view.query_start >= free && view.query_len <= view.context_len,
            "sequences overlap or lack context"
        );
        free = view.query_start + view.query_len;
        assert!(
            q.len() >= free * heads * layer.width && out.len() >= free * heads * value_width,
            "rows of q and out"
        );
        assert!(view.block_table.len() >= view.context_len.div_ceil(BLOCK_SIZE), "blocks of a sequence");
        for first in (0..view.query_len).step_by(positions) {
            let count = positions.min(view.query_len - first);
            for head in (0..heads).step_by(ROWS_PER_TILE) {
                tasks.push(Task { seq: view, first, count, head, heads: ROWS_PER_TILE.min(heads - head) });
            }
        }
    }
    let out = Shared::new(out);
    kernels.pool().run(tasks.len(), &|index| {
        let (task, out) = (&tasks[index], &out);
        match &layer.store {
            Store::F32(values) => {
                dispatch(kernels, Tile { values, width: layer.width, q, task, params, out })
            }
            Store::Bf16(values) => {
                dispatch(kernels, Tile { values, width: layer.width, q, task, params, out })
            }
        }
    });
}

/// Some query positions of one sequence for some heads.
struct Task<'a> {
    seq: &'a SeqView<'a>,
    first: usize,
    count: usize,
    head: usize,
    heads: usize,
}

/// A stored value.
trait Element: Copy + Sync {
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16::from_bits(self).to_f32()
    }
}

struct Tile<'a, E> {
    values: &'a [E],
    width: usize,
    q: &'a [f32],
    task: &'a Task<'a>,
    params: MlaParams,
    out: &'a Shared<'a, f32>,
}

/// The running state of a task.
#[derive(Default)]
struct State {
    /// One block, channel-major: `[width][32]`.
    keys: Vec<[f32; BLOCK_SIZE]>,
    /// The same block's values, `[32][padded value_width]`.
    values: Vec<[f32; LANES]>,
    /// Scaled queries `[rows][width]`.
    q: Vec<f32>,
    /// Weighted sums of values `[rows][padded value_width]`.
    acc: Vec<[f32; LANES]>,
    largest: Vec<f32>,
    sum: Vec<[f32; LANES]>,
}

thread_local! {
    /// Kept between tasks to spare allocations.
    static STATE: RefCell<State> = RefCell::default();
}

impl<E: Element> Op for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
        let mut state = STATE.take();
        let rows = self.task.count * self.task.heads;
        let vectors = padded(self.params.value_width) / LANES;
        state.keys.resize(self.width, [0.0; BLOCK_SIZE]);
        state.values.clear();
        state.values.resize(BLOCK_SIZE * vectors, [0.0; LANES]);
        state.q.clear();
        for row in 0..rows {
            let start = self.row(row) * self.width;
            state.q.extend(self.q[start..start + self.width].iter().map(|x| x * self.params.scale));
        }
        state.acc.clear();
        state.acc.resize(rows * vectors, [0.0; LANES]);
        state.largest.clear();
        state.largest.resize(rows, f32::NEG_INFINITY);
        state.sum.clear();
        state.sum.resize(rows, [0.0; LANES]);
        let last = self.position(self.task.count - 1);
        for block in 0..last / BLOCK_SIZE + 1 {
            self.load(&mut state, block, vectors);
            let mut row = 0;
            while row < rows {
                let seen = self.seen(block, row);
                let mut count = 1;
                while count < ROWS && row + count < rows && self.seen(block, row + count) == seen {
                    count += 1;
                }
                if seen > 0 {
                    match count {
                        4.. => self.rows::<S, 4>(s, &mut state, row, seen, vectors),
                        3 => self.rows::<S, 3>(s, &mut state, row, seen, vectors),
                        2 => self.rows::<S, 2>(s, &mut state, row, seen, vectors),
                        _ => self.rows::<S, 1>(s, &mut state, row, seen, vectors),
                    }
                }
                row += count;
            }
        }
        self.finish(s, &state, rows, vectors);
        STATE.set(state);
    }
}

impl<E: Element> Tile<'_, E> {
    /// The place of a task's row among `[T, heads]`.
    #[inline(always)]
    fn row(&self, row: usize) -> usize {
        let token = self.task.seq.query_start + self.task.first + row / self.task.heads;
        token * self.params.heads + self.task.head + row % self.task.heads
    }

    /// The position of query `index` of the task.
    #[inline(always)]
    fn position(&self, index: usize) -> usize {
        self.task.seq.context_len - self.task.seq.query_len + self.task.first + index
    }

    /// Leading places of a block that a row sees.
    #[inline(always)]
    fn seen(&self, block: usize, row: usize) -> usize {
        (self.position(row / self.task.heads) + 1).saturating_sub(block * BLOCK_SIZE).min(BLOCK_SIZE)
    }

    /// Takes a block into the task's memory.
    #[inline(always)]
    fn load(&self, state: &mut State, block: usize, vectors: usize) {
        let stride = padded(self.width);
        let start = self.task.seq.block_table[block] as usize * BLOCK_SIZE * stride;
        let block = &self.values[start..start + BLOCK_SIZE * stride];
        for (place, token) in block.chunks_exact(stride).enumerate() {
            for (key, x) in state.keys.iter_mut().zip(token) {
                key[place] = x.widen();
            }
            let values = state.values[place * vectors..(place + 1) * vectors].as_flattened_mut();
            for (to, x) in values[..self.params.value_width].iter_mut().zip(token) {
                *to = x.widen();
            }
        }
    }

    /// R rows that see the first `seen` places of the block in memory.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(
        &self,
        s: S,
        state: &mut State,
        row: usize,
        seen: usize,
        vectors: usize,
    ) {
        let mut scores = [[s.zero(); HALVES]; R];
        for (channel, key) in state.keys.iter().enumerate() {
            let halves = key.as_chunks::<LANES>().0;
            for half in 0..HALVES {
                let key = s.load(&halves[half]);
                for r in 0..R {
                    let x = s.splat(state.q[(row + r) * self.width + channel]);
                    scores[r][half] = s.fma(x, key, scores[r][half]);
                }
            }
        }
        let mut weights = [[0.0; BLOCK_SIZE]; R];
        let mut rescale = [1.0; R];
        for r in 0..R {
            let mut row_scores = [[0.0; LANES]; HALVES];
            let before = state.largest[row + r];
            let mut top = s.splat(before);
            for half in 0..HALVES {
                s.store(scores[r][half], &mut row_scores[half]);
                for (lane, score) in row_scores[half].iter_mut().enumerate() {
                    if half * LANES + lane >= seen {
                        *score = f32::NEG_INFINITY;
                    }
                }
                top = s.max(s.load(&row_scores[half]), top);
            }
            let largest = s.reduce_max(top);
            if largest != before {
                state.largest[row + r] = largest;
                // A first block rescales sums of zero by e^-inf = 0.
                rescale[r] = s.reduce_max(simd::exp(s, s.splat(before - largest)));
            }
            let mut sum = s.mul(s.load(&state.sum[row + r]), s.splat(rescale[r]));
            for half in 0..HALVES {
                let weight = simd::exp(s, s.sub(s.load(&row_scores[half]), s.splat(largest)));
                sum = s.add(sum, weight);
                s.store_partial(weight, &mut weights[r][half * LANES..(half + 1) * LANES]);
            }
            s.store(sum, &mut state.sum[row + r]);
        }
        for vector in 0..vectors {
            let mut sums = [s.zero(); R];
            for r in 0..R {
                sums[r] = s.mul(s.load(&state.acc[(row + r) * vectors + vector]), s.splat(rescale[r]));
            }
            // Places that are not seen are not read: they may hold anything, even NaN.
            for token in 0..seen {
                let value = s.load(&state.values[token * vectors + vector]);
                for r in 0..R {
                    sums[r] = s.fma(s.splat(weights[r][token]), value, sums[r]);
                }
            }
            for r in 0..R {
                s.store(sums[r], &mut state.acc[(row + r) * vectors + vector]);
            }
        }
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, state: &State, rows: usize, vectors: usize) {
        let width = self.params.value_width;
        for row in 0..rows {
            let start = self.row(row) * width;
            // SAFETY: rows of sequences do not overlap, and a position and head is in one task.
            let out = unsafe { self.out.part(start..start + width) };
            let inverse = s.splat(1.0 / s.reduce_add(s.load(&state.sum[row])));
            for (out, acc) in out.chunks_mut(LANES).zip(&state.acc[row * vectors..]) {
                // + 0 makes -0 into 0: the sign of a zero sum may hang on masked tokens.
                s.store_partial(s.add(s.mul(s.load(acc), inverse), s.zero()), out);
            }
        }
    }
}
