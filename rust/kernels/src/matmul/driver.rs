//! The loops around a tile: which thread computes which tiles, what it fetches meanwhile, and where results go.
//!
//! Weights lie in panels of 16 rows; a tile is MR rows of x times NP panels. Every output element is one chain over
//! K in a tile of whatever size, so tiles, blocks and threads change nothing in the result.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::prefetch::Fetch;
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Panels that are computed together.
const PANELS: usize = 4;
/// Rows of a tile at most.
const ROWS: usize = 4;
/// Rows of x that stay in the second-level cache while panels pass by.
const BLOCK_BYTES: usize = 256 << 10;

/// Packed weights and an input, as far as one tile is concerned.
pub(super) trait TileKernel: Sync {
    /// Bytes of one row of x.
    fn row_bytes(&self) -> usize;

    /// Where the weights of `panel` begin. Panels follow each other without gaps.
    fn panel(&self, panel: usize) -> *const u8;

    /// x[row .. row + MR] times panels panel .. panel + NP. On the way it calls `fetch.near` (NEAR) or `fetch.share`.
    ///
    /// # Safety
    /// Those rows and panels exist.
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        fetch: Fetch,
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

impl Output<'_> {
    /// Itself, if all that it names fits.
    pub(super) fn checked(self) -> Self {
        let Output { m, n, stride, .. } = self;
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

/// Computes the whole output. Threads take jobs (a run of panels for a block of rows) from a counter, one ahead of the
/// job that they compute, so that the weights of the next come from memory meanwhile.
pub(super) fn run<K: TileKernel>(kernels: &Kernels, kernel: &K, output: Output<'_>) {
    if output.m == 0 {
        return;
    }
    let Output { m, n, bias, y, stride } = output.checked();
    let y = Shared::new(y);
    let panels = n.div_ceil(LANES);
    // Small groups where large ones would leave threads without work.
    let group =
        [PANELS, PANELS / 2].into_iter().find(|group| panels / group >= 4 * kernels.threads()).unwrap_or(1);
    let group = if kernels.threads() == 1 { PANELS } else { group };
    let block = (BLOCK_BYTES / kernel.row_bytes()).clamp(ROWS, 256) / ROWS * ROWS;
    let run = (panels.div_ceil(group) / (4 * kernels.threads())).max(1) * group;
    let runs = panels.div_ceil(run);
    let jobs = Jobs::new(runs * m.div_ceil(block));
    kernels.pool().run(kernels.threads(), &|_| {
        let jobs = &jobs;
        dispatch(kernels, Share { kernel, m, n, bias, y: &y, stride, panels, group, run, runs, block, jobs });
    });
}

/// The jobs of a matmul; block of rows first, so that the rows stay in the cache.
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

/// One thread's share: the jobs that it takes.
struct Share<'a, K> {
    kernel: &'a K,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    stride: usize,
    panels: usize,
    /// Panels that are computed together.
    group: usize,
    /// Panels of a job.
    run: usize,
    runs: usize,
    /// Rows of a job.
    block: usize,
    jobs: &'a Jobs,
}

impl<K: TileKernel> Op for Share<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let panel = now % self.runs * self.run;
            let start = now / self.runs * self.block;
            let block = Block {
                kernel: self.kernel,
                y: self.y,
                at: start * self.stride + panel * LANES,
                stride: self.stride,
                columns: self.n,
                bias: self.bias,
                panels: panel..self.panels.min(panel + self.run),
                rows: start..self.m.min(start + self.block),
                group: self.group,
                next: job.map(|next| next % self.runs * self.run),
            };
            block.run(s);
        }
    }
}

/// Some rows times some panels, computed by one thread.
pub(super) struct Block<'a, K> {
    pub(super) kernel: &'a K,
    /// Where results go: the first one to `at`, rows `stride` apart.
    pub(super) y: &'a Shared<'a, f32>,
    pub(super) at: usize,
    pub(super) stride: usize,
    /// Outputs from this column on are not there.
    pub(super) columns: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    /// Panels that are computed together.
    pub(super) group: usize,
    /// The panels that this thread reads after these.
    pub(super) next: Option<usize>,
}

