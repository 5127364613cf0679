//! f(gate) * up as int8 in one pass, on levels without tiles: a job computes a group of 128 gates and their factors for
//! some rows, which stay in its cache until they are activated and quantised.

use std::cell::RefCell;
use std::ops::Range;

use super::driver::{Block, Jobs, TileKernel};
use crate::activation::{Activation, apply};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::quantize::{GROUP, Parts, QuantizedRows};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Panels of a group.
const PANELS: usize = GROUP / LANES;
/// Rows of a job at most: their gates and factors take 128 KiB.
const ROWS: usize = 128;
/// What fewer rows leave between two products is small, and stays in a cache anyway.
const FEWEST_ROWS: usize = 64;

thread_local! {
    /// Gates and factors of a job, `[rows][2][128]`; kept to spare allocations.
    static BETWEEN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether one pass is of use: it spares memory traffic, and needs jobs for all threads.
pub(super) fn pays(kernels: &Kernels, m: usize, inner: usize) -> bool {
    m >= FEWEST_ROWS && inner.div_ceil(GROUP) * m.div_ceil(ROWS) >= 2 * kernels.threads()
}

/// Computes `m` rows to `out`: `kernel` has `2 * inner` outputs, gates first. `inner` is a multiple of 16.
pub(super) fn run<K: TileKernel>(
    kernels: &Kernels,
    kernel: &K,
    m: usize,
    (inner, f): (usize, Activation),
    out: &mut QuantizedRows,
) {
    assert!(inner.is_multiple_of(LANES), "{inner} gates");
    let parts = out.parts(kernels, m, inner);
    let groups = inner.div_ceil(GROUP);
    let jobs = Jobs::new(groups * m.div_ceil(ROWS));
    kernels.pool().run(kernels.threads(), &|_| {
        dispatch(kernels, Share { kernel, m, inner, f, groups, parts: &parts, jobs: &jobs });
    });
}

/// One thread's share: the jobs that it takes.
struct Share<'a, K> {
    kernel: &'a K,
    m: usize,
    inner: usize,
    f: Activation,
    groups: usize,
    parts: &'a Parts<'a>,
    jobs: &'a Jobs,
}

impl<K: TileKernel> Op for Share<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut between = BETWEEN.take();
        between.resize(ROWS * 2 * GROUP, 0.0);
        let all = self.inner / LANES;
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let group = now % self.groups;
            let start = now / self.groups * ROWS;
            let end = self.m.min(start + ROWS);
            let gates = group * PANELS..all.min((group + 1) * PANELS);
            let ups = all + gates.start..all + gates.end;
            let width = gates.len() * LANES;
            {
                let y = Shared::new(&mut between);
                let following = job.map(|next| next % self.groups * PANELS);
                let block = |panels: Range<usize>, column: usize, next: Option<usize>| Block {
                    kernel: self.kernel,
                    y: &y,
                    at: column,
                    stride: 2 * GROUP,
                    columns: panels.end * LANES,
                    bias: None,
                    panels,
                    rows: start..end,
                    group: PANELS / 2,
                    next,
                };
                block(gates, 0, Some(ups.start)).run(s);
                block(ups, GROUP, following).run(s);
            }
            for (row, values) in (start..end).zip(between.chunks_exact_mut(2 * GROUP)) {
                let (gate, up) = values.split_at_mut(GROUP);
                let up = &up[..width];
                let gate = &mut gate[..width];
                for (gate, up) in gate.as_chunks_mut::<LANES>().0.iter_mut().zip(up.as_chunks::<LANES>().0) {
                    let active = apply(s, self.f, s.load(gate));
                    s.store(s.mul(active, s.load(up)), gate);
                }
                // SAFETY: jobs have different rows or groups.
                unsafe { self.parts.write(s, row, group, gate) };
            }
        }
        BETWEEN.set(between);
    }
}
