//! The loops of a matmul: jobs, macro tiles and register tiles.
//!
//! ```text
//! y [m, n]     panel = 16 outputs
//!            p0  p1  p2  p3 | p4 ...          job        rows_per_job x panels_per_job, taken from a counter
//!   rows   +----------------+---              MacroTile  the part of y of one job
//!   per    | tile: MR rows  |                 tile       MR x NP panels of 16 lanes, held in registers
//!   job    | x NP panels    |
//!          +----------------+---
//! ```
//!
//! Each output element is one chain over k inside one tile. Tile sizes, jobs and threads do not change any bit.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::addend::Addend;
use super::prefetch::Prefetch;
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Maximum panels of a register tile.
const MAX_PANELS: usize = 4;
/// Maximum rows of a register tile; a tall tile has up to twice as many.
const MAX_ROWS: usize = 4;
/// Bytes of the rows of one job: they stay in the L2 cache while the job reads its panels.
const L2_ROW_BYTES: usize = 256 << 10;

/// Packed weights and an input: computes one register tile.
pub(super) trait TileKernel: Sync {
    /// Bytes of one row of x.
    fn row_bytes(&self) -> usize;

    /// Address of the weights of `panel`. Panels are contiguous.
    fn panel(&self, panel: usize) -> *const u8;

    /// x[row .. row + MR] times panels panel .. panel + NP. It calls `prefetch.ahead` (NEAR) or `prefetch.next_lines`.
    ///
    /// # Safety
    /// Those rows and panels exist.
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        prefetch: Prefetch,
    ) -> [[S::F; NP]; MR];
}

/// A kernel whose rows are those of `kernel` from `first` on.
pub(super) struct RowsFrom<K> {
    pub(super) kernel: K,
    pub(super) first: usize,
}

impl<K: TileKernel> TileKernel for RowsFrom<K> {
    fn row_bytes(&self) -> usize {
        self.kernel.row_bytes()
    }

    fn panel(&self, panel: usize) -> *const u8 {
        self.kernel.panel(panel)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        prefetch: Prefetch,
    ) -> [[S::F; NP]; MR] {
        // SAFETY: the caller's promise, for rows from `first` on.
        unsafe { self.kernel.tile::<S, MR, NP, NEAR>(s, self.first + row, panel, prefetch) }
    }
}

/// Output of a matmul: y `[m, n]`, where row `r` begins at `r * stride`.
pub(crate) struct MatmulOutput<'a> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) bias: Option<&'a [f32]>,
    /// What is added to y.
    pub(crate) addend: Option<&'a dyn Addend>,
    pub(crate) y: &'a mut [f32],
    pub(crate) stride: usize,
}

impl MatmulOutput<'_> {
    /// Checks the shapes and returns itself.
    pub(super) fn checked(self) -> Self {
        let MatmulOutput { m, n, stride, .. } = self;
        assert!(stride >= n, "row stride {stride} below the {n} columns of y");
        let rows = m.saturating_sub(1).saturating_mul(stride);
        let values = self.y.len();
        assert!(values >= rows.saturating_add(n), "y holds {values} values, {m} rows of {n} are written");
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), n, "bias length");
        }
        self
    }
}

/// Computes the whole output.
///
/// Threads take jobs from a counter. A thread takes its next job before it computes the current one: then it can prefetch
/// the weights of the next job.
pub(super) fn run<K: TileKernel>(kernels: &Kernels, kernel: &K, output: MatmulOutput<'_>) {
    if output.m == 0 {
        return;
    }
    let MatmulOutput { m, n, bias, addend, y, stride } = output.checked();
    let y = Shared::new(y);
    let panels = n.div_ceil(LANES);
    // Fewer panels per tile when threads would otherwise have no work.
    let panels_per_tile = [MAX_PANELS, MAX_PANELS / 2]
        .into_iter()
        .find(|group| panels / group >= 4 * kernels.threads())
        .unwrap_or(1);
    let panels_per_tile = if kernels.threads() == 1 { MAX_PANELS } else { panels_per_tile };
    let rows_per_job = (L2_ROW_BYTES / kernel.row_bytes()).clamp(MAX_ROWS, 256) / MAX_ROWS * MAX_ROWS;
    let panels_per_job =
        (panels.div_ceil(panels_per_tile) / (4 * kernels.threads())).max(1) * panels_per_tile;
    let panel_jobs = panels.div_ceil(panels_per_job);
    let jobs = Jobs::new(panel_jobs * m.div_ceil(rows_per_job));
    kernels.pool().run(kernels.threads(), &|_| {
        let jobs = &jobs;
        dispatch(
            kernels,
            Worker {
                kernel,
                m,
                n,
                bias,
                addend,
                y: &y,
                stride,
                panels,
                panels_per_tile,
                panels_per_job,
                panel_jobs,
                rows_per_job,
                jobs,
            },
        );
    });
}

