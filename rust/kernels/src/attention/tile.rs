//! One task of attention: some query positions of one sequence, for all query heads of one KV head.
//!
//! Rows are (position, query head), position first. A KV block is loaded once for all rows and stays in the first
//! cache while they pass, up to four at a time.

use std::cell::RefCell;

use super::int8::{Int8Blocks, Int8Head, plane};
use super::kv::{Pair, key_block, padded, value_block};
use super::{AttentionParams, BLOCK_SIZE, SeqView, first_visible};
use crate::pages::Plain;
use crate::parallel::Shared;
use crate::simd::{self, LANES, Op, Simd};

/// Vectors of keys in a block.
const HALVES: usize = BLOCK_SIZE / LANES;
/// Blocks that are fetched ahead.
const AHEAD: usize = 2;
/// Rows that are computed together at most.
const ROWS: usize = 4;
/// Places of tokens in a block, as numbers to compare with.
const PLACES: [f32; BLOCK_SIZE] = {
    let mut places = [0.0; BLOCK_SIZE];
    let mut place = 0;
    while place < BLOCK_SIZE {
        places[place] = place as f32;
        place += 1;
    }
    places
};

/// A stored key or value.
pub(super) trait Element: Plain {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

/// bf16 bits.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_bf16(from)
    }
}

/// Codes of keys.
impl Element for u8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8; LANES]) -> S::F {
        s.load_u8(from)
    }
}

/// Codes of values.
impl Element for i8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[i8; LANES]) -> S::F {
        s.load_i8(from)
    }
}

/// Where the keys and values of a layer lie.
#[derive(Clone, Copy)]
pub(super) enum Source<'a, E> {
    /// All blocks as floats.
    Float(&'a Pair<E>),
    /// Each query's own block in a tail, every block before it in int8.
    Int8 { blocks: &'a Int8Blocks, tails: &'a [Pair<E>] },
}

/// One block of one KV head, in the form in which some rows read it.
#[derive(Clone, Copy)]
enum Held<'a, E> {
    Float { keys: &'a [[E; LANES]], values: &'a [[E; LANES]] },
    Int8(Int8Head<'a>),
}

impl<'a, E> Held<'a, E> {
    /// Block and head `place` of `pair`.
    #[inline(always)]
    fn float(pair: &'a Pair<E>, place: usize, head_dim: usize) -> Self
    where
        E: Plain,
    {
        let keys = &pair.keys[place * key_block(head_dim)..(place + 1) * key_block(head_dim)];
        let values = &pair.values[place * value_block(head_dim)..(place + 1) * value_block(head_dim)];
        Held::Float { keys: keys.as_chunks().0, values: values.as_chunks().0 }
    }
}

/// Where lines begin that are asked for while a block is computed.
#[derive(Clone, Copy)]
struct Ahead {
    keys: *const u8,
    values: *const u8,
}

pub(super) struct Tile<'a, E> {
    pub(super) source: Source<'a, E>,
    pub(super) q: &'a [f32],
    pub(super) q_stride: usize,
    pub(super) seq: &'a SeqView<'a>,
    pub(super) params: &'a AttentionParams,
    pub(super) kv_head: usize,
    /// The first query and the number of them, within the sequence.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) out: &'a Shared<'a, f32>,
}