impl<K: TileKernel> Block<'_, K> {
    #[inline(always)]
    pub(super) fn run<S: Simd>(&self, s: S) {
        let Range { start, end } = self.rows;
        let Range { start: mut panel, end: last } = self.panels;
        while panel < last {
            let after = |count: usize| if panel + count < last { Some(panel + count) } else { self.next };
            if S::WIDE && (ROWS + 1..=2 * ROWS).contains(&(end - start)) {
                panel += match last - panel {
                    2.. => self.tall::<S, 2>(s, start, end, panel, after(2)),
                    _ => self.tall::<S, 1>(s, start, end, panel, after(1)),
                };
                continue;
            }
            match self.group.min(last - panel) {
                4.. => panel += self.panels::<S, 4>(s, start, end, panel, after(4)),
                2 | 3 => panel += self.panels::<S, 2>(s, start, end, panel, after(2)),
                _ => panel += self.panels::<S, 1>(s, start, end, panel, after(1)),
            }
        }
    }

    /// Five to eight rows in one tile, since these are still so few that memory is the limit; gives NP.
    #[inline(always)]
    fn tall<S: Simd, const NP: usize>(
        &self,
        s: S,
        row: usize,
        end: usize,
        panel: usize,
        next: Option<usize>,
    ) -> usize {
        let at = |panel| self.kernel.panel(panel);
        let fetch = Fetch::new(at(panel), at(panel + 1), next.map(at), NP, 1);
        match end - row {
            5 => self.tile::<S, 5, NP, true>(s, row, panel, fetch),
            6 => self.tile::<S, 6, NP, true>(s, row, panel, fetch),
            7 => self.tile::<S, 7, NP, true>(s, row, panel, fetch),
            _ => self.tile::<S, 8, NP, true>(s, row, panel, fetch),
        };
        NP
    }

    /// Rows `row .. end` times NP panels, fetching the panels from `next` on; gives NP.
    #[inline(always)]
    fn panels<S: Simd, const NP: usize>(
        &self,
        s: S,
        mut row: usize,
        end: usize,
        panel: usize,
        next: Option<usize>,
    ) -> usize {
        let tiles = (end - row).div_ceil(ROWS);
        let at = |panel| self.kernel.panel(panel);
        let mut fetch = Fetch::new(at(panel), at(panel + 1), next.map(at), NP, tiles);
        if S::WIDE || NP == 1 {
            if tiles == 1 {
                match end - row {
                    4 => self.tile::<S, 4, NP, true>(s, row, panel, fetch),
                    3 => self.tile::<S, 3, NP, true>(s, row, panel, fetch),
                    2 => self.tile::<S, 2, NP, true>(s, row, panel, fetch),
                    _ => self.tile::<S, 1, NP, true>(s, row, panel, fetch),
                };
                return NP;
            }
            while row < end {
                row += match end - row {
                    4.. => self.tile::<S, 4, NP, false>(s, row, panel, fetch),
                    3 => self.tile::<S, 3, NP, false>(s, row, panel, fetch),
                    2 => self.tile::<S, 2, NP, false>(s, row, panel, fetch),
                    _ => self.tile::<S, 1, NP, false>(s, row, panel, fetch),
                };
                fetch.next_tile();
            }
            return NP;
        }
        // Few registers: tall tiles take one panel at a time, flat ones several to have enough chains in flight.
        let tail = if (end - row) % 4 == 3 { 0 } else { (end - row) % 4 };
        for panel in panel..panel + NP {
            let mut row = row;
            while row < end - tail {
                row += match end - tail - row {
                    4.. => self.tile::<S, 4, 1, false>(s, row, panel, Fetch::nothing()),
                    _ => self.tile::<S, 3, 1, false>(s, row, panel, Fetch::nothing()),
                };
            }
        }
        row = end - tail;
        match tail {
            0 => {}
            1 => _ = self.tile::<S, 1, NP, true>(s, row, panel, fetch),
            _ => {
                for pair in 0..NP / 2 {
                    self.tile::<S, 2, 2, false>(s, row, panel + 2 * pair, Fetch::nothing());
                }
            }
        }
        NP
    }

    /// Computes and writes one tile; gives MR.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        fetch: Fetch,
    ) -> usize {
        // SAFETY: rows are below m and panels below ceil(n / 16), which the packed weights and the input have.
        let tile = unsafe { self.kernel.tile::<S, MR, NP, NEAR>(s, row, panel, fetch) };
        for (r, vectors) in tile.iter().enumerate() {
            for (p, &vector) in vectors.iter().enumerate() {
                let column = (panel + p) * LANES;
                let count = LANES.min(self.columns - column);
                let value = match self.bias {
                    Some(bias) => s.add(vector, s.load_partial(&bias[column..column + count], 0.0)),
                    None => vector,
                };
                let start = self.at
                    + (row + r - self.rows.start) * self.stride
                    + (panel + p - self.panels.start) * LANES;
                // SAFETY: tasks have different panels, so different columns of y; this task holds one part at a time.
                s.store_partial(value, unsafe { self.y.part(start..start + count) });
            }
        }
        MR
    }
}
