//! The worker loop: jobs, slabs of groups, and the prefetch of the next weights.
//!
//! While the tiles multiply one group, the vector units add the exact i32 products of the group before to f32 totals.

use std::cell::RefCell;

use super::epilogue::{Epilogue, GatedEpilogue, StoreEpilogue};
use super::layout::{GROUP_BYTES, LINE, PAIR_ROWS, PanelBlock};
use super::steps::{GroupProducts, GroupPtrs, TileStep, prefetch, prefetch_l2};
use crate::activation::Activation;
use crate::amx::{ROW, ROWS, Tiles};
use crate::context::Kernels;
use crate::matmul::addend::Addend;
use crate::matmul::driver::{Jobs, MatmulOutput};
use crate::matmul::int8::{MatmulInt8, QUADS, Quad};
use crate::packed_rows::PackedRows;
use crate::parallel::Shared;
use crate::quant_scheme::{GROUP, Rotation};
use crate::quantize::QuantizedRows;
use crate::simd::LANES;

/// Maximum rows of x of one job, and their bytes: they stay in the L2 cache while the job reads its weights.
const MAX_JOB_ROWS: usize = 512;
const MAX_JOB_BYTES: usize = 1 << 20;
/// Groups of two panels (4 KiB each) that stay in the L1 cache while the job reads its rows.
const SLAB_GROUPS: usize = 4;
/// Prefetch distance in groups, for weights that are read once.
const PREFETCH_GROUPS: usize = 2;

const _: () = assert!(GROUP_BYTES == GROUP * LANES && QUADS * 4 == GROUP && ROW == 4 * LANES);

/// Computes the whole output. The level of `kernels` is `Isa::Amx`.
pub(in crate::matmul) fn run(
    kernels: &Kernels,
    weights: &MatmulInt8,
    x: &PackedRows,
    output: MatmulOutput<'_>,
) {
    if output.m == 0 {
        return;
    }
    let MatmulOutput { m, n, bias, addend, y, stride } = output.checked();
    let y = Shared::new(y);
    let panels = n.div_ceil(LANES);
    // Fewer panels at once when threads would otherwise have no work.
    let panels_at_once = if m <= ROWS { 4 } else { 2 };
    let panels_at_once =
        [panels_at_once, 2].into_iter().find(|group| panels / group >= 4 * kernels.threads()).unwrap_or(1);
    let epilogue = StoreEpilogue { n, bias, addend, y: &y, stride };
    run_jobs(
        kernels,
        weights,
        x,
        m,
        &epilogue,
        PanelSchedule { panels, panels_at_once, min_panels_per_job: panels_at_once, panel_stride: 1 },
    );
}

/// Writes f(gate) * up as int8 to `out`, `[m, inner]`. `weights` has `inner` gate rows, then `inner` up rows. `addend` adds
/// to gate and up.
///
/// The level of `kernels` is `Isa::Amx`, and `inner` is a multiple of 16.
pub(in crate::matmul) fn run_gated(
    kernels: &Kernels,
    weights: &MatmulInt8,
    (x, m): (&PackedRows, usize),
    (inner, f): (usize, Activation),
    addend: Option<&dyn Addend>,
    (out, rotation): (&mut QuantizedRows, Rotation),
) {
    let writer = out.writer(kernels, m, inner, rotation);
    let panels = inner / LANES;
    let epilogue = GatedEpilogue { f, inner, addend, out: &writer };
    run_jobs(
        kernels,
        weights,
        x,
        m,
        &epilogue,
        PanelSchedule { panels, panels_at_once: 1, min_panels_per_job: GROUP / LANES, panel_stride: panels },
    );
}

/// Order of the panels.
struct PanelSchedule {
    /// Number of panels; for a gated product only the gate panels.
    panels: usize,
    /// Panels of one product. A gated product has one gate panel and its up panel.
    panels_at_once: usize,
    /// Minimum panels of one job.
    min_panels_per_job: usize,
    /// Distance in panels between the panels of one product.
    panel_stride: usize,
}

fn run_jobs<K: Epilogue>(
    kernels: &Kernels,
    weights: &MatmulInt8,
    x: &PackedRows,
    m: usize,
    epilogue: &K,
    schedule: PanelSchedule,
) {
    let PanelSchedule { panels, panels_at_once, min_panels_per_job, panel_stride } = schedule;
    let (codes, scales): (&[Quad], &[[u16; LANES]]) = (&weights.codes, &weights.scales);
    let (all, groups) = (if K::GATED { 2 * panels } else { panels }, weights.groups());
    assert_eq!((codes.len(), scales.len()), (all * groups * QUADS, all * groups), "packed weights");
    assert!(x.from(0, 0).len() >= m.div_ceil(ROWS) * groups, "rows of x");
    let threads = kernels.threads();
    let blocks = m.div_ceil((MAX_JOB_BYTES / (groups * GROUP)).clamp(PAIR_ROWS, MAX_JOB_ROWS));
    let rows_per_job = m.div_ceil(blocks).next_multiple_of(PAIR_ROWS);
    let panels_per_job = (panels.div_ceil(min_panels_per_job) / (4 * threads)).max(1) * min_panels_per_job;
    let panel_jobs = panels.div_ceil(panels_per_job);
    let jobs = Jobs::new(panel_jobs * m.div_ceil(rows_per_job));
    let worker = AmxWorker {
        codes,
        scales,
        x,
        groups,
        m,
        epilogue,
        panels,
        panels_at_once,
        panel_stride,
        panels_per_job,
        panel_jobs,
        rows_per_job,
        jobs: &jobs,
    };
    // SAFETY: the level is AMX, so the machine has all of this, and the threads of the pool hold no tiles.
    kernels.pool().run(threads, &|_| unsafe { worker.work() });
}

