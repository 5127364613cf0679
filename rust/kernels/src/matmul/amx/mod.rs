//! int8 products on the tiles of AMX: the sums of [`super::int8`], sixteen rows of x at a time.
//!
//! A panel's codes of 64 columns are one tile as they lie. Products of a group leave the tiles as exact i32 and join the
//! totals in f32 while the tiles multiply the next group. Codes of weights are unsigned here (code + 128), so each product is
//! 128 times the sum of the row's codes too large.

mod epilogue;
mod steps;

use std::cell::RefCell;

use epilogue::{Gated, Plain, Sink};
use steps::{Place, Products, Step, prefetch, prefetch_l2};

use super::driver::{Jobs, Output};
use super::int8::{MatmulInt8, QUADS, Quad};
use crate::activation::Activation;
use crate::amx::{ROW, ROWS, TILE, Tiles};
use crate::context::Kernels;
use crate::packed_rows::Tiled;
use crate::parallel::Shared;
use crate::quantize::{GROUP, QuantizedRows};
use crate::simd::LANES;

/// Rows of x that two tiles hold.
const PAIR: usize = 2 * ROWS;
/// Rows of x that a job covers at most, and their bytes: they stay in the second-level cache while weights pass by.
const BLOCK: usize = 512;
const BLOCK_BYTES: usize = 1 << 20;
/// Groups of two panels that stay in the first-level cache while rows pass by: 4 KiB each.
const SLAB: usize = 4;
/// Groups that are fetched ahead where weights are read once.
const AHEAD: usize = 2;
const LINE: usize = 64;
/// Bytes of a group of a panel: two tiles.
const GROUP_BYTES: usize = 2 * TILE;

const _: () = assert!(GROUP_BYTES == GROUP * LANES && QUADS * 4 == GROUP && ROW == 4 * LANES);

/// Computes the whole output. The level of `kernels` is `Isa::Amx`.
pub(super) fn run(kernels: &Kernels, weights: &MatmulInt8, x: &Tiled, output: Output<'_>) {
    if output.m == 0 {
        return;
    }
    let Output { m, n, bias, y, stride } = output.checked();
    let y = Shared::new(y);
    let panels = n.div_ceil(LANES);
    // Small groups where large ones would leave threads without work.
    let together = if m <= ROWS { 4 } else { 2 };
    let together =
        [together, 2].into_iter().find(|group| panels / group >= 4 * kernels.threads()).unwrap_or(1);
    let sink = Plain { n, bias, y: &y, stride };
    share_out(kernels, weights, x, m, &sink, Shape { panels, together, unit: together, apart: 1 });
}

/// f(gate) * up of the gate and up rows, `inner` each, of `weights`, as int8 to `out`. The level of `kernels` is `Isa::Amx`,
/// and `inner` a multiple of 16.
pub(super) fn run_gated(
    kernels: &Kernels,
    weights: &MatmulInt8,
    x: &Tiled,
    m: usize,
    (inner, f): (usize, Activation),
    out: &mut QuantizedRows,
) {
    let parts = out.parts(kernels, m, inner);
    let panels = inner / LANES;
    let sink = Gated { f, inner, out: &parts };
    share_out(
        kernels,
        weights,
        x,
        m,
        &sink,
        Shape { panels, together: 1, unit: GROUP / LANES, apart: panels },
    );
}

/// Which panels are computed together.
struct Shape {
    /// Panels that are gone through.
    panels: usize,
    /// Of these, how many are computed at once. Where others lie `apart`, one and its other are.
    together: usize,
    /// Panels that one job takes at least.
    unit: usize,
    /// Panels from one to its neighbour in a product.
    apart: usize,
}

fn share_out<K: Sink>(kernels: &Kernels, weights: &MatmulInt8, x: &Tiled, m: usize, sink: &K, shape: Shape) {
    let Shape { panels, together, unit, apart } = shape;
    let (codes, scales): (&[Quad], &[[u16; LANES]]) = (&weights.codes, &weights.scales);
    let (all, groups) = (if K::GATED { 2 * panels } else { panels }, weights.groups());
    assert_eq!((codes.len(), scales.len()), (all * groups * QUADS, all * groups), "packed weights");
    assert!(x.from(0, 0).len() >= m.div_ceil(ROWS) * groups, "rows of x");
    let threads = kernels.threads();
    let blocks = m.div_ceil((BLOCK_BYTES / (groups * GROUP)).clamp(PAIR, BLOCK));
    let block = m.div_ceil(blocks).next_multiple_of(PAIR);
    let run = (panels.div_ceil(unit) / (4 * threads)).max(1) * unit;
    let runs = panels.div_ceil(run);
    let jobs = Jobs::new(runs * m.div_ceil(block));
    let share =
        Share { codes, scales, x, groups, m, sink, panels, together, apart, run, runs, block, jobs: &jobs };
    // SAFETY: the level is AMX, so the machine has all of this, and the threads of the pool hold no tiles.
    kernels.pool().run(threads, &|_| unsafe { share.work() });
}

