//! What the jobs of a product add for the rows that have an adapter.

use std::ops::Range;

use super::expand::Expand;
use super::{LoraRows, LoraRun};
use crate::context::Kernels;
use crate::matmul::Addend;
use crate::parallel::Shared;
use crate::quantize::QuantizedRows;

/// Runs of fewer rows are computed side by side, one thread each.
const FEW_ROWS: usize = 32;

/// What the base product reads and adds.
#[derive(Clone, Copy)]
pub(crate) struct LoraInput<'a> {
    /// x `[m, in_features]`; read by float matrices.
    pub(crate) x: &'a [f32],
    /// The same rows in int8; read by int8 matrices.
    pub(crate) quantized: &'a QuantizedRows,
    /// The base's bias: DoRA leaves it outside of its gain.
    pub(crate) bias: Option<&'a [f32]>,
}

/// A x of all runs, ready to be added piece by piece.
pub(crate) struct LoraUpdate<'a> {
    kernels: &'a Kernels,
    runs: &'a [LoraRun<'a>],
    bias: Option<&'a [f32]>,
    /// A x of each run, one after the other.
    h: &'a [f32],
}

impl<'a> LoraUpdate<'a> {
    /// Computes A x for a product with `m` rows and `n` columns. None: no row has an adapter.
    ///
    /// # Panics
    /// When runs overlap, or rows or columns lie outside of the product.
    pub(crate) fn new(
        kernels: &'a Kernels,
        LoraRows { runs, h }: LoraRows<'a>,
        input: LoraInput<'a>,
        (m, n): (usize, usize),
    ) -> Option<Self> {
        let mut end = 0;
        for LoraRun { stack, rows } in runs {
            assert!(end <= rows.start && rows.start <= rows.end, "runs of rows overlap");
            assert!(rows.end <= m && stack.columns() <= n, "a run lies outside of y");
            end = rows.end;
        }
        if runs.is_empty() {
            return None;
        }
        shrink(kernels, runs, input, h);
        Some(Self { kernels, runs, bias: input.bias, h })
    }
}

impl Addend for LoraUpdate<'_> {
    unsafe fn add(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        y: &Shared<'_, f32>,
        (start, stride): (usize, usize),
    ) {
        let mut h = self.h;
        for run in self.runs {
            let width = run.stack.rank();
            let of_run = h;
            h = &h[run.rows.len() * width..];
            let (first, end) = (rows.start.max(run.rows.start), rows.end.min(run.rows.end));
            if first >= end {
                continue;
            }
            let of_run = &of_run[(first - run.rows.start) * width..];
            let start = start + (first - rows.start) * stride;
            for (part, within) in run.stack.parts_in(&panels) {
                let (bias, first_panel, rows) = (self.bias, panels.start, end - first);
                let h = of_run;
                let expand =
                    Expand { part, panels: within, rows, h, width, bias, y, first_panel, start, stride };
                // SAFETY: the caller's promise.
                unsafe { expand.add(self.kernels) };
            }
        }
    }
}

/// Fills `h` with A x of each run, one after the other.
fn shrink(kernels: &Kernels, runs: &[LoraRun<'_>], input: LoraInput<'_>, h: &mut Vec<f32>) {
    let size = |run: &LoraRun<'_>| run.rows.len() * run.stack.rank();
    let len = runs.iter().map(size).sum();
    if h.len() < len {
        h.resize(len, 0.0);
    }
    let few = |run: &LoraRun<'_>| runs.len() > 1 && run.rows.len() < FEW_ROWS;
    let one = |run: &LoraRun<'_>, h: &mut [f32]| {
        run.stack.down.forward_rows(kernels, input.x, input.quantized, run.rows.clone(), h);
    };
    let mut rest = &mut h[..len];
    for run in runs {
        let (own, others) = rest.split_at_mut(size(run));
        if !few(run) {
            one(run, own);
        }
        rest = others;
    }
    let shared = Shared::new(&mut h[..len]);
    let start = |index: usize| runs[..index].iter().map(size).sum::<usize>();
    let tasks = if runs.iter().any(few) { runs.len() } else { 0 };
    kernels.pool().run(tasks, &|index| {
        if few(&runs[index]) {
            let start = start(index);
            // SAFETY: each run has its own part of h, and no two tasks have the same run.
            one(&runs[index], unsafe { shared.part(start..start + size(&runs[index])) });
        }
    });
}
