//! Paged multi-head latent attention: all heads share one key per token, whose first channels are the token's value
//! too.
//!
//! A task converts each block once: keys to channel-major, values to f32, and uses them for all its rows (a query
//! position times a head). Sums have one order per row, over whole blocks with a mask: the bits are the same alone,
//! in a chunk or in a batch.

use std::cell::RefCell;

use half::bf16;

use super::block_ops::{GROUP_ROWS, ROWS_PER_TASK};
use super::kv_cache::{HALVES, LatentStore, MlaCache, padded};
use super::params::{BLOCK_SIZE, SeqView};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// Parameters of latent attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlaParams {
    /// Query heads.
    pub heads: usize,
    /// Leading channels of a latent that are its token's value.
    pub value_width: usize,
    /// Factor of the scores.
    pub scale: f32,
}

/// Attention of new queries over the latent cache, which already holds the new tokens.
///
/// `q` is `[T, heads, width]`; `out` is `[T, heads, value_width]`, of which the rows of `seqs` are written. Sequences
/// come in order of `query_start` and do not overlap.
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
    let positions = (ROWS_PER_TASK / heads).max(1);
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
            for head in (0..heads).step_by(ROWS_PER_TASK) {
                tasks.push(MlaTaskSpec {
                    seq: view,
                    first,
                    count,
                    head,
                    heads: ROWS_PER_TASK.min(heads - head),
                });
            }
        }
    }
    let out = Shared::new(out);
    kernels.pool().run(tasks.len(), &|index| {
        let (spec, out) = (&tasks[index], &out);
        match &layer.store {
            LatentStore::F32(values) => {
                dispatch(kernels, MlaTask { values, width: layer.width, q, spec, params, out })
            }
            LatentStore::Bf16(values) => {
                dispatch(kernels, MlaTask { values, width: layer.width, q, spec, params, out })
            }
        }
    });
}

/// Some query positions of one sequence, for some heads.
struct MlaTaskSpec<'a> {
    seq: &'a SeqView<'a>,
    first: usize,
    count: usize,
    head: usize,
    heads: usize,
}

/// Element type of a latent cache.
trait LatentElement: Copy + Sync {
    fn widen(self) -> f32;
}

impl LatentElement for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl LatentElement for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16::from_bits(self).to_f32()
    }
}

struct MlaTask<'a, E> {
    values: &'a [E],
    width: usize,
    q: &'a [f32],
    spec: &'a MlaTaskSpec<'a>,
    params: MlaParams,
    out: &'a Shared<'a, f32>,
}

/// State of the online softmax of a task's rows, and its current block.
#[derive(Default)]
struct MlaState {
    /// Keys of the current block, channel-major: `[width][32]`.
    keys: Vec<[f32; BLOCK_SIZE]>,
    /// Values of the current block, `[32][padded value_width]`.
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
    static STATE: RefCell<MlaState> = RefCell::default();
}

impl<E: LatentElement> Op for MlaTask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
        let mut state = STATE.take();
        let rows = self.spec.count * self.spec.heads;
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
        let last = self.position(self.spec.count - 1);
        for block in 0..last / BLOCK_SIZE + 1 {
            self.load_block(&mut state, block, vectors);
            let mut row = 0;
            while row < rows {
                let visible = self.visible(block, row);
                let mut count = 1;
                while count < GROUP_ROWS && row + count < rows && self.visible(block, row + count) == visible
                {
                    count += 1;
                }
                if visible > 0 {
                    match count {
                        4.. => self.attend_group::<S, 4>(s, &mut state, row, visible, vectors),
                        3 => self.attend_group::<S, 3>(s, &mut state, row, visible, vectors),
                        2 => self.attend_group::<S, 2>(s, &mut state, row, visible, vectors),
                        _ => self.attend_group::<S, 1>(s, &mut state, row, visible, vectors),
                    }
                }
                row += count;
            }
        }
        self.normalize_and_store(s, &state, rows, vectors);
        STATE.set(state);
    }
}