/// State of a matmul that all threads share.
struct AmxWorker<'a, K> {
    codes: &'a [Quad],
    scales: &'a [[u16; LANES]],
    x: &'a PackedRows,
    groups: usize,
    m: usize,
    epilogue: &'a K,
    panels: usize,
    panels_at_once: usize,
    panel_stride: usize,
    panels_per_job: usize,
    /// Jobs of one block of rows.
    panel_jobs: usize,
    rows_per_job: usize,
    jobs: &'a Jobs,
}

/// Buffers of one thread.
struct AmxScratch {
    /// Products of the current group and of the group before it.
    products: [GroupProducts; 2],
    /// Totals of a job, `[rows][panels][16]`.
    totals: Vec<[f32; LANES]>,
    /// Values that the epilogue keeps between panels.
    pending: Vec<f32>,
}

thread_local! {
    /// Reused by all products of the thread: no allocation per product.
    static SCRATCH: RefCell<Option<Box<AmxScratch>>> = const { RefCell::new(None) };
}

impl<K: Epilogue> AmxWorker<'_, K> {
    /// Runs jobs until none is left.
    ///
    /// # Safety
    /// The level is AMX, and this thread holds no tiles.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn work(&self) {
        // SAFETY: the caller's promise.
        let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
        let mut scratch = SCRATCH.take().unwrap_or_else(|| {
            let products = [GroupProducts([[0; LANES]; 4 * ROWS]); 2];
            Box::new(AmxScratch {
                products,
                totals: vec![[0.0; LANES]; 2 * MAX_JOB_ROWS],
                pending: Vec::new(),
            })
        });
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let mut panel = now % self.panel_jobs * self.panels_per_job;
            let last = self.panels.min(panel + self.panels_per_job);
            let following = job.map(|next| next % self.panel_jobs * self.panels_per_job);
            let row = now / self.panel_jobs * self.rows_per_job;
            let rows = self.rows_per_job.min(self.m - row);
            while panel < last {
                let count = match self.panels_at_once.min(last - panel) {
                    4.. => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                let next = if panel + count < last { Some(panel + count) } else { following };
                let part = PanelBlock { row, rows, panel, next };
                // SAFETY: rows and panels exist; four panels at once have at most 16 rows.
                unsafe {
                    match count {
                        4 => self.panels::<4>(&tiles, part, &mut scratch),
                        2 => self.panels::<2>(&tiles, part, &mut scratch),
                        _ if K::GATED => self.panels::<2>(&tiles, part, &mut scratch),
                        _ => self.panels::<1>(&tiles, part, &mut scratch),
                    }
                }
                self.epilogue.finish_panels(row..row + rows, panel..panel + count, &scratch.pending);
                panel += count;
            }
        }
        SCRATCH.set(Some(scratch));
    }

    /// NP panels for any number of rows: pairs of full tiles in slabs of groups, then the remaining rows.
    ///
    /// # Safety
    /// Rows and panels exist; NP is 1, 2, or 4 with up to 16 rows. The level is AMX.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn panels<const NP: usize>(&self, tiles: &Tiles, part: PanelBlock, scratch: &mut AmxScratch) {
        let pairs = if part.rows > PAIR_ROWS { part.rows / PAIR_ROWS } else { 0 };
        if pairs > 0 {
            // SAFETY: the caller's promises, and NP is 1 or 2, since there are more than 16 rows.
            unsafe { self.slabs::<NP>(tiles, part, pairs, scratch) };
        }
        let done = pairs * PAIR_ROWS;
        if done < part.rows {
            let rest = PanelBlock { row: part.row + done, rows: part.rows - done, ..part };
            // SAFETY: as above.
            unsafe {
                if rest.rows > ROWS {
                    self.remainder::<2, NP>(tiles, rest, scratch, done);
                } else {
                    self.remainder::<1, NP>(tiles, rest, scratch, done);
                }
            }
        }
    }

    /// The first `pairs` pairs of full tiles. Each step prefetches a part of the next slab.
    ///
    /// # Safety
    /// As `panels`; NP is 1 or 2.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn slabs<const NP: usize>(
        &self,
        tiles: &Tiles,
        part: PanelBlock,
        pairs: usize,
        scratch: &mut AmxScratch,
    ) {
        tiles.configure([ROWS as u8; 8]);
        let of = |pair: usize| PanelBlock { row: part.row + pair * PAIR_ROWS, rows: PAIR_ROWS, ..part };
        let totals = scratch.totals[..pairs * PAIR_ROWS * NP].as_mut_ptr();
        let products = &raw mut scratch.products;
        let mut step = TileStep::default();
        for start in (0..self.groups).step_by(SLAB_GROUPS) {
            let end = self.groups.min(start + SLAB_GROUPS);
            let last = end == self.groups;
            let (panel, first) = if last { (part.next.unwrap_or(part.panel), 0) } else { (part.panel, end) };
            let fetched = if last && part.next.is_none() { 0 } else { SLAB_GROUPS.min(self.groups - first) };
            step.ahead = self.codes(panel, first);
            let lines = fetched * GROUP_BYTES / LINE;
            let turns = pairs * (end - start) * 4 * NP;
            // All lines in as many products as it takes, one or more after each.
            step.lines = lines.div_ceil(turns);
            step.every = 1 << (turns * step.lines / lines.max(1)).max(1).ilog2();
            for pair in 0..pairs {
                let group_ptrs = self.group_ptrs(of(pair), start, totals.wrapping_add(pair * PAIR_ROWS * NP));
                if last {
                    self.epilogue.prefetch::<NP>(of(pair));
                }
                for group in start..end {
                    step.go_to(group_ptrs.after(group - start));
                    // SAFETY: the caller's promises; all tiles have 16 rows.
                    unsafe { step.multiply::<2, NP, true, _>(tiles, PAIR_ROWS, products, prefetch_l2) };
                    if last && group == start && pair > 0 {
                        let totals = &mut scratch.totals[(pair - 1) * PAIR_ROWS * NP..];
                        self.epilogue.store::<NP>(
                            of(pair - 1),
                            pair * PAIR_ROWS - PAIR_ROWS,
                            totals,
                            &mut scratch.pending,
                        );
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { step.finish::<2, NP>(PAIR_ROWS, products) };
        let totals = &mut scratch.totals[(pairs - 1) * PAIR_ROWS * NP..];
        self.epilogue.store::<NP>(of(pairs - 1), pairs * PAIR_ROWS - PAIR_ROWS, totals, &mut scratch.pending);
    }

    /// All groups for at most MT tiles of rows, after `done` rows of the job. With `done` = 0 the weights come from memory.
    ///
    /// # Safety
    /// As `panels`; MT tiles hold the rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn remainder<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: PanelBlock,
        scratch: &mut AmxScratch,
        done: usize,
    ) {
        let (low, high) = (part.rows.min(ROWS) as u8, part.rows.saturating_sub(ROWS) as u8);
        let full = ROWS as u8;
        tiles.configure(match MT {
            1 => [low, low, low, low, low, full, full, full],
            _ => [full, full, high, high, full, high, full, full],
        });
        let group_ptrs = self.group_ptrs(part, 0, scratch.totals[..part.rows * NP].as_mut_ptr());
        let products = &raw mut scratch.products;
        let mut step = TileStep::default();
        for group in 0..self.groups {
            step.lines = if done == 0 { GROUP_BYTES / LINE / (2 * MT * NP) } else { 0 };
            step.ahead = match (group + PREFETCH_GROUPS < self.groups, part.next) {
                (true, _) => self.codes(part.panel, group + PREFETCH_GROUPS),
                (false, Some(next)) => {
                    self.codes(next, (group + PREFETCH_GROUPS - self.groups).min(self.groups - 1))
                }
                (false, None) => {
                    step.lines = 0;
                    step.ahead
                }
            };
            step.go_to(group_ptrs.after(group));
            // SAFETY: the caller's promises; the tiles have the rows of the part.
            unsafe { step.multiply::<MT, NP, false, _>(tiles, part.rows, products, prefetch) };
        }
        // SAFETY: as above.
        unsafe { step.finish::<MT, NP>(part.rows, products) };
        self.epilogue.store::<NP>(part, done, &mut scratch.totals, &mut scratch.pending);
    }

    /// Start of the codes of a group of a panel.
    #[inline(always)]
    fn codes(&self, panel: usize, group: usize) -> *const u8 {
        self.codes.as_ptr().cast::<u8>().wrapping_add((panel * self.groups + group) * GROUP_BYTES)
    }

    /// Pointers of group `group` of a block, whose totals begin at `totals`.
    #[inline(always)]
    fn group_ptrs(&self, part: PanelBlock, group: usize, totals: *mut [f32; LANES]) -> GroupPtrs {
        GroupPtrs {
            x: self.x.from(part.row / ROWS, group).as_ptr(),
            codes: self.codes(part.panel, group),
            scales: self.scales[part.panel * self.groups + group..].as_ptr(),
            totals,
            first: group == 0,
            groups: self.groups,
            group_stride: self.panel_stride * self.groups,
        }
    }
}
