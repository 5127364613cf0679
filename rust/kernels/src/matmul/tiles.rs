//! int8 products on the tiles of AMX: the sums of [`super::int8`], sixteen rows of x at a time.
//!
//! A panel's codes of 64 columns are one tile as they lie. Products of a group leave the tiles as exact i32 and join the
//! totals in f32 while the tiles compute the next group. Codes of weights are unsigned here (code + 128), so each sum is
//! 128 times the sum of the row's codes too large.

use std::arch::x86_64::*;
use std::ops::Range;

use super::driver::{Jobs, Output};
use super::int8::{MatmulInt8, QUADS};
use crate::amx::{ROW, ROWS, TILE, Tiles};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::quantize::GROUP;
use crate::simd::LANES;
use crate::tiled::{GROUP_LINES, Tiled};

/// Rows of x that two tiles hold.
const PAIR: usize = 2 * ROWS;
/// Rows of x that a job covers at most, and their bytes: they stay in the second-level cache while weights pass by.
const BLOCK: usize = 256;
const BLOCK_BYTES: usize = 1 << 20;
/// Groups of two panels that stay in the first-level cache while rows pass by: 4 KiB each.
const SLAB: usize = 5;
/// Groups that are fetched ahead where weights are read once.
const AHEAD: usize = 2;
const LINE: usize = 64;
/// Bytes of a group of a panel: two tiles.
const GROUP_BYTES: usize = 2 * TILE;

const _: () = assert!(GROUP_BYTES == GROUP * LANES && QUADS * 4 == GROUP && GROUP_LINES == 2 * ROWS && ROW == 4 * LANES);

/// Computes the whole output. The level of `kernels` is `Isa::Amx`.
pub(super) fn run(kernels: &Kernels, weights: &MatmulInt8, x: &Tiled, output: Output<'_>) {
    if output.m == 0 {
        return;
    }
    let Output { m, n, bias, y, stride } = output.checked();
    let y = Shared::new(y);
    let panels = n.div_ceil(LANES);
    let together = if m <= ROWS { 4 } else { 2 };
    // Small groups where large ones would leave threads without work.
    let threads = kernels.threads();
    let together = [together, 2].into_iter().find(|group| panels / group >= 4 * threads).unwrap_or(1);
    let groups = weights.groups();
    let blocks = m.div_ceil((BLOCK_BYTES / (groups * GROUP)).clamp(PAIR, BLOCK));
    let block = m.div_ceil(blocks).next_multiple_of(PAIR);
    let run = (panels.div_ceil(together) / (4 * threads)).max(1) * together;
    let runs = panels.div_ceil(run);
    let jobs = Jobs::new(runs * m.div_ceil(block));
    let share = Share { weights, x, groups, m, n, bias, y: &y, stride, panels, together, run, runs, block, jobs: &jobs };
    // SAFETY: the level is AMX, so the machine has all of this.
    kernels.pool().run(threads, &|_| unsafe { share.work() });
}

/// What every thread sees.
struct Share<'a> {
    weights: &'a MatmulInt8,
    x: &'a Tiled,
    groups: usize,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    stride: usize,
    panels: usize,
    /// Panels that are computed together.
    together: usize,
    /// Panels of a job.
    run: usize,
    runs: usize,
    /// Rows of a job.
    block: usize,
    jobs: &'a Jobs,
}

/// Sums of a group as they leave the tiles: x tile t times panel p is number 2 t + p, `[16][16]`.
#[repr(C, align(64))]
struct Sums([[i32; LANES]; 4 * ROWS]);

