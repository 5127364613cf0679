//! Paged attention, for prefill and decode alike.
//!
//! out = softmax(scale * q k^T, masked) v, by an online softmax over KV blocks in order of position. A block is
//! always computed as a whole of 32 tokens with a mask, and blocks begin at multiples of 32. So the sums of a query
//! depend on its position and window only: its bits are the same alone, in a chunk or in a batch.
//!
//! ```text
//!     paged_attention     path of a task                      scores
//!       float layer       dense (any level)                   block_ops::qk
//!                         bf16_matrix (AMX, AVX-512 BF16)     matrix unit
//!       int8 layer        dense, or dynamic with a selection  int8_scores
//! ```

#[cfg(target_arch = "x86_64")]
mod bf16_matrix;
mod block_ops;
mod check;
mod dense;
mod dynamic;
mod int8_scores;
mod kv_cache;
mod mla;
mod params;
mod state;
mod task;

pub use dynamic::{AttentionReport, DynamicParams, Mode, Selection, Selector};
pub use kv_cache::{
    BlockNumbers, BlockPart, KvDtype, KvLayer, MlaCache, OpenDtype, SealedBlock, seal_blocks, write_kv,
};
pub use mla::{MlaParams, mla_attention};
pub use params::{AttentionParams, BLOCK_SIZE, SeqView};

use std::ops::Range;

use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::dispatch;
#[cfg(target_arch = "x86_64")]
use bf16_matrix::{MATRIX_ROWS_PER_TASK, MatrixUnit};
use block_ops::ROWS_PER_TASK;
use dynamic::{DynamicTask, QueryRange, Role};
use kv_cache::{Int8Blocks, KvElement, KvSource, KvStore};
use task::AttentionTask;

/// Attention of new queries over the cached keys and values. The cache already holds the new tokens, and the int8
/// form of the blocks that they fill.
///
/// Row t of `q` begins at `t * q_stride` and holds `[heads, head_dim]`; `out` is `[T, heads * head_dim]`, of which the
/// rows of `seqs` are written. Sequences come in order of `query_start` and do not overlap.
///
/// Without a selection, queries read all visible tokens. With one, which needs an int8 layer, sequence i may omit
/// blocks as its choice allows. A query's output depends on its sequence, its position and its choice alone.
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
    check::check(layer, q, q_stride, seqs, params, out);
    if let Some(Selection { choices, reports }) = &selection {
        let counts = (choices.len(), reports.len());
        assert_eq!(counts, (seqs.len(), seqs.len()), "choices and reports of the sequences");
        assert!(matches!(layer.dtype(), KvDtype::Int8(_)), "dynamic attention needs an int8 layer");
    }
    let inputs = CallInputs { kernels, q, q_stride, seqs, params, out: &Shared::new(out) };
    match &layer.store {
        KvStore::F32(floats) => run(inputs, KvSource::Float(floats), DensePath::vectors(), selection),
        KvStore::Bf16(floats) => run(inputs, KvSource::Float(floats), DensePath::bf16(kernels), selection),
        KvStore::Int8F32(blocks, open_blocks) => {
            run(inputs, KvSource::Int8 { blocks, open_blocks }, DensePath::vectors(), selection);
        }
        KvStore::Int8Bf16(blocks, open_blocks) => {
            run(inputs, KvSource::Int8 { blocks, open_blocks }, DensePath::vectors(), selection);
        }
    }
}

/// The path of tasks that read everything.
#[derive(Clone, Copy)]
struct DensePath<E> {
    /// Rows of a task at most, unless one position has more.
    rows_per_task: usize,
    attend: fn(&AttentionTask<'_, E>),
}

impl<E: KvElement> DensePath<E> {
    /// Vector code of the kernels' level.
    fn vectors() -> Self {
        DensePath { rows_per_task: ROWS_PER_TASK, attend: |task| dispatch(task.kernels, *task) }
    }
}

impl DensePath<u16> {
    /// The matrix unit for bf16, if the level has one and a task has enough rows; else vector code.
    fn bf16(kernels: &Kernels) -> Self {
        #[cfg(target_arch = "x86_64")]
        if MatrixUnit::of(kernels).is_some() {
            let attend = |task: &AttentionTask<'_, u16>| match MatrixUnit::of(task.kernels) {
                Some(unit) if task.num_rows() >= unit.min_rows() => unit.attend(task),
                _ => dispatch(task.kernels, *task),
            };
            return DensePath { rows_per_task: MATRIX_ROWS_PER_TASK, attend };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = kernels;
        DensePath::vectors()
    }
}

/// Arguments of a call, without the layer.
#[derive(Clone, Copy)]
struct CallInputs<'a> {
    kernels: &'a Kernels,
    q: &'a [f32],
    q_stride: usize,
    seqs: &'a [SeqView<'a>],
    params: &'a AttentionParams,
    out: &'a Shared<'a, f32>,
}

