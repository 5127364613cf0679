//! Paged attention, for prefill and decode alike.
//!
//! out = softmax(scale * q k^T, masked) v, computed by an online softmax over KV blocks in order of position. A block
//! is always taken as a whole of 32 tokens with a mask, and blocks begin at positions that are multiples of 32, so the
//! sums of a query depend on its position and window only: the bits are the same alone, in a chunk or in a batch.

mod audit;
mod dynamic;
mod gates;
mod int8;
mod key_codes;
mod kv;
#[cfg(target_arch = "x86_64")]
mod paired;
mod report;
mod rows;
mod source;
mod tile;
mod write;

pub use int8::SealedBlock;
pub use kv::{KvDtype, KvLayer, OpenDtype};
pub use report::{AttentionReport, DynamicParams, Mode};
pub use write::{seal_blocks, write_kv};

use std::ops::Range;

use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::dispatch;
use dynamic::Dynamic;
use gates::{Role, Section};
use int8::Int8Blocks;
use kv::Store;
use rows::{Element, ROWS_PER_TASK};
use source::Source;
use tile::Tile;

/// Tokens in a KV block.
pub const BLOCK_SIZE: usize = 32;

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
    /// Of an int8 layer: the open blocks of its blocks, from the block of its first new token on. Else empty.
    pub open_blocks: &'a [u32],
}

impl SeqView<'_> {
    /// Where block `block` of the sequence lies for a KV head, among all blocks and heads.
    fn place(&self, block: usize, params: &AttentionParams, kv_head: usize) -> usize {
        self.block_table[block] as usize * params.kv_heads + kv_head
    }

    /// The block of its first new token.
    fn first_new_block(&self) -> usize {
        (self.context_len - self.query_len) / BLOCK_SIZE
    }
}

/// What the queries of sequences may leave out, and the reports of what they did leave out; one of each a sequence.
#[derive(Debug)]
pub struct Selection<'a> {
    /// How much each sequence's queries may leave out.
    pub choices: &'a [DynamicParams],
    /// Each sequence's report: this call adds to it.
    pub reports: &'a mut [AttentionReport],
}