/// What a thread computes in.
#[repr(C, align(64))]
struct Scratch {
    /// Those of the group at hand and of the one before.
    sums: [Sums; 2],
    /// Of a job: `[rows][panels][16]`.
    totals: [[f32; LANES]; 2 * BLOCK],
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

impl Share<'_> {
    /// One thread's share: the jobs that it takes.
    ///
    /// # Safety
    /// The level is AMX, and this thread holds no tiles.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn work(&self) {
        // SAFETY: the caller's promise.
        let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
        let mut scratch =
            Scratch { sums: [const { Sums([[0; LANES]; 4 * ROWS]) }; 2], totals: [[0.0; LANES]; 2 * BLOCK] };
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
                        _ => self.panels::<1>(&tiles, part, &mut scratch),
                    }
                }
                panel += count;
            }
        }
    }

    /// NP panels for rows of any number: for pairs of full tiles a slab of groups at a time, for the rest from end to end.
    ///
    /// # Safety
    /// Rows and panels exist; NP is 1, 2, or 4 with up to 16 rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn panels<const NP: usize>(&self, tiles: &Tiles, part: Part, scratch: &mut Scratch) {
        let Scratch { sums, totals } = scratch;
        let totals = &mut totals[..part.rows * NP];
        totals.fill([0.0; LANES]);
        let pairs = if part.rows > PAIR { part.rows / PAIR } else { 0 };
        if pairs > 0 {
            // SAFETY: the caller's promises, and NP is 1 or 2, since there are more than 16 rows.
            unsafe { self.slabs::<NP>(tiles, part, pairs, sums, totals) };
        }
        let done = pairs * PAIR;
        if done < part.rows {
            let rest = Part { row: part.row + done, rows: part.rows - done, ..part };
            let totals = &mut totals[done * NP..];
            // SAFETY: as above.
            unsafe {
                if rest.rows > ROWS {
                    self.ends::<2, NP>(tiles, rest, sums, totals, pairs == 0);
                } else {
                    self.ends::<1, NP>(tiles, rest, sums, totals, pairs == 0);
                }
            }
        }
        self.write::<NP>(part, totals);
    }

    /// The first `pairs` pairs of full tiles. Meanwhile the next slab comes from memory, each pair fetching a share of it.
    ///
    /// # Safety
    /// As `panels`; NP is 1 or 2.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn slabs<const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        pairs: usize,
        sums: &mut [Sums; 2],
        totals: &mut [[f32; LANES]],
    ) {
        tiles.configure([ROWS as u8; 8]);
        for start in (0..self.groups).step_by(SLAB) {
            let end = self.groups.min(start + SLAB);
            let next = if end < self.groups { Some((part.panel, end)) } else { part.next.map(|panel| (panel, 0)) };
            for pair in 0..pairs {
                let rows = Part { row: part.row + pair * PAIR, rows: PAIR, ..part };
                let fetch = |group: usize, step: usize, steps: usize| {
                    let Some((panel, first)) = next else { return };
                    let lines = SLAB.min(self.groups - first) * GROUP_BYTES / LINE;
                    let turns = pairs * (end - start) * steps;
                    let turn = (pair * (end - start) + group - start) * steps + step;
                    for line in lines * turn / turns..lines * (turn + 1) / turns {
                        for p in 0..NP {
                            prefetch_l2(self.codes(panel + p, first).wrapping_add(line * LINE));
                        }
                    }
                };
                let totals = &mut totals[pair * PAIR * NP..(pair + 1) * PAIR * NP];
                // SAFETY: the caller's promises; all tiles have 16 rows.
                unsafe { self.groups::<2, NP>(tiles, rows, start..end, sums, totals, fetch) };
            }
        }
    }

    /// All groups for up to MT tiles of rows. `first`: nobody has read these weights before.
    ///
    /// # Safety
    /// As `panels`; MT tiles hold the rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn ends<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        sums: &mut [Sums; 2],
        totals: &mut [[f32; LANES]],
        first: bool,
    ) {
        let (low, high) = (part.rows.min(ROWS) as u8, part.rows.saturating_sub(ROWS) as u8);
        let full = ROWS as u8;
        tiles.configure(match MT {
            1 => [low, low, low, low, low, full, full, full],
            _ => [full, full, high, high, full, high, full, full],
        });
        let fetch = |group: usize, step: usize, steps: usize| {
            let (panel, group) = match (group + AHEAD < self.groups, part.next) {
                _ if !first => return,
                (true, _) => (part.panel, group + AHEAD),
                (false, Some(next)) => (next, (group + AHEAD - self.groups).min(self.groups - 1)),
                (false, None) => return,
            };
            const LINES: usize = GROUP_BYTES / LINE;
            for line in LINES * step / steps..LINES * (step + 1) / steps {
                for p in 0..NP {
                    prefetch(self.codes(panel + p, group).wrapping_add(line * LINE));
                }
            }
        };
        // SAFETY: the caller's promises; the tiles have the rows of the part.
        unsafe { self.groups::<MT, NP>(tiles, part, 0..self.groups, sums, totals, fetch) };
    }

    /// Adds the products of `groups` to `totals`, `[rows][NP][16]`. While the tiles multiply one group, the sums of the one
    /// before are scaled and added, a part after each product, and `fetch(group, product, products)` is called.
    ///
    /// # Safety
    /// As `panels`; the tiles are configured for the rows of `part`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn groups<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        groups: Range<usize>,
        sums: &mut [Sums; 2],
        totals: &mut [[f32; LANES]],
        fetch: impl Fn(usize, usize, usize),
    ) {
        let products = 2 * MT * NP;
        for group in groups.clone() {
            let [now, before] = &mut *sums;
            let (now, before) = if group % 2 == 0 { (now, before) } else { (before, now) };
            let mut between = |product: usize| {
                fetch(group, product, products);
                if group > groups.start {
                    let rows = part.rows * product / products..part.rows * (product + 1) / products;
                    // SAFETY: the caller's promises.
                    unsafe { self.add::<MT, NP>(part, group - 1, rows, before, totals) };
                }
            };
            // SAFETY: the caller's promises.
            unsafe { self.multiply::<MT, NP>(tiles, part, group, now, &mut between) };
        }
        let last = groups.end - 1;
        // SAFETY: as above.
        unsafe { self.add::<MT, NP>(part, last, 0..part.rows, &sums[last % 2], totals) };
    }

    /// The sums of one group: x tile t times panel p becomes number 2 t + p. `between` is called after each product.
    ///
    /// # Safety
    /// As `groups`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn multiply<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        group: usize,
        sums: &mut Sums,
        between: &mut impl FnMut(usize),
    ) {
        let x = |tile: usize, half: usize| {
            self.x.codes(part.row / ROWS + tile, group).wrapping_add(half * ROWS).cast::<u8>()
        };
        let w = |panel: usize, half: usize| self.codes(part.panel + panel, group).wrapping_add(half * TILE);
        let first = sums.0.as_mut_ptr();
        let at = |number: usize| first.wrapping_add(number * ROWS).cast::<u8>();
        tiles.zero::<0>();
        if NP > 1 {
            tiles.zero::<1>();
        }
        if MT > 1 || NP > 2 {
            tiles.zero::<2>();
        }
        if MT * NP > 2 {
            tiles.zero::<3>();
        }
        // SAFETY: whole tiles of x and weights, since rows and panels exist (the caller's promise); each sum has its own
        // place of 16 rows.
        unsafe {
            for half in 0..2 {
                match (MT, NP) {
                    (2, 2) => {
                        tiles.load::<6>(w(0, half), ROW);
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 6>();
                        between(4 * half);
                        tiles.load::<7>(w(1, half), ROW);
                        tiles.dot_i8_u8::<1, 4, 7>();
                        between(4 * half + 1);
                        tiles.load::<5>(x(1, half), ROW);
                        tiles.dot_i8_u8::<2, 5, 6>();
                        if half == 1 {
                            tiles.store::<0>(at(0));
                        }
                        between(4 * half + 2);
                        tiles.dot_i8_u8::<3, 5, 7>();
                        if half == 1 {
                            tiles.store::<1>(at(1));
                        }
                        between(4 * half + 3);
                    }
                    (2, _) => {
                        tiles.load::<6>(w(0, half), ROW);
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 6>();
                        between(2 * half);
                        tiles.load::<5>(x(1, half), ROW);
                        tiles.dot_i8_u8::<2, 5, 6>();
                        between(2 * half + 1);
                    }
                    _ => {
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.load::<5>(w(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 5>();
                        between(NP * half);
                        if NP > 1 {
                            tiles.load::<6>(w(1, half), ROW);
                            tiles.dot_i8_u8::<1, 4, 6>();
                            between(NP * half + 1);
                        }
                        if NP > 2 {
                            tiles.load::<7>(w(2, half), ROW);
                            tiles.dot_i8_u8::<2, 4, 7>();
                            if half == 1 {
                                tiles.store::<0>(at(0));
                            }
                            between(NP * half + 2);
                            tiles.load::<5>(w(3, half), ROW);
                            tiles.dot_i8_u8::<3, 4, 5>();
                            if half == 1 {
                                tiles.store::<1>(at(1));
                            }
                            between(NP * half + 3);
                        }
                    }
                }
            }
            if MT * NP < 4 {
                tiles.store::<0>(at(0));
            }
            if MT == 1 && NP == 2 {
                tiles.store::<1>(at(1));
            }
            if MT > 1 || NP > 2 {
                tiles.store::<2>(at(2));
            }
            if MT * NP > 2 {
                tiles.store::<3>(at(3));
            }
        }
    }

    /// totals += sums of `group`, scaled, for `rows` of the part.
    ///
    /// # Safety
    /// As `groups`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn add<const MT: usize, const NP: usize>(
        &self,
        part: Part,
        group: usize,
        rows: Range<usize>,
        sums: &Sums,
        totals: &mut [[f32; LANES]],
    ) {
        // SAFETY: `work` has the features; loads and stores are of whole arrays; rows, panels and the group exist.
        unsafe {
            let mut scales = [_mm512_setzero_ps(); NP];
            for p in 0..NP {
                let at = self.weights.scales.get_unchecked((part.panel + p) * self.groups + group);
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.as_ptr().cast()));
                scales[p] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
            }
            for row in rows {
                let (tile, lane) = (row / ROWS, row % ROWS);
                let row_tile = part.row / ROWS + tile;
                let excess = _mm512_set1_epi32(self.x.excess(row_tile, group)[lane]);
                let scale = _mm512_set1_ps(self.x.scales(row_tile, group)[lane]);
                for p in 0..NP {
                    let sum = sums.0.as_ptr().add((2 * tile + p) * ROWS + lane);
                    let exact = _mm512_sub_epi32(_mm512_load_si512(sum.cast()), excess);
                    let total = totals.as_mut_ptr().add(row * NP + p).cast::<f32>();
                    let scale = _mm512_mul_ps(scale, scales[p]);
                    let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, _mm512_loadu_ps(total));
                    _mm512_storeu_ps(total, value);
                }
            }
        }
    }

    /// Totals and bias to y.
    #[inline(always)]
    fn write<const NP: usize>(&self, part: Part, totals: &[[f32; LANES]]) {
        for (r, totals) in totals.chunks_exact(NP).enumerate() {
            let first = part.panel * LANES;
            let count = (NP * LANES).min(self.n - first);
            let start = (part.row + r) * self.stride + first;
            // SAFETY: jobs have different rows or panels, so different parts of y; one part is held at a time.
            let y = unsafe { self.y.part(start..start + count) };
            y.copy_from_slice(&totals.as_flattened()[..count]);
            if let Some(bias) = self.bias {
                y.iter_mut().zip(&bias[first..first + count]).for_each(|(y, bias)| *y += bias);
            }
        }
    }

    /// Where the codes of a group of a panel begin.
    #[inline(always)]
    fn codes(&self, panel: usize, group: usize) -> *const u8 {
        self.weights.codes.as_ptr().cast::<u8>().wrapping_add((panel * self.groups + group) * GROUP_BYTES)
    }
}

/// Hints that the line at `p` will be read soon. Any address is allowed.
#[inline(always)]
fn prefetch(p: *const u8) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
}

/// As `prefetch`, into the second-level cache.
#[inline(always)]
fn prefetch_l2(p: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
}