fn run<E: KvElement>(
    inputs: CallInputs<'_>,
    source: KvSource<'_, E>,
    path: DensePath<E>,
    selection: Option<Selection<'_>>,
) {
    let call = AttentionCall { inputs, source, path };
    match selection {
        None => call.run_dense(),
        Some(Selection { choices, reports }) => call.run_dynamic(choices, reports),
    }
}

/// Some positions of one KV head in one sequence.
struct TaskSpec {
    seq: usize,
    kv_head: usize,
    first: usize,
    count: usize,
    role: Role,
}

/// One call over one layer.
struct AttentionCall<'a, E> {
    inputs: CallInputs<'a>,
    source: KvSource<'a, E>,
    path: DensePath<E>,
}

impl<E: KvElement> AttentionCall<'_, E> {
    fn run_dense(&self) {
        let CallInputs { kernels, seqs, params, .. } = self.inputs;
        let mut specs = Vec::new();
        for (seq, view) in seqs.iter().enumerate() {
            self.add_tasks(&mut specs, seq, 0..view.query_len, 0..params.kv_heads, Role::Dense);
        }
        run_from_last(kernels, specs.len(), &|index| (self.path.attend)(&self.task(&specs[index])));
    }

    fn run_dynamic(&self, choices: &[DynamicParams], reports: &mut [AttentionReport]) {
        let CallInputs { kernels, seqs, params, .. } = self.inputs;
        let mut specs = Vec::new();
        let ranges: Vec<_> = seqs
            .iter()
            .zip(choices)
            .map(|(view, choice)| dynamic::query_ranges(choice, view, params))
            .collect();
        // Gates are set before they are read: queries that inherit a gate of this step come in a second round.
        for round in [false, true] {
            specs.clear();
            for (seq, ranges) in ranges.iter().enumerate() {
                for QueryRange { queries, role, .. } in ranges.iter().filter(|range| range.waits == round) {
                    self.add_tasks(&mut specs, seq, queries.clone(), 0..params.kv_heads, *role);
                }
            }
            let mut parts = vec![AttentionReport::default(); specs.len()];
            let shared = Shared::new(&mut parts);
            run_from_last(kernels, specs.len(), &|index| {
                let report = self.run_task(&specs[index], choices);
                // SAFETY: each task has an index of its own.
                unsafe { shared.part(index..index + 1)[0] = report };
            });
            // In the order of tasks: sums do not depend on threads.
            for (spec, report) in specs.iter().zip(&parts) {
                reports[spec.seq].add(report);
            }
        }
        for (report, choice) in reports.iter_mut().zip(choices) {
            report.mode = report.mode.max(choice.mode);
        }
    }

    /// Adds the tasks of some queries and KV heads; tasks of the same positions are neighbours.
    fn add_tasks(
        &self,
        specs: &mut Vec<TaskSpec>,
        seq: usize,
        queries: Range<usize>,
        heads: Range<usize>,
        role: Role,
    ) {
        let CallInputs { seqs, params, .. } = self.inputs;
        if let Role::Inherit(block) = role {
            for head in heads {
                let block_head = seqs[seq].block_head(block, params, head);
                let dense = self.gates().is_some_and(|blocks| blocks.gate(block_head));
                let role = if dense { Role::Dense } else { Role::Select };
                self.add_tasks(specs, seq, queries.clone(), head..head + 1, role);
            }
            return;
        }
        let rows = if role == Role::Dense { self.path.rows_per_task } else { ROWS_PER_TASK };
        let positions = (rows * params.kv_heads / params.heads).max(1);
        for first in queries.clone().step_by(positions) {
            let count = positions.min(queries.end - first);
            specs.extend(heads.clone().map(|kv_head| TaskSpec { seq, kv_head, first, count, role }));
        }
    }

    /// The blocks that have gates.
    fn gates(&self) -> Option<&Int8Blocks> {
        let KvSource::Int8 { blocks, .. } = self.source else { return None };
        Some(blocks)
    }

    fn task(&self, spec: &TaskSpec) -> AttentionTask<'_, E> {
        let TaskSpec { seq, kv_head, first, count, .. } = *spec;
        let CallInputs { kernels, q, q_stride, seqs, params, out } = self.inputs;
        let source = self.source;
        AttentionTask { kernels, source, q, q_stride, seq: &seqs[seq], params, kv_head, first, count, out }
    }

    /// Runs a task by its role.
    fn run_task(&self, spec: &TaskSpec, choices: &[DynamicParams]) -> AttentionReport {
        let task = self.task(spec);
        if spec.role == Role::Dense {
            (self.path.attend)(&task);
            return dynamic::dense_report(&task);
        }
        let report = dispatch(task.kernels, DynamicTask { task, params: choices[spec.seq] });
        if let (Role::Probe(block), Some(blocks)) = (spec.role, self.gates()) {
            blocks.set_gate(task.block_head(block), dynamic::reads_all(&report));
        }
        report
    }
}

/// Runs tasks from the last on: later positions see more, and small tasks at the end let all threads finish together.
fn run_from_last(kernels: &Kernels, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    kernels.pool().run(tasks, &|index| f(tasks - 1 - index));
}