/// Attention of new queries over the cached keys and values, which already hold the new tokens, and the int8 form of the
/// blocks that they fill.
///
/// Row t of `q` begins at `t * q_stride` and holds `[heads, head_dim]`; `out` is `[T, heads * head_dim]`, of which the
/// rows of `seqs` are written. Sequences come in order of `query_start` and do not overlap.
///
/// Without a selection all visible tokens are read. With one, which needs an int8 layer, sequence i may leave values out
/// as its choice says. A query's output depends on its sequence, its position and its choice alone.
#[allow(clippy::too_many_arguments)]
pub fn paged_attention(
    kernels: &Kernels,
    layer: &KvLayer,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    selection: Option<Selection<'_>>,
    out: &mut [f32],
) {
    check(layer, q, q_stride, seqs, params, out);
    if let Some(Selection { choices, reports }) = &selection {
        assert_eq!(
            (choices.len(), reports.len()),
            (seqs.len(), seqs.len()),
            "choices and reports of the sequences"
        );
        assert!(matches!(layer.dtype(), KvDtype::Int8(_)), "dynamic attention needs an int8 layer");
    }
    match &layer.store {
        Store::F32(pair) => run(kernels, Source::Float(pair), q, q_stride, seqs, params, out, selection),
        Store::Bf16(pair) => run(kernels, Source::Float(pair), q, q_stride, seqs, params, out, selection),
        Store::Int8F32(blocks, open_blocks) => {
            run(kernels, Source::Int8 { blocks, open_blocks }, q, q_stride, seqs, params, out, selection);
        }
        Store::Int8Bf16(blocks, open_blocks) => {
            run(kernels, Source::Int8 { blocks, open_blocks }, q, q_stride, seqs, params, out, selection);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn run<E: Element>(
    kernels: &Kernels,
    source: Source<'_, E>,
    q: &[f32],
    q_stride: usize,
    seqs: &[SeqView<'_>],
    params: &AttentionParams,
    out: &mut [f32],
    selection: Option<Selection<'_>>,
) {
    let step = Step { kernels, source, q, q_stride, seqs, params, out: &Shared::new(out) };
    let mut tasks = Vec::new();
    let Some(Selection { choices, reports }) = selection else {
        for (seq, view) in seqs.iter().enumerate() {
            step.add(&mut tasks, seq, 0..view.query_len, 0..params.kv_heads, Role::Dense);
        }
        run_from_last(kernels, tasks.len(), &|index| step.dense(&tasks[index]));
        return;
    };
    // Gates are set before they are read: queries that follow a gate of this step come in a second round.
    let sections: Vec<_> =
        seqs.iter().zip(choices).map(|(view, choice)| gates::sections(choice, view, params)).collect();
    for round in [false, true] {
        tasks.clear();
        for (seq, sections) in sections.iter().enumerate() {
            for Section { queries, role, .. } in sections.iter().filter(|s| s.waits == round) {
                step.add(&mut tasks, seq, queries.clone(), 0..params.kv_heads, *role);
            }
        }
        let mut found = vec![AttentionReport::default(); tasks.len()];
        let shared = Shared::new(&mut found);
        run_from_last(kernels, tasks.len(), &|index| {
            let report = step.choose(&tasks[index], choices);
            // SAFETY: each task has an index of its own.
            unsafe { shared.part(index..index + 1)[0] = report };
        });
        // In the order of tasks, so that sums do not depend on threads.
        for (task, report) in tasks.iter().zip(&found) {
            reports[task.seq].add(report);
        }
    }
    for (report, choice) in reports.iter_mut().zip(choices) {
        report.mode = report.mode.max(choice.mode);
    }
}

/// Runs tasks from the last on: later positions see more, and small tasks at the end let all threads finish together.
fn run_from_last(kernels: &Kernels, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    kernels.pool().run(tasks, &|index| f(tasks - 1 - index));
}

/// Positions of one KV head in one sequence.
struct Task {
    seq: usize,
    kv_head: usize,
    first: usize,
    count: usize,
    role: Role,
}

/// What all tasks of a step share.
struct Step<'a, E> {
    kernels: &'a Kernels,
    source: Source<'a, E>,
    q: &'a [f32],
    q_stride: usize,
    seqs: &'a [SeqView<'a>],
    params: &'a AttentionParams,
    out: &'a Shared<'a, f32>,
}

impl<E: Element> Step<'_, E> {
    /// Adds the tasks of some queries and KV heads, those of one position side by side.
    fn add(&self, tasks: &mut Vec<Task>, seq: usize, queries: Range<usize>, heads: Range<usize>, role: Role) {
        if let Role::Follow(block) = role {
            for head in heads {
                let place = self.seqs[seq].place(block, self.params, head);
                let dense = self.gates().is_some_and(|blocks| blocks.gate(place));
                let role = if dense { Role::Dense } else { Role::Choose };
                self.add(tasks, seq, queries.clone(), head..head + 1, role);
            }
            return;
        }
        let rows = match (role, self.source) {
            (Role::Dense, Source::Float(_)) => E::rows_per_task(self.kernels),
            _ => ROWS_PER_TASK,
        };
        let positions = (rows * self.params.kv_heads / self.params.heads).max(1);
        for first in queries.clone().step_by(positions) {
            let count = positions.min(queries.end - first);
            tasks.extend(heads.clone().map(|kv_head| Task { seq, kv_head, first, count, role }));
        }
    }

    /// The blocks that have gates.
    fn gates(&self) -> Option<&Int8Blocks> {
        let Source::Int8 { blocks, .. } = self.source else { return None };
        Some(blocks)
    }

    fn tile(&self, task: &Task) -> Tile<'_, E> {
        let Task { seq, kv_head, first, count, .. } = *task;
        let Step { kernels, source, q, q_stride, seqs, params, out } = *self;
        Tile { kernels, source, q, q_stride, seq: &seqs[seq], params, kv_head, first, count, out }
    }

    /// Reads everything.
    fn dense(&self, task: &Task) {
        let tile = self.tile(task);
        if !E::in_pairs(&tile) {
            dispatch(self.kernels, tile);
        }
    }

    /// Does what the task's role is.
    fn choose(&self, task: &Task, choices: &[DynamicParams]) -> AttentionReport {
        if task.role == Role::Dense {
            self.dense(task);
            return self.tile(task).dense_report();
        }
        let report = dispatch(self.kernels, Dynamic { tile: self.tile(task), params: choices[task.seq] });
        if let (Role::Try(block), Some(blocks)) = (task.role, self.gates()) {
            let place = self.seqs[task.seq].place(block, self.params, task.kv_head);
            blocks.set_gate(place, gates::closes(&report));
        }
        report
    }
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
        let SeqView { query_start, query_len, context_len, block_table, open_blocks } = *seq;
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
            assert!(
                open_blocks.len() >= new,
                "sequence {index}: {} open blocks for {new} blocks",
                open_blocks.len()
            );
            for &open in &open_blocks[..new] {
                assert!(
                    (open as usize) < layer.num_open_blocks(),
                    "sequence {index}: open block {open} of {}",
                    layer.num_open_blocks()
                );
            }
        }
    }
}

/// The first position that a query at `position` sees.
fn first_visible(position: usize, window: Option<u32>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
}