/// The running state of a task's rows.
#[derive(Default)]
struct State {
    /// Scaled queries, `[rows][padded head_dim]`.
    q: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[rows][padded head_dim]`.
    acc: Vec<[f32; LANES]>,
    /// The largest score of each row.
    largest: Vec<f32>,
    /// Sums of weights, 16 chains a row.
    sum: Vec<[f32; LANES]>,
    /// Codes of a block's keys, `[padded head_dim][32]`.
    codes: Vec<u8>,
    /// Queries times the steps of a block's keys, `[ROWS][padded head_dim]`.
    folded: Vec<[f32; LANES]>,
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
        self.start(&mut state);
        let last_position = self.position(self.count - 1);
        let first_block = first_visible(self.position(0), self.params.window) / BLOCK_SIZE;
        let blocks = last_position / BLOCK_SIZE + 1;
        for block in first_block..blocks {
            self.block(s, &mut state, block, (block + AHEAD).min(blocks - 1));
        }
        self.finish(s, &state);
        STATE.set(state);
    }
}

impl<E: Element> Tile<'_, E> {
    /// Query heads of a KV head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.params.heads / self.params.kv_heads
    }

    /// The position of query `index` of this task.
    #[inline(always)]
    fn position(&self, index: usize) -> usize {
        self.seq.context_len - self.seq.query_len + self.first + index
    }

    fn start(&self, state: &mut State) {
        let (head_dim, group) = (self.params.head_dim, self.group());
        let rows = self.count * group;
        let vectors = padded(head_dim) / LANES;
        state.q.clear();
        state.q.resize(rows * vectors, [0.0; LANES]);
        for (row, scaled) in state.q.chunks_exact_mut(vectors).enumerate() {
            let token = self.seq.query_start + self.first + row / group;
            let head = self.kv_head * group + row % group;
            let q = &self.q[token * self.q_stride + head * head_dim..][..head_dim];
            scaled.as_flattened_mut().iter_mut().zip(q).for_each(|(to, x)| *to = x * self.params.scale);
        }
        state.acc.clear();
        state.acc.resize(rows * vectors, [0.0; LANES]);
        if let Source::Int8 { .. } = self.source {
            state.codes.resize(2 * plane(head_dim), 0);
            state.folded.resize(ROWS * vectors, [0.0; LANES]);
        }
        state.largest.clear();
        state.largest.resize(rows, f32::NEG_INFINITY);
        state.sum.clear();
        state.sum.resize(rows, [0.0; LANES]);
    }

    /// The places in block `block` that row `row` sees; empty when there are none.
    #[inline(always)]
    fn visible(&self, block: usize, row: usize) -> (usize, usize) {
        let position = self.position(row / self.group());
        let start = block * BLOCK_SIZE;
        let low = first_visible(position, self.params.window).saturating_sub(start);
        (low, (position + 1).saturating_sub(start).min(BLOCK_SIZE))
    }

    /// Where the keys and values of a block begin that will be read soon. Blocks lie anywhere, so the machine cannot guess.
    #[inline(always)]
    fn ahead(&self, block: usize) -> Ahead {
        let place = self.seq.block_table[block] as usize * self.params.kv_heads + self.kv_head;
        let head_dim = self.params.head_dim;
        let (keys, values) = (key_block(head_dim), value_block(head_dim));
        match self.source {
            Source::Float(pair) => Ahead {
                keys: pair.keys.as_ptr().wrapping_add(place * keys).cast(),
                values: pair.values.as_ptr().wrapping_add(place * values).cast(),
            },
            Source::Int8 { blocks, .. } => Ahead {
                keys: blocks.high.as_ptr().wrapping_add(place * plane(head_dim)),
                values: blocks.values.as_ptr().wrapping_add(place * values).cast(),
            },
        }
    }

    /// Asks for the parts of an int8 block that are not fetched while another is computed.
    #[inline(always)]
    fn fetch_rest<S: Simd>(&self, s: S, block: usize) {
        if let Source::Int8 { blocks, .. } = self.source {
            let place = self.seq.block_table[block] as usize * self.params.kv_heads + self.kv_head;
            let head_dim = self.params.head_dim;
            fetch(s, &blocks.low, place, plane(head_dim));
            fetch(s, &blocks.high, place, plane(head_dim));
            fetch(s, &blocks.key_lo, place, padded(head_dim));
            fetch(s, &blocks.key_step, place, padded(head_dim));
            fetch(s, &blocks.value_scale, place, BLOCK_SIZE);
        }
    }

    /// Whether row `row` reads `block` from its tail.
    #[inline(always)]
    fn own(&self, block: usize, row: usize) -> bool {
        matches!(self.source, Source::Int8 { .. }) && self.position(row / self.group()) / BLOCK_SIZE == block
    }

    /// Block `block` in the form that rows read for which it is, or is not, their own.
    #[inline(always)]
    fn held(&self, block: usize, own: bool) -> Held<'_, E> {
        let (head_dim, kv_heads) = (self.params.head_dim, self.params.kv_heads);
        let place = self.seq.block_table[block] as usize * kv_heads + self.kv_head;
        match self.source {
            Source::Float(pair) => Held::float(pair, place, head_dim),
            Source::Int8 { tails, .. } if own => {
                let tail = self.seq.tails[block - self.seq.first_new_block()];
                Held::float(&tails[tail as usize], self.kv_head, head_dim)
            }
            Source::Int8 { blocks, .. } => Held::Int8(blocks.head(place, head_dim)),
        }
    }

    /// One KV block for all rows, in runs of at most four that see the same places in the same form.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, state: &mut State, block: usize, next: usize) {
        let rows = self.count * self.group();
        let mut ahead = self.ahead(next);
        self.fetch_rest(s, next);
        let mut unpacked = false;
        let mut row = 0;
        while row < rows {
            let (seen, own) = (self.visible(block, row), self.own(block, row));
            let mut count = 1;
            while count < ROWS
                && row + count < rows
                && (self.visible(block, row + count), self.own(block, row + count)) == (seen, own)
            {
                count += 1;
            }
            if seen.0 < seen.1 {
                let held = self.held(block, own);
                if let (Held::Int8(head), false) = (held, unpacked) {
                    head.unpack(&mut state.codes);
                    unpacked = true;
                }
                match count {
                    4.. => self.rows::<S, 4>(s, state, held, row, seen, ahead),
                    3 => self.rows::<S, 3>(s, state, held, row, seen, ahead),
                    2 => self.rows::<S, 2>(s, state, held, row, seen, ahead),
                    _ => self.rows::<S, 1>(s, state, held, row, seen, ahead),
                }
            }
            row += count;
            // Once is enough: for the next rows these lines are near.
            ahead = self.ahead(block);
        }
    }

    /// R rows that see places `seen.0 .. seen.1` of a block.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(
        &self,
        s: S,
        state: &mut State,
        held: Held<'_, E>,
        row: usize,
        seen: (usize, usize),
        ahead: Ahead,
    ) {
        let head_dim = self.params.head_dim;
        let vectors = padded(head_dim) / LANES;
        let q = &state.q[row * vectors..(row + R) * vectors];
        let scores = match held {
            Held::Float { keys, .. } => scores::<S, E, R>(s, q, &[0.0; R], keys, head_dim, ahead.keys),
            Held::Int8(head) => {
                let folded = &mut state.folded[..R * vectors];
                let mut base = [0.0; R];
                for r in 0..R {
                    let part = r * vectors..(r + 1) * vectors;
                    base[r] = head.fold_query(s, &q[part.clone()], &mut folded[part]);
                }
                scores::<S, u8, R>(s, folded, &base, state.codes.as_chunks().0, head_dim, ahead.values)
            }
        };
        let mut weights = [[0.0; BLOCK_SIZE]; R];
        let mut rescale = [1.0; R];
        for r in 0..R {
            let mut score = scores[r];
            let before = state.largest[row + r];
            let mut top = s.splat(before);
            for half in 0..HALVES {
                score[half] = self.bounded(s, score[half], half, seen);
                top = s.max(score[half], top);
            }
            let largest = s.reduce_max(top);
            if largest != before {
                state.largest[row + r] = largest;
                // A first block rescales sums of zero by e^-inf = 0.
                rescale[r] = s.reduce_max(simd::exp(s, s.splat(before - largest)));
            }
            let mut sum = s.mul(s.load(&state.sum[row + r]), s.splat(rescale[r]));
            for half in 0..HALVES {
                let weight = simd::exp(s, s.sub(score[half], s.splat(largest)));
                sum = s.add(sum, weight);
                s.store_partial(weight, &mut weights[r][half * LANES..(half + 1) * LANES]);
            }
            s.store(sum, &mut state.sum[row + r]);
        }
        let acc = &mut state.acc[row * vectors..(row + R) * vectors];
        match held {
            Held::Float { values, .. } => {
                weigh::<S, E, R>(s, acc, values, &weights, &rescale, seen, ahead.values)
            }
            Held::Int8(head) => {
                for weights in &mut weights {
                    head.scale_weights(s, weights);
                }
                weigh::<S, i8, R>(s, acc, head.values, &weights, &rescale, seen, ahead.values);
            }
        }
    }

    /// The soft cap and the mask.
    #[inline(always)]
    fn bounded<S: Simd>(&self, s: S, score: S::F, half: usize, seen: (usize, usize)) -> S::F {
        let score = match self.params.softcap {
            Some(cap) => s.mul(s.splat(cap), simd::tanh(s, s.div(score, s.splat(cap)))),
            None => score,
        };
        if seen == (0, BLOCK_SIZE) {
            return score;
        }
        let places = s.load_partial(&PLACES[half * LANES..(half + 1) * LANES], 0.0);
        let never = s.splat(f32::NEG_INFINITY);
        let score = s.select_lt(places, s.splat(seen.0 as f32), never, score);
        s.select_lt(places, s.splat(seen.1 as f32), score, never)
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, state: &State) {
        let (head_dim, group) = (self.params.head_dim, self.group());
        let vectors = padded(head_dim) / LANES;
        for row in 0..self.count * group {
            let token = self.seq.query_start + self.first + row / group;
            let start = (token * self.params.heads + self.kv_head * group + row % group) * head_dim;
            // SAFETY: rows of sequences do not overlap, and a position and head is in one task.
            let out = unsafe { self.out.part(start..start + head_dim) };
            let inverse = s.splat(1.0 / s.reduce_add(s.load(&state.sum[row])));
            for (out, acc) in out.chunks_mut(LANES).zip(&state.acc[row * vectors..]) {
                // + 0 makes -0 into 0: the sign of a zero sum may hang on masked tokens.
                s.store_partial(s.add(s.mul(s.load(acc), inverse), s.zero()), out);
            }
        }
    }
}

/// Asks for the `size` elements at `place`.
#[inline(always)]
fn fetch<S: Simd, T>(s: S, pages: &[T], place: usize, size: usize) {
    for i in (0..size).step_by(64 / size_of::<T>()) {
        s.prefetch_l2(pages.as_ptr().wrapping_add(place * size + i));
    }
}

/// R rows of q, `[R][padded head_dim]`, times a block of keys, on top of `start`: one chain over channels for each key.
#[inline(always)]
fn scores<S: Simd, E: Element, const R: usize>(
    s: S,
    q: &[[f32; LANES]],
    start: &[f32; R],
    keys: &[[E; LANES]],
    head_dim: usize,
    ahead: *const u8,
) -> [[S::F; HALVES]; R] {
    let stride = padded(head_dim);
    assert!(q.len() * LANES == R * stride && keys.len() >= HALVES * head_dim);
    let q = q.as_flattened().as_ptr();
    let mut acc = start.map(|start| [s.splat(start); HALVES]);
    if S::WIDE {
        for channel in 0..head_dim {
            s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
            for half in 0..HALVES {
                // SAFETY: channel < head_dim and half < 2, within the length checked above.
                let key = E::load(s, unsafe { keys.get_unchecked(channel * HALVES + half) });
                for r in 0..R {
                    // SAFETY: r < R and channel < head_dim, within the length checked above.
                    let x = s.splat(unsafe { *q.add(r * stride + channel) });
                    acc[r][half] = s.fma(x, key, acc[r][half]);
                }
            }
        }
        return acc;
    }
    // Few registers: one half after the other. Each chain is the same.
    for half in 0..HALVES {
        let mut part = start.map(|start| s.splat(start));
        for channel in 0..head_dim {
            if half == 0 {
                s.prefetch_l2(ahead.wrapping_add(channel * BLOCK_SIZE * size_of::<E>()));
            }
            // SAFETY: as above.
            let key = E::load(s, unsafe { keys.get_unchecked(channel * HALVES + half) });
            for r in 0..R {
                // SAFETY: as above.
                let x = s.splat(unsafe { *q.add(r * stride + channel) });
                part[r] = s.fma(x, key, part[r]);
            }
        }
        for r in 0..R {
            acc[r][half] = part[r];
        }
    }
    acc
}

/// acc = acc * rescale + weights times values: one chain over the tokens that are seen, in order.
///
/// Other tokens are not read: their places may hold anything, even NaN.
#[inline(always)]
fn weigh<S: Simd, E: Element, const R: usize>(
    s: S,
    acc: &mut [[f32; LANES]],
    values: &[[E; LANES]],
    weights: &[[f32; BLOCK_SIZE]; R],
    rescale: &[f32; R],
    seen: (usize, usize),
    ahead: *const u8,
) {
    let vectors = acc.len() / R;
    assert!(values.len() == BLOCK_SIZE * vectors && seen.1 <= BLOCK_SIZE);
    for vector in 0..vectors {
        let mut sums = [s.zero(); R];
        for r in 0..R {
            sums[r] = s.mul(s.load(&acc[r * vectors + vector]), s.splat(rescale[r]));
        }
        for token in seen.0..seen.1 {
            // SAFETY: token < 32 and vector < vectors, within the length checked above.
            let value = E::load(s, unsafe { values.get_unchecked(token * vectors + vector) });
            s.prefetch_l2(ahead.wrapping_add((token * vectors + vector) * LANES * size_of::<E>()));
            for r in 0..R {
                sums[r] = s.fma(s.splat(weights[r][token]), value, sums[r]);
            }
        }
        for r in 0..R {
            s.store(sums[r], &mut acc[r * vectors + vector]);
        }
    }
}
