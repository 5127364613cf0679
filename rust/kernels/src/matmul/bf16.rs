//! bf16 weights, widened to f32 in registers; x is f32.
//!
//! ```text
//! panels [ceil(n / 16)][ceil(k / 2)] of 32 bf16: one pair of columns of 16 rows
//!   n0:k0 n0:k1  n1:k0 n1:k1  ...  n15:k0 n15:k1
//! even k: shift left by 16 bits;  odd k: mask the upper 16 bits
//! ```

use half::bf16;

use super::driver::TileKernel;
use super::prefetch::{Prefetch, STEP};
use super::weight_rows::StackedRows;
use crate::context::Kernels;
use crate::packed::Packed;
use crate::pages::Pages;
use crate::parallel::for_row_runs;
use crate::simd::{LANES, Simd};

/// A packed bf16 matrix.
#[derive(Debug, Clone)]
pub(super) struct MatmulBf16 {
    /// `[ceil(N / 16)][ceil(K / 2)]` of `[16 rows][2 columns]` bf16 bits, zero beyond N and K.
    pub(super) panels: Packed<[u16; 2 * LANES]>,
    pub(super) columns: usize,
}

impl MatmulBf16 {
    pub(super) fn pack(kernels: &Kernels, source: &StackedRows<'_>) -> MatmulBf16 {
        let columns = source.columns;
        let pairs = columns.div_ceil(2);
        let count = source.rows.div_ceil(LANES);
        let mut panels: Pages<[u16; 2 * LANES]> = Pages::zeroed(count * pairs);
        for_row_runs(kernels.pool(), &mut panels, count, pairs, 1, |first, _, panels| {
            let mut row = vec![0.0; columns];
            for (index, panel) in panels.chunks_exact_mut(pairs).enumerate() {
                let start = (first + index) * LANES;
                for lane in 0..LANES.min(source.rows - start) {
                    source.read(start + lane, &mut row);
                    for (column, &value) in row.iter().enumerate() {
                        panel[column / 2][2 * lane + column % 2] = bf16::from_f32(value).to_bits();
                    }
                }
                source.done(start, LANES);
            }
        });
        MatmulBf16 { panels: panels.into(), columns }
    }

    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.panels[row / LANES * self.pairs()..];
        for (column, to) in out.iter_mut().enumerate() {
            *to = bf16::from_bits(panel[column / 2][row % LANES * 2 + column % 2]).to_f32();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    fn pairs(&self) -> usize {
        self.columns.div_ceil(2)
    }

    pub(super) fn with<'a>(&'a self, x: &'a [f32]) -> impl TileKernel + 'a {
        Bf16Product { weights: self, x }
    }
}

struct Bf16Product<'a> {
    weights: &'a MatmulBf16,
    /// `[m][K]`
    x: &'a [f32],
}

impl TileKernel for Bf16Product<'_> {
    fn row_bytes(&self) -> usize {
        self.weights.columns * size_of::<f32>()
    }

    fn panel(&self, panel: usize) -> *const u8 {
        self.weights.panels.as_ptr().wrapping_add(panel * self.weights.pairs()).cast()
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        mut prefetch: Prefetch,
    ) -> [[S::F; NP]; MR] {
        let (k, pairs) = (self.weights.columns, self.weights.pairs());
        let x = self.x.as_ptr().wrapping_add(row * k);
        let w = self.weights.panels.as_ptr().wrapping_add(panel * pairs);
        let mut acc = [[s.zero(); NP]; MR];
        for start in (0..k / 2).step_by(STEP) {
            if !NEAR {
                prefetch.next_lines(s);
            }
            for pair in start..(k / 2).min(start + STEP) {
                if NEAR {
                    prefetch.ahead::<S, NP>(s, pair);
                }
                let mut vectors = [(s.zero(), s.zero()); NP];
                for p in 0..NP {
                    let at = w.wrapping_add(p * pairs + pair);
                    // SAFETY: panel + p exists (the caller's promise), pair < pairs.
                    vectors[p] = s.load_bf16_pairs(unsafe { &*at });
                }
                for r in 0..MR {
                    let at = x.wrapping_add(r * k + 2 * pair);
                    // SAFETY: row + r exists (the caller's promise), 2 * pair + 1 < k.
                    let (even, odd) = unsafe { (s.splat(*at), s.splat(*at.wrapping_add(1))) };
                    for p in 0..NP {
                        acc[r][p] = s.fma(even, vectors[p].0, acc[r][p]);
                    }
                    for p in 0..NP {
                        acc[r][p] = s.fma(odd, vectors[p].1, acc[r][p]);
                    }
                }
            }
        }
        if !k.is_multiple_of(2) {
            for p in 0..NP {
                // SAFETY: as above; the last pair has the last column at its even position.
                let vector = s.load_bf16_pairs(unsafe { &*w.wrapping_add(p * pairs + k / 2) }).0;
                for r in 0..MR {
                    // SAFETY: as above.
                    let value = s.splat(unsafe { *x.wrapping_add(r * k + k - 1) });
                    acc[r][p] = s.fma(value, vector, acc[r][p]);
                }
            }
        }
        acc
    }
}
