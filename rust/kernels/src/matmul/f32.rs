//! f32 weights: panels `[ceil(n / 16)][k][16]`.

use super::driver::TileKernel;
use super::prefetch::{Prefetch, STEP};
use super::weight_rows::StackedRows;
use crate::context::Kernels;
use crate::packed::Packed;
use crate::pages::Pages;
use crate::parallel::for_row_runs;
use crate::simd::{LANES, Simd};

/// A packed f32 matrix.
#[derive(Debug, Clone)]
pub(super) struct MatmulF32 {
    /// `[ceil(N / 16)][K]`, rows beyond N zero.
    pub(super) panels: Packed<[f32; LANES]>,
    pub(super) columns: usize,
}

impl MatmulF32 {
    pub(super) fn pack(kernels: &Kernels, source: &StackedRows<'_>) -> MatmulF32 {
        let columns = source.columns;
        let count = source.rows.div_ceil(LANES);
        let mut panels: Pages<[f32; LANES]> = Pages::zeroed(count * columns);
        for_row_runs(kernels.pool(), &mut panels, count, columns, 1, |first, _, panels| {
            let mut row = vec![0.0; columns];
            for (index, panel) in panels.chunks_exact_mut(columns).enumerate() {
                let start = (first + index) * LANES;
                for lane in 0..LANES.min(source.rows - start) {
                    source.read(start + lane, &mut row);
                    panel.iter_mut().zip(&row).for_each(|(to, &value)| to[lane] = value);
                }
                source.done(start, LANES);
            }
        });
        MatmulF32 { panels: panels.into(), columns }
    }

    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.panels[row / LANES * self.columns..];
        out.iter_mut().zip(panel).for_each(|(to, values)| *to = values[row % LANES]);
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn with<'a>(&'a self, x: &'a [f32]) -> impl TileKernel + 'a {
        F32Product { weights: self, x }
    }
}

struct F32Product<'a> {
    weights: &'a MatmulF32,
    /// `[m][K]`
    x: &'a [f32],
}

impl TileKernel for F32Product<'_> {
    fn row_bytes(&self) -> usize {
        self.weights.columns * size_of::<f32>()
    }

    fn panel(&self, panel: usize) -> *const u8 {
        self.weights.panels.as_ptr().wrapping_add(panel * self.weights.columns).cast()
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        mut prefetch: Prefetch,
    ) -> [[S::F; NP]; MR] {
        let k = self.weights.columns;
        let x = self.x.as_ptr().wrapping_add(row * k);
        let w = self.weights.panels.as_ptr().wrapping_add(panel * k);
        let mut acc = [[s.zero(); NP]; MR];
        for start in (0..k).step_by(STEP) {
            if !NEAR {
                prefetch.next_lines(s);
            }
            for column in start..k.min(start + STEP) {
                if NEAR {
                    prefetch.ahead::<S, NP>(s, column);
                }
                let mut vectors = [s.zero(); NP];
                for p in 0..NP {
                    let at = w.wrapping_add(p * k + column);
                    // SAFETY: panel + p exists (the caller's promise), column < k.
                    vectors[p] = s.load(unsafe { &*at });
                }
                for r in 0..MR {
                    // SAFETY: row + r exists (the caller's promise), column < k.
                    let value = s.splat(unsafe { *x.wrapping_add(r * k + column) });
                    for p in 0..NP {
                        acc[r][p] = s.fma(value, vectors[p], acc[r][p]);
                    }
                }
            }
        }
        acc
    }
}