impl<E: LatentElement> MlaTask<'_, E> {
    /// Index of a task's row among `[T, heads]`.
    #[inline(always)]
    fn row(&self, row: usize) -> usize {
        let token = self.spec.seq.query_start + self.spec.first + row / self.spec.heads;
        token * self.params.heads + self.spec.head + row % self.spec.heads
    }

    /// The position of query `index` of the task.
    #[inline(always)]
    fn position(&self, index: usize) -> usize {
        self.spec.seq.context_len - self.spec.seq.query_len + self.spec.first + index
    }

    /// Number of leading tokens of a block that a row sees.
    #[inline(always)]
    fn visible(&self, block: usize, row: usize) -> usize {
        (self.position(row / self.spec.heads) + 1).saturating_sub(block * BLOCK_SIZE).min(BLOCK_SIZE)
    }

    /// Converts a block into the task's state.
    #[inline(always)]
    fn load_block(&self, state: &mut MlaState, block: usize, vectors: usize) {
        let stride = padded(self.width);
        let start = self.spec.seq.block_table[block] as usize * BLOCK_SIZE * stride;
        let block = &self.values[start..start + BLOCK_SIZE * stride];
        for (offset, token) in block.chunks_exact(stride).enumerate() {
            for (key, x) in state.keys.iter_mut().zip(token) {
                key[offset] = x.widen();
            }
            let values = state.values[offset * vectors..(offset + 1) * vectors].as_flattened_mut();
            for (to, x) in values[..self.params.value_width].iter_mut().zip(token) {
                *to = x.widen();
            }
        }
    }

    /// R rows that see the first `visible` tokens of the current block.
    #[inline(always)]
    fn attend_group<S: Simd, const R: usize>(
        &self,
        s: S,
        state: &mut MlaState,
        row: usize,
        visible: usize,
        vectors: usize,
    ) {
        let scores = self.qk::<S, R>(s, state, row);
        let mut weights = [[0.0; BLOCK_SIZE]; R];
        let mut rescale = [1.0; R];
        for r in 0..R {
            let (largest, sum) = (&mut state.largest[row + r], &mut state.sum[row + r]);
            rescale[r] = online_softmax_update(s, scores[r], visible, largest, sum, &mut weights[r]);
        }
        for vector in 0..vectors {
            let mut sums = [s.zero(); R];
            for r in 0..R {
                sums[r] = s.mul(s.load(&state.acc[(row + r) * vectors + vector]), s.splat(rescale[r]));
            }
            // Tokens that are not visible are not read: their values may be anything, even NaN.
            for token in 0..visible {
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

    /// Scores of R rows in the current block, `[R][32]`.
    #[inline(always)]
    fn qk<S: Simd, const R: usize>(&self, s: S, state: &MlaState, row: usize) -> [[S::F; HALVES]; R] {
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
        scores
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    fn normalize_and_store<S: Simd>(&self, s: S, state: &MlaState, rows: usize, vectors: usize) {
        let width = self.params.value_width;
        for row in 0..rows {
            let start = self.row(row) * width;
            // SAFETY: rows of sequences do not overlap, and a position and head is in one task.
            let out = unsafe { self.out.part(start..start + width) };
            let inverse = s.splat(1.0 / s.reduce_add(s.load(&state.sum[row])));
            for (out, acc) in out.chunks_mut(LANES).zip(&state.acc[row * vectors..]) {
                // + 0 makes -0 into 0: the sign of a zero sum may depend on masked tokens.
                s.store_partial(s.add(s.mul(s.load(acc), inverse), s.zero()), out);
            }
        }
    }
}

/// Turns one row's scores into weights relative to its largest score, and updates its sum. Returns the factor of sums
/// over earlier blocks.
#[inline(always)]
fn online_softmax_update<S: Simd>(
    s: S,
    scores: [S::F; HALVES],
    visible: usize,
    largest: &mut f32,
    sum: &mut [f32; LANES],
    weights: &mut [f32; BLOCK_SIZE],
) -> f32 {
    let mut masked = [[0.0; LANES]; HALVES];
    let (before, mut rescale) = (*largest, 1.0);
    let mut top = s.splat(before);
    for half in 0..HALVES {
        s.store(scores[half], &mut masked[half]);
        for (lane, score) in masked[half].iter_mut().enumerate() {
            if half * LANES + lane >= visible {
                *score = f32::NEG_INFINITY;
            }
        }
        top = s.max(s.load(&masked[half]), top);
    }
    let now = s.reduce_max(top);
    if now != before {
        *largest = now;
        // A first block rescales sums of zero by e^-inf = 0.
        rescale = s.reduce_max(simd::exp(s, s.splat(before - now)));
    }
    let mut total = s.mul(s.load(sum), s.splat(rescale));
    for half in 0..HALVES {
        let weight = simd::exp(s, s.sub(s.load(&masked[half]), s.splat(now)));
        total = s.add(total, weight);
        s.store_partial(weight, &mut weights[half * LANES..(half + 1) * LANES]);
    }
    s.store(total, sum);
    rescale
}
