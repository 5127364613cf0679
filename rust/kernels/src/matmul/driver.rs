//! The loops around a tile: which task computes which tiles, and where results go.
//!
//! Weights lie in panels of 16 rows; a tile is MR rows of x times NP panels. Every output element is one chain over
//! K in a tile of whatever size, so tiles, blocks and tasks change nothing in the result.

use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Panels that are computed together.
const PANELS: usize = 4;
/// Rows of x that stay in the second-level cache while panels pass by.
const BLOCK_BYTES: usize = 256 << 10;

/// Packed weights and an input, as far as one tile is concerned.
pub(super) trait TileKernel: Sync {
    /// Bytes of one row of x.
    fn row_bytes(&self) -> usize;

    /// x[row .. row + MR] times panels panel .. panel + NP.
    ///
    /// # Safety
    /// Those rows and panels exist.
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize>(
        &self,
        s: S,
        row: usize,
        panel: usize,
    ) -> [[S::F; NP]; MR];
}

/// What a matmul writes: `m` rows of `n` values, row `r` beginning at `r * stride`.
pub(super) struct Output<'a> {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: &'a mut [f32],
    pub(super) stride: usize,
}

/// Computes the whole output in parallel over panels.
pub(super) fn run<K: TileKernel>(kernels: &Kernels, kernel: &K, output: Output<'_>) {
    let Output { m, n, bias, y, stride } = output;
    if m == 0 {
        return;
    }
    assert!(stride >= n, "row stride {stride} below the {n} columns of y");
    let rows = (m - 1).saturating_mul(stride);
    assert!(y.len() >= rows.saturating_add(n), "y holds {} values, {m} rows of {n} are written", y.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "bias length");
    }
    let y = Shared::new(y);
    let groups = n.div_ceil(LANES).div_ceil(PANELS);
    let run = groups.div_ceil(4 * kernels.threads());
    kernels.pool().run(groups.div_ceil(run), &|task| {
        let groups = (task * run, groups.min((task + 1) * run));
        dispatch(kernels, Share { kernel, m, n, bias, y: &y, stride, groups });
    });
}

/// One task: some groups of panels for all rows.
struct Share<'a, K> {
    kernel: &'a K,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    stride: usize,
    groups: (usize, usize),
}

impl<K: TileKernel> Op for Share<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let panels = self.n.div_ceil(LANES);
        let block = (BLOCK_BYTES / self.kernel.row_bytes()).clamp(4, 256) / 4 * 4;
        let mut start = 0;
        while start < self.m {
            let end = self.m.min(start + block);
            for group in self.groups.0..self.groups.1 {
                let mut panel = group * PANELS;
                let last = panels.min(panel + PANELS);
                while panel < last {
                    match last - panel {
                        4.. => panel += self.panels::<S, 4>(s, start, end, panel),
                        2 | 3 => panel += self.panels::<S, 2>(s, start, end, panel),
                        _ => panel += self.panels::<S, 1>(s, start, end, panel),
                    }
                }
            }
            start = end;
        }
    }
}

impl<K: TileKernel> Share<'_, K> {
    /// Rows `row .. end` times NP panels; gives NP.
    #[inline(always)]
    fn panels<S: Simd, const NP: usize>(&self, s: S, mut row: usize, end: usize, panel: usize) -> usize {
        if S::WIDE || NP == 1 {
            while row < end {
                row += match end - row {
                    4.. => self.tile::<S, 4, NP>(s, row, panel),
                    3 => self.tile::<S, 3, NP>(s, row, panel),
                    2 => self.tile::<S, 2, NP>(s, row, panel),
                    _ => self.tile::<S, 1, NP>(s, row, panel),
                };
            }
            return NP;
        }
        // Few registers: tall tiles take one panel at a time, flat ones several to have enough chains in flight.
        let tail = if (end - row) % 4 == 3 { 0 } else { (end - row) % 4 };
        for panel in panel..panel + NP {
            let mut row = row;
            while row < end - tail {
                row += match end - tail - row {
                    4.. => self.tile::<S, 4, 1>(s, row, panel),
                    _ => self.tile::<S, 3, 1>(s, row, panel),
                };
            }
        }
        row = end - tail;
        match tail {
            0 => {}
            1 => _ = self.tile::<S, 1, NP>(s, row, panel),
            _ => {
                for pair in 0..NP / 2 {
                    self.tile::<S, 2, 2>(s, row, panel + 2 * pair);
                }
            }
        }
        NP
    }

    /// Computes and writes one tile; gives MR.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NP: usize>(&self, s: S, row: usize, panel: usize) -> usize {
        // SAFETY: rows are below m and panels below ceil(n / 16), which the packed weights and the input have.
        let tile = unsafe { self.kernel.tile::<S, MR, NP>(s, row, panel) };
        for (r, vectors) in tile.iter().enumerate() {
            for (p, &vector) in vectors.iter().enumerate() {
                let column = (panel + p) * LANES;
                let count = LANES.min(self.n - column);
                let value = match self.bias {
                    Some(bias) => s.add(vector, s.load_partial(&bias[column..column + count], 0.0)),
                    None => vector,
                };
                let start = (row + r) * self.stride + column;
                // SAFETY: tasks have different panels, so different columns of y; this task holds one part at a time.
                s.store_partial(value, unsafe { self.y.part(start..start + count) });
            }
        }
        MR
    }
}