/// Counter of the jobs of a matmul. All panels of a block of rows come first: the rows stay in the cache.
pub(super) struct Jobs {
    count: usize,
    next: AtomicUsize,
}

impl Jobs {
    pub(super) fn new(count: usize) -> Jobs {
        Jobs { count, next: AtomicUsize::new(0) }
    }

    pub(super) fn take(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|&job| job < self.count)
    }
}

/// One thread: computes jobs until none is left.
struct Worker<'a, K> {
    kernel: &'a K,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    addend: Option<&'a dyn Addend>,
    y: &'a Shared<'a, f32>,
    stride: usize,
    panels: usize,
    /// Maximum panels of a register tile.
    panels_per_tile: usize,
    panels_per_job: usize,
    /// Jobs of one block of rows.
    panel_jobs: usize,
    rows_per_job: usize,
    jobs: &'a Jobs,
}

impl<K: TileKernel> Op for Worker<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let panel = now % self.panel_jobs * self.panels_per_job;
            let start = now / self.panel_jobs * self.rows_per_job;
            let panels = panel..self.panels.min(panel + self.panels_per_job);
            let rows = start..self.m.min(start + self.rows_per_job);
            let y_start = start * self.stride + panel * LANES;
            let tile = MacroTile {
                kernel: self.kernel,
                y: self.y,
                y_start,
                stride: self.stride,
                columns: self.n,
                bias: self.bias,
                panels: panels.clone(),
                rows: rows.clone(),
                panels_per_tile: self.panels_per_tile,
                next: job.map(|next| next % self.panel_jobs * self.panels_per_job),
            };
            tile.compute(s);
            if let Some(addend) = self.addend {
                // SAFETY: jobs have different rows or panels.
                unsafe { addend.add(rows, panels, self.y, (y_start, self.stride)) };
            }
        }
    }
}

/// A block of rows times a range of panels, computed by one thread.
pub(super) struct MacroTile<'a, K> {
    pub(super) kernel: &'a K,
    /// Destination: the first value goes to `y_start`, rows are `stride` apart.
    pub(super) y: &'a Shared<'a, f32>,
    pub(super) y_start: usize,
    pub(super) stride: usize,
    /// Number of columns of y: outputs beyond it are dropped.
    pub(super) columns: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    /// Maximum panels of a register tile.
    pub(super) panels_per_tile: usize,
    /// First panel that this thread reads next.
    pub(super) next: Option<usize>,
}

