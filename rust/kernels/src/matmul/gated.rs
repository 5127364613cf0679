//! f(gate) * up as int8 in one pass, on levels without AMX.
//!
//! ```text
//! job: up to 128 rows x one group of 128 columns
//!   x * W_gate -> gate [rows][128] f32 |
//!   x * W_up   -> up   [rows][128] f32 | in the cache: + addend -> f(gate) * up -> int8 codes of one group
//! ```

use std::cell::RefCell;
use std::ops::Range;

use super::addend::Addend;
use super::driver::{Jobs, MacroTile, TileKernel};
use crate::activation::{Activation, apply};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::quant_scheme::{GROUP, Rotation};
use crate::quantize::{QuantizedRows, RowsWriter};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Panels of a group.
const GROUP_PANELS: usize = GROUP / LANES;
/// Maximum rows of a job: their gate and up values take 128 KiB.
const JOB_ROWS: usize = 128;
/// Minimum rows. The intermediate values of fewer rows fit a cache anyway.
const MIN_ROWS: usize = 64;

thread_local! {
    /// Gate and up values of a job, `[rows][2][128]`; reused by all jobs of the thread.
    static GATE_UP: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether one pass is faster: it saves memory traffic, but needs jobs for all threads.
pub(super) fn pays(kernels: &Kernels, m: usize, inner: usize) -> bool {
    m >= MIN_ROWS && inner.div_ceil(GROUP) * m.div_ceil(JOB_ROWS) >= 2 * kernels.threads()
}

/// Computes `m` rows of `out`. `kernel` has `2 * inner` outputs, gate before up; `inner` is a multiple of 16. `addend` adds
/// to gate and up.
pub(super) fn run<K: TileKernel>(
    kernels: &Kernels,
    kernel: &K,
    m: usize,
    (inner, f): (usize, Activation),
    addend: Option<&dyn Addend>,
    (out, rotation): (&mut QuantizedRows, Rotation),
) {
    assert!(inner.is_multiple_of(LANES), "{inner} gates");
    let writer = out.writer(kernels, m, inner, rotation);
    let groups = inner.div_ceil(GROUP);
    let jobs = Jobs::new(groups * m.div_ceil(JOB_ROWS));
    kernels.pool().run(kernels.threads(), &|_| {
        dispatch(kernels, GatedWorker { kernel, m, inner, f, addend, groups, writer: &writer, jobs: &jobs });
    });
}

/// One thread: computes jobs until none is left.
struct GatedWorker<'a, K> {
    kernel: &'a K,
    m: usize,
    inner: usize,
    f: Activation,
    addend: Option<&'a dyn Addend>,
    groups: usize,
    writer: &'a RowsWriter<'a>,
    jobs: &'a Jobs,
}

impl<K: TileKernel> Op for GatedWorker<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut gate_up = GATE_UP.take();
        gate_up.resize(JOB_ROWS * 2 * GROUP, 0.0);
        let all = self.inner / LANES;
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let group = now % self.groups;
            let start = now / self.groups * JOB_ROWS;
            let end = self.m.min(start + JOB_ROWS);
            let gates = group * GROUP_PANELS..all.min((group + 1) * GROUP_PANELS);
            let ups = all + gates.start..all + gates.end;
            let width = gates.len() * LANES;
            {
                let y = Shared::new(&mut gate_up);
                let following = job.map(|next| next % self.groups * GROUP_PANELS);
                let tile = |panels: Range<usize>, column: usize, next: Option<usize>| MacroTile {
                    kernel: self.kernel,
                    y: &y,
                    y_start: column,
                    stride: 2 * GROUP,
                    columns: panels.end * LANES,
                    bias: None,
                    panels,
                    rows: start..end,
                    panels_per_tile: GROUP_PANELS / 2,
                    next,
                };
                tile(gates.clone(), 0, Some(ups.start)).compute(s);
                tile(ups.clone(), GROUP, following).compute(s);
            }
            if let Some(addend) = self.addend {
                addend.add_to(start..end, gates, &mut gate_up, 2 * GROUP);
                addend.add_to(start..end, ups, &mut gate_up[GROUP..], 2 * GROUP);
            }
            for (row, values) in (start..end).zip(gate_up.chunks_exact_mut(2 * GROUP)) {
                let (gate, up) = values.split_at_mut(GROUP);
                let up = &up[..width];
                let gate = &mut gate[..width];
                for (gate, up) in gate.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks::<LANES>().0) {
                    let active = apply(s, self.f, s.load(gate));
                    s.store(s.mul(active, s.load(up)), gate);
                }
                // SAFETY: jobs have different rows or groups.
                unsafe { self.writer.write(s, row, group, gate) };
            }
        }
        GATE_UP.set(gate_up);
    }
}
