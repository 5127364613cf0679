//! Paged attention, for prefill and decode alike.
//!
//! out = softmax(scale * q k^T, masked) v, computed by an online softmax over KV blocks in order of position. A block
//! is always taken as a whole of 32 tokens with a mask, and blocks begin at positions that are multiples of 32, so the
//! sums of a query depend on its position and window only: the bits are the same alone, in a chunk or in a batch.

mod int8;
mod kv;
mod rows;
mod source;
mod tile;
mod write;

pub use int8::FilledBlock;
pub use kv::{KvDtype, KvLayer, TailDtype};
pub use write::{fill_blocks, write_kv};

use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::dispatch;
use kv::Store;
use rows::Element;
use source::Source;
use tile::Tile;

/// Tokens in a KV block.
pub const BLOCK_SIZE: usize = 32;
/// Rows (a query position times a query head of one KV head) that a task holds at most, if one position fits.
const ROWS_PER_TILE: usize = 32;

/// What attention needs to know of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// KV heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of the scores, such as 1 / sqrt(head_dim).
    pub scale: f32,
    /// A query at position p sees keys at p - window + 1 ..= p; None: all up to p.
    pub window: Option<u32>,
    /// Scores s become cap * tanh(s / cap) before the mask.
    pub softcap: Option<f32>,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy)]
pub struct SeqView<'a> {
    /// Its first row in q and out.
    pub query_start: usize,
    /// Its rows in this step.
    pub query_len: usize,
    /// Its tokens after this step; query i is at position context_len - query_len + i.
    pub context_len: usize,
    /// Its blocks in order of position, at least ceil(context_len / 32). Blocks before every window may hold any number.
    pub block_table: &'a [u32],
    /// Of an int8 layer: the tails of its blocks from that of its first new token on. Else empty.
    pub tails: &'a [u32],
}

impl SeqView<'_> {
    /// The block of its first new token.
    fn first_new_block(&self) -> usize {
        (self.context_len - self.query_len) / BLOCK_SIZE
    }
}

/// Attention of new queries over the cached keys and values, which already hold the new tokens, and the int8 form of the
/// blocks that they fill.
///
/// Row t of `q` begins at `t * q_stride` and holds `[heads, head_dim]`; `out` is `[T, heads * head_dim]`, of which the
/// rows of `seqs` are written. Sequences come in order of `query_start` and do not overlap.
pub fn paged_attention(
    kernels: &Kernels,
    layer: &KvLayer,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    out: &mut [f32],
) {
    check(layer, q, q_stride, seqs, params, out);
    match &layer.store {
        Store::F32(pair) => run(kernels, Source::Float(pair), q, q_stride, seqs, params, out),
        Store::Bf16(pair) => run(kernels, Source::Float(pair), q, q_stride, seqs, params, out),
        Store::Int8F32(blocks, tails) => {
            run(kernels, Source::Int8 { blocks, tails }, q, q_stride, seqs, params, out);
        }
        Store::Int8Bf16(blocks, tails) => {
            run(kernels, Source::Int8 { blocks, tails }, q, q_stride, seqs, params, out);
        }
    }
}

/// Positions of one KV head in one sequence.
struct Task {
    seq: usize,
    kv_head: usize,
    first: usize,
    count: usize,
}

fn run<E: Element>(
    kernels: &Kernels,
    source: Source<'_, E>,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    out: &mut [f32],
) {
    let positions = (ROWS_PER_TILE * params.kv_heads / params.heads).max(1);
    let mut tasks = Vec::new();
    for (seq, view) in seqs.iter().enumerate() {
        for first in (0..view.query_len).step_by(positions) {
            let count = positions.min(view.query_len - first);
            tasks.extend((0..params.kv_heads).map(|kv_head| Task { seq, kv_head, first, count }));
        }
    }
    let out = Shared::new(out);
    kernels.pool().run(tasks.len(), &|index| {
        let Task { seq, kv_head, first, count } = tasks[index];
        let (seq, out) = (&seqs[seq], &out);
        dispatch(kernels, Tile { source, q, q_stride, seq, params, kv_head, first, count, out });
    });
}

/// Checks every shape and index; unsafe code below relies on it.
fn check(
    layer: &KvLayer,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    out: &[f32],
) {
    let AttentionParams { heads, kv_heads, head_dim, window, .. } = *params;
    assert_eq!(
        (kv_heads, head_dim),
        (layer.kv_heads, layer.head_dim),
        "(kv_heads, head_dim) of the KV layer"
    );
    assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} KV heads");
    assert!(window != Some(0), "a window of no tokens");
    let width = heads * head_dim;
    assert!(q_stride >= width, "q row stride {q_stride} below the {width} of a row");
    let mut free = 0;
    for (index, seq) in seqs.iter().enumerate() {
        let SeqView { query_start, query_len, context_len, block_table, tails } = *seq;
        assert!(query_start >= free, "sequence {index} overlaps the one before it");
        free = query_start.saturating_add(query_len);
        if query_len == 0 {
            continue;
        }
        assert!(
            query_len <= context_len,
            "sequence {index}: {query_len} queries in a context of {context_len}"
        );
        let rows = (free - 1).saturating_mul(q_stride);
        assert!(
            q.len() >= rows.saturating_add(width),
            "q holds {} values, sequence {index} needs more",
            q.len()
        );
        assert!(
            out.len() >= free.saturating_mul(width),
            "out holds {} values, sequence {index} needs more",
            out.len()
        );
        let blocks = context_len.div_ceil(BLOCK_SIZE);
        assert!(
            block_table.len() >= blocks,
            "sequence {index}: {} blocks for {context_len}",
            block_table.len()
        );
        let first = first_visible(context_len - query_len, window) / BLOCK_SIZE;
        for &block in &block_table[first..blocks] {
            assert!(
                (block as usize) < layer.num_blocks,
                "sequence {index}: block {block} of {}",
                layer.num_blocks
            );
        }
        if matches!(layer.dtype(), KvDtype::Int8(_)) {
            let new = blocks - seq.first_new_block();
            assert!(tails.len() >= new, "sequence {index}: {} tails for {new} blocks", tails.len());
            for &tail in &tails[..new] {
                assert!(
                    (tail as usize) < layer.num_tails(),
                    "sequence {index}: tail {tail} of {}",
                    layer.num_tails()
                );
            }
        }
    }
}

/// The first position that a query at `position` sees.
fn first_visible(position: usize, window: Option<u32>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
}