impl<K: TileKernel> MacroTile<'_, K> {
    #[inline(always)]
    pub(super) fn compute<S: Simd>(&self, s: S) {
        let Range { start, end } = self.rows;
        let Range { start: mut panel, end: last } = self.panels;
        while panel < last {
            let after = |count: usize| if panel + count < last { Some(panel + count) } else { self.next };
            if S::WIDE && (MAX_ROWS + 1..=2 * MAX_ROWS).contains(&(end - start)) {
                panel += match last - panel {
                    2.. => self.tall_tile::<S, 2>(s, start, end, panel, after(2)),
                    _ => self.tall_tile::<S, 1>(s, start, end, panel, after(1)),
                };
                continue;
            }
            match self.panels_per_tile.min(last - panel) {
                4.. => panel += self.panels::<S, 4>(s, start, end, panel, after(4)),
                2 | 3 => panel += self.panels::<S, 2>(s, start, end, panel, after(2)),
                _ => panel += self.panels::<S, 1>(s, start, end, panel, after(1)),
            }
        }
    }

    /// Five to eight rows in one tile: memory is still the limit. Returns NP.
    #[inline(always)]
    fn tall_tile<S: Simd, const NP: usize>(
        &self,
        s: S,
        row: usize,
        end: usize,
        panel: usize,
        next: Option<usize>,
    ) -> usize {
        let at = |panel| self.kernel.panel(panel);
        let prefetch = Prefetch::new(at(panel), at(panel + 1), next.map(at), NP, 1);
        match end - row {
            5 => self.tile::<S, 5, NP, true>(s, row, panel, prefetch),
            6 => self.tile::<S, 6, NP, true>(s, row, panel, prefetch),
            7 => self.tile::<S, 7, NP, true>(s, row, panel, prefetch),
            _ => self.tile::<S, 8, NP, true>(s, row, panel, prefetch),
        };
        NP
    }

    /// Rows `row .. end` times NP panels; prefetches the panels from `next` on. Returns NP.
    #[inline(always)]
    fn panels<S: Simd, const NP: usize>(
        &self,
        s: S,
        mut row: usize,
        end: usize,
        panel: usize,
        next: Option<usize>,
    ) -> usize {
        let tiles = (end - row).div_ceil(MAX_ROWS);
        let at = |panel| self.kernel.panel(panel);
        let mut prefetch = Prefetch::new(at(panel), at(panel + 1), next.map(at), NP, tiles);
        if S::WIDE || NP == 1 {
            if tiles == 1 {
                match end - row {
                    4 => self.tile::<S, 4, NP, true>(s, row, panel, prefetch),
                    3 => self.tile::<S, 3, NP, true>(s, row, panel, prefetch),
                    2 => self.tile::<S, 2, NP, true>(s, row, panel, prefetch),
                    _ => self.tile::<S, 1, NP, true>(s, row, panel, prefetch),
                };
                return NP;
            }
            while row < end {
                row += match end - row {
                    // One panel needs more rows for enough independent chains.
                    8.. if NP == 1 && S::WIDE => self.tile::<S, 8, NP, false>(s, row, panel, prefetch),
                    4.. => self.tile::<S, 4, NP, false>(s, row, panel, prefetch),
                    3 => self.tile::<S, 3, NP, false>(s, row, panel, prefetch),
                    2 => self.tile::<S, 2, NP, false>(s, row, panel, prefetch),
                    _ => self.tile::<S, 1, NP, false>(s, row, panel, prefetch),
                };
                prefetch.next_tile();
            }
            return NP;
        }
        // Few registers: tall tiles have one panel; flat tiles have several, for enough independent chains.
        let tail = if (end - row) % 4 == 3 { 0 } else { (end - row) % 4 };
        for panel in panel..panel + NP {
            let mut row = row;
            while row < end - tail {
                row += match end - tail - row {
                    4.. => self.tile::<S, 4, 1, false>(s, row, panel, Prefetch::nothing()),
                    _ => self.tile::<S, 3, 1, false>(s, row, panel, Prefetch::nothing()),
                };
            }
        }
        row = end - tail;
        match tail {
            0 => {}
            1 => _ = self.tile::<S, 1, NP, true>(s, row, panel, prefetch),
            _ => {
                for pair in 0..NP / 2 {
                    self.tile::<S, 2, 2, false>(s, row, panel + 2 * pair, Prefetch::nothing());
                }
            }
        }
        NP
    }

    /// Computes and writes one tile. Returns MR.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        prefetch: Prefetch,
    ) -> usize {
        // SAFETY: rows are below m and panels below ceil(n / 16), which the packed weights and the input have.
        let tile = unsafe { self.kernel.tile::<S, MR, NP, NEAR>(s, row, panel, prefetch) };
        for (r, vectors) in tile.iter().enumerate() {
            for (p, &vector) in vectors.iter().enumerate() {
                let column = (panel + p) * LANES;
                let count = LANES.min(self.columns - column);
                let value = match self.bias {
                    Some(bias) => s.add(vector, s.load_partial(&bias[column..column + count], 0.0)),
                    None => vector,
                };
                let start = self.y_start
                    + (row + r - self.rows.start) * self.stride
                    + (panel + p - self.panels.start) * LANES;
                // SAFETY: tasks have different panels, so different columns of y; this task holds one part at a time.
                s.store_partial(value, unsafe { self.y.part(start..start + count) });
            }
        }
        MR
    }
}