/// What every thread sees.
struct Share<'a, K> {
    codes: &'a [Quad],
    scales: &'a [[u16; LANES]],
    x: &'a Tiled,
    groups: usize,
    m: usize,
    sink: &'a K,
    panels: usize,
    together: usize,
    apart: usize,
    /// Panels of a job.
    run: usize,
    runs: usize,
    /// Rows of a job.
    block: usize,
    jobs: &'a Jobs,
}

/// What a thread computes in.
struct Scratch {
    /// Those of the group at hand and of the one before.
    products: [Products; 2],
    /// Of a job: `[rows][panels][16]`.
    totals: Vec<[f32; LANES]>,
    /// What the sink keeps between panels.
    kept: Vec<f32>,
}

thread_local! {
    /// Kept between products to spare allocations.
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// Some rows of x times some panels.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    rows: usize,
    panel: usize,
    /// Panels that come next on this thread.
    next: Option<usize>,
}

impl<K: Sink> Share<'_, K> {
    /// One thread's share: the jobs that it takes.
    ///
    /// # Safety
    /// The level is AMX, and this thread holds no tiles.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn work(&self) {
        // SAFETY: the caller's promise.
        let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
        let mut scratch = SCRATCH.take().unwrap_or_else(|| {
            let products = [Products([[0; LANES]; 4 * ROWS]); 2];
            Box::new(Scratch { products, totals: vec![[0.0; LANES]; 2 * BLOCK], kept: Vec::new() })
        });
        let mut job = self.jobs.take();
        while let Some(now) = job {
            job = self.jobs.take();
            let mut panel = now % self.runs * self.run;
            let last = self.panels.min(panel + self.run);
            let following = job.map(|next| next % self.runs * self.run);
            let row = now / self.runs * self.block;
            let rows = self.block.min(self.m - row);
            while panel < last {
                let count = match self.together.min(last - panel) {
                    4.. => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                let next = if panel + count < last { Some(panel + count) } else { following };
                let part = Part { row, rows, panel, next };
                // SAFETY: rows and panels exist; four panels come together with up to 16 rows only.
                unsafe {
                    match count {
                        4 => self.panels::<4>(&tiles, part, &mut scratch),
                        2 => self.panels::<2>(&tiles, part, &mut scratch),
                        _ if K::GATED => self.panels::<2>(&tiles, part, &mut scratch),
                        _ => self.panels::<1>(&tiles, part, &mut scratch),
                    }
                }
                panel += count;
                self.sink.end(row..row + rows, panel, &scratch.kept);
            }
        }
        SCRATCH.set(Some(scratch));
    }

    /// NP panels for rows of any number: for pairs of full tiles a slab of groups at a time, for the rest from end to end.
    ///
    /// # Safety
    /// Rows and panels exist; NP is 1, 2, or 4 with up to 16 rows. The level is AMX.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn panels<const NP: usize>(&self, tiles: &Tiles, part: Part, scratch: &mut Scratch) {
        let pairs = if part.rows > PAIR { part.rows / PAIR } else { 0 };
        if pairs > 0 {
            // SAFETY: the caller's promises, and NP is 1 or 2, since there are more than 16 rows.
            unsafe { self.slabs::<NP>(tiles, part, pairs, scratch) };
        }
        let done = pairs * PAIR;
        if done < part.rows {
            let rest = Part { row: part.row + done, rows: part.rows - done, ..part };
            // SAFETY: as above.
            unsafe {
                if rest.rows > ROWS {
                    self.ends::<2, NP>(tiles, rest, scratch, done);
                } else {
                    self.ends::<1, NP>(tiles, rest, scratch, done);
                }
            }
        }
    }

    /// The first `pairs` pairs of full tiles. Meanwhile the next slab comes from memory, each step fetching a share of it.
    ///
    /// # Safety
    /// As `panels`; NP is 1 or 2.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn slabs<const NP: usize>(&self, tiles: &Tiles, part: Part, pairs: usize, scratch: &mut Scratch) {
        tiles.configure([ROWS as u8; 8]);
        let of = |pair: usize| Part { row: part.row + pair * PAIR, rows: PAIR, ..part };
        let totals = scratch.totals[..pairs * PAIR * NP].as_mut_ptr();
        let products = &raw mut scratch.products;
        let mut step = Step::default();
        for start in (0..self.groups).step_by(SLAB) {
            let end = self.groups.min(start + SLAB);
            let last = end == self.groups;
            let (panel, first) = if last { (part.next.unwrap_or(part.panel), 0) } else { (part.panel, end) };
            let fetched = if last && part.next.is_none() { 0 } else { SLAB.min(self.groups - first) };
            step.ahead = self.codes(panel, first);
            let lines = fetched * GROUP_BYTES / LINE;
            let turns = pairs * (end - start) * 4 * NP;
            // All lines in as many products as it takes, one or more after each.
            step.lines = lines.div_ceil(turns);
            step.every = 1 << (turns * step.lines / lines.max(1)).max(1).ilog2();
            for pair in 0..pairs {
                let place = self.place(of(pair), start, totals.wrapping_add(pair * PAIR * NP));
                if last {
                    self.sink.expect::<NP>(of(pair));
                }
                for group in start..end {
                    step.go_to(place.after(group - start));
                    // SAFETY: the caller's promises; all tiles have 16 rows.
                    unsafe { step.multiply::<2, NP, true, _>(tiles, PAIR, products, prefetch_l2) };
                    if last && group == start && pair > 0 {
                        let totals = &scratch.totals[(pair - 1) * PAIR * NP..];
                        self.sink.take::<NP>(of(pair - 1), pair * PAIR - PAIR, totals, &mut scratch.kept);
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { step.finish::<2, NP>(PAIR, products) };
        let totals = &scratch.totals[(pairs - 1) * PAIR * NP..];
        self.sink.take::<NP>(of(pairs - 1), pairs * PAIR - PAIR, totals, &mut scratch.kept);
    }

    /// All groups for up to MT tiles of rows, `done` rows of the job before them. If there are none, these weights come from memory.
    ///
    /// # Safety
    /// As `panels`; MT tiles hold the rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn ends<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        scratch: &mut Scratch,
        done: usize,
    ) {
        let (low, high) = (part.rows.min(ROWS) as u8, part.rows.saturating_sub(ROWS) as u8);
        let full = ROWS as u8;
        tiles.configure(match MT {
            1 => [low, low, low, low, low, full, full, full],
            _ => [full, full, high, high, full, high, full, full],
        });
        let place = self.place(part, 0, scratch.totals[..part.rows * NP].as_mut_ptr());
        let products = &raw mut scratch.products;
        let mut step = Step::default();
        for group in 0..self.groups {
            step.lines = if done == 0 { GROUP_BYTES / LINE / (2 * MT * NP) } else { 0 };
            step.ahead = match (group + AHEAD < self.groups, part.next) {
                (true, _) => self.codes(part.panel, group + AHEAD),
                (false, Some(next)) => self.codes(next, (group + AHEAD - self.groups).min(self.groups - 1)),
                (false, None) => {
                    step.lines = 0;
                    step.ahead
                }
            };
            step.go_to(place.after(group));
            // SAFETY: the caller's promises; the tiles have the rows of the part.
            unsafe { step.multiply::<MT, NP, false, _>(tiles, part.rows, products, prefetch) };
        }
        // SAFETY: as above.
        unsafe { step.finish::<MT, NP>(part.rows, products) };
        self.sink.take::<NP>(part, done, &scratch.totals, &mut scratch.kept);
    }

    /// Where the codes of a group of a panel begin.
    #[inline(always)]
    fn codes(&self, panel: usize, group: usize) -> *const u8 {
        self.codes.as_ptr().cast::<u8>().wrapping_add((panel * self.groups + group) * GROUP_BYTES)
    }

    /// Group `group` of a part, whose totals are at `totals`.
    #[inline(always)]
    fn place(&self, part: Part, group: usize, totals: *mut [f32; LANES]) -> Place {
        Place {
            x: self.x.from(part.row / ROWS, group).as_ptr(),
            codes: self.codes(part.panel, group),
            scales: self.scales[part.panel * self.groups + group..].as_ptr(),
            totals,
            first: group == 0,
            groups: self.groups,
            apart: self.apart * self.groups,
        }
    }
}
