//! int8 products on the tiles of AMX: the sums of [`super::int8`], sixteen rows of x at a time.
//!
//! A panel's codes of 64 columns are one tile as they lie. Products of a group leave the tiles as exact i32 and join the
//! totals in f32 while the tiles multiply the next group. Codes of weights are unsigned here (code + 128), so each product is
//! 128 times the sum of the row's codes too large.

use std::arch::x86_64::*;
use std::ops::Range;

use super::driver::{Jobs, Output};
use super::int8::{MatmulInt8, QUADS, Quad};
use crate::amx::{ROW, ROWS, TILE, Tiles};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::quantize::GROUP;
use crate::simd::LANES;
use crate::tiled::{TileGroup, Tiled};

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
    let (panels, groups) = (n.div_ceil(LANES), weights.groups());
    let (codes, scales): (&[Quad], &[[u16; LANES]]) = (&weights.codes, &weights.scales);
    assert_eq!((codes.len(), scales.len()), (panels * groups * QUADS, panels * groups), "packed weights");
    assert!(x.from(0, 0).len() >= m.div_ceil(ROWS) * groups, "rows of x");
    // Small groups where large ones would leave threads without work.
    let threads = kernels.threads();
    let together = if m <= ROWS { 4 } else { 2 };
    let together = [together, 2].into_iter().find(|group| panels / group >= 4 * threads).unwrap_or(1);
    let blocks = m.div_ceil((BLOCK_BYTES / (groups * GROUP)).clamp(PAIR, BLOCK));
    let block = m.div_ceil(blocks).next_multiple_of(PAIR);
    let run = (panels.div_ceil(together) / (4 * threads)).max(1) * together;
    let runs = panels.div_ceil(run);
    let jobs = Jobs::new(runs * m.div_ceil(block));
    let share = Share {
        codes,
        scales,
        x,
        groups,
        m,
        n,
        bias,
        y: &y,
        stride,
        panels,
        together,
        run,
        runs,
        block,
        jobs: &jobs,
    };
    // SAFETY: the level is AMX, so the machine has all of this, and the threads of the pool hold no tiles.
    kernels.pool().run(threads, &|_| unsafe { share.work() });
}

/// What every thread sees.
struct Share<'a> {
    codes: &'a [Quad],
    scales: &'a [[u16; LANES]],
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

/// Products of a group as they leave the tiles: x tile t times panel p is number 2 t + p, `[16][16]`.
#[repr(C, align(64))]
struct Products([[i32; LANES]; 4 * ROWS]);

/// What a thread computes in.
#[repr(C, align(64))]
struct Scratch {
    /// Those of the group at hand and of the one before.
    products: [Products; 2],
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
        let mut scratch = Scratch {
            products: [const { Products([[0; LANES]; 4 * ROWS]) }; 2],
            totals: [[0.0; LANES]; 2 * BLOCK],
        };
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
                    self.ends::<2, NP>(tiles, rest, scratch, pairs == 0);
                } else {
                    self.ends::<1, NP>(tiles, rest, scratch, pairs == 0);
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
            step.every = (turns * step.lines / lines.max(1)).max(1).next_power_of_two();
            step.every =
                if step.every * lines > turns * step.lines { step.every / 2 } else { step.every }.max(1);
            for pair in 0..pairs {
                let place = self.place(of(pair), start, totals.wrapping_add(pair * PAIR * NP));
                if last {
                    self.expect(of(pair), NP);
                }
                for group in start..end {
                    step.go_to(place.after(group - start));
                    // SAFETY: the caller's promises; all tiles have 16 rows.
                    unsafe { step.multiply::<2, NP, true, _>(tiles, PAIR, products, prefetch_l2) };
                    if last && group == start && pair > 0 {
                        self.write::<NP>(of(pair - 1), &scratch.totals[(pair - 1) * PAIR * NP..]);
                    }
                }
            }
        }
        step.go_to(step.now);
        // SAFETY: as above.
        unsafe { step.add::<2, NP>(0..PAIR, products) };
        self.write::<NP>(of(pairs - 1), &scratch.totals[(pairs - 1) * PAIR * NP..]);
    }

    /// All groups for up to MT tiles of rows. `first`: nobody has read these weights before.
    ///
    /// # Safety
    /// As `panels`; MT tiles hold the rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn ends<const MT: usize, const NP: usize>(
        &self,
        tiles: &Tiles,
        part: Part,
        scratch: &mut Scratch,
        first: bool,
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
            step.lines = if first { GROUP_BYTES / LINE / (2 * MT * NP) } else { 0 };
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
        step.go_to(step.now);
        // SAFETY: as above.
        unsafe { step.add::<MT, NP>(0..part.rows, products) };
        self.write::<NP>(part, &scratch.totals);
    }

    /// Asks for the places of y that NP panels write for the rows of the part.
    #[inline(always)]
    fn expect(&self, part: Part, panels: usize) {
        for row in part.row..part.row + part.rows {
            let y = self.y.as_ptr().wrapping_add(row * self.stride + part.panel * LANES);
            for p in 0..panels {
                prefetch_to_write(y.wrapping_add(p * LANES).cast());
            }
        }
    }

    /// Totals `[rows][NP][16]` and bias to y.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn write<const NP: usize>(&self, part: Part, totals: &[[f32; LANES]]) {
        let totals = &totals[..part.rows * NP];
        for p in 0..NP {
            let first = (part.panel + p) * LANES;
            let count = LANES.min(self.n - first);
            let mask = u16::MAX >> (LANES - count);
            let bias = match self.bias {
                // SAFETY: the mask covers the columns from `first` on that exist.
                Some(bias) => unsafe { _mm512_maskz_loadu_ps(mask, bias[first..first + count].as_ptr()) },
                None => _mm512_setzero_ps(),
            };
            for (r, total) in totals.iter().skip(p).step_by(NP).enumerate() {
                let start = (part.row + r) * self.stride + first;
                // SAFETY: jobs have different rows or panels, so different parts of y; one part is held at a time.
                let y = unsafe { self.y.part(start..start + count) };
                // SAFETY: 16 values are read, and those of the mask are written.
                unsafe {
                    let total = _mm512_loadu_ps(total.as_ptr());
                    let value = if self.bias.is_some() { _mm512_add_ps(total, bias) } else { total };
                    _mm512_mask_storeu_ps(y.as_mut_ptr(), mask, value);
                }
            }
        }
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
        }
    }
}

/// A group of tiles of x and of panels, and the totals that their products belong to.
#[derive(Clone, Copy)]
struct Place {
    /// Of the first tile; the next follows `groups` later. So with the others.
    x: *const TileGroup,
    codes: *const u8,
    scales: *const [u16; LANES],
    totals: *mut [f32; LANES],
    /// Whether the totals are still to begin.
    first: bool,
    groups: usize,
}

impl Place {
    /// The place `count` groups later.
    #[inline(always)]
    fn after(self, count: usize) -> Place {
        Place {
            x: self.x.wrapping_add(count),
            codes: self.codes.wrapping_add(count * GROUP_BYTES),
            scales: self.scales.wrapping_add(count),
            first: self.first && count == 0,
            ..self
        }
    }
}

/// What the tiles multiply now, what they multiplied before, and what comes from memory meanwhile.
struct Step {
    now: Place,
    /// Its products are not yet in the totals.
    before: Place,
    /// How many groups have been multiplied; their products go to two places in turn.
    count: usize,
    /// Lines that are fetched after each product whose number is a multiple of `every` (a power of two), from `ahead` on, of each panel.
    lines: usize,
    every: usize,
    ahead: *const u8,
}

impl Default for Step {
    fn default() -> Step {
        let nowhere = Place {
            x: std::ptr::null(),
            codes: std::ptr::null(),
            scales: std::ptr::null(),
            totals: std::ptr::null_mut(),
            first: true,
            groups: 0,
        };
        Step { now: nowhere, before: nowhere, count: 0, lines: 0, every: 1, ahead: std::ptr::null() }
    }
}

impl Step {
    /// Makes `next` what is multiplied now.
    #[inline(always)]
    fn go_to(&mut self, next: Place) {
        self.before = self.now;
        self.now = next;
        self.count += 1;
    }

    /// Multiplies the group, and after each product adds a part of the products before to their totals.
    ///
    /// # Safety
    /// The groups exist for MT tiles of x, NP panels and `rows` rows (FULL: 16 MT), for which the tiles are configured.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline(never)]
    unsafe fn multiply<const MT: usize, const NP: usize, const FULL: bool, F: Fn(*const u8)>(
        &mut self,
        tiles: &Tiles,
        rows: usize,
        products: *mut [Products; 2],
        prefetch: F,
    ) {
        let Step { now, before, count, lines, every, ahead } = *self;
        let rows = if FULL { MT * ROWS } else { rows };
        let panel_bytes = now.groups * GROUP_BYTES;
        let x = |tile: usize, half: usize| {
            now.x.wrapping_add(tile * now.groups).cast::<u8>().wrapping_add(half * TILE)
        };
        let w = |panel: usize, half: usize| now.codes.wrapping_add(panel * panel_bytes + half * TILE);
        let first = products.cast::<Products>().wrapping_add(count % 2).cast::<u8>();
        let at = |number: usize| first.wrapping_add(number * TILE);
        let mut ahead = ahead;
        let mut between = |product: usize| {
            let lines = if product & (every - 1) == 0 { lines } else { 0 };
            for _ in 0..lines {
                for p in 0..NP {
                    prefetch(ahead.wrapping_add(p * panel_bytes));
                }
                ahead = ahead.wrapping_add(LINE);
            }
            if count > 1 {
                let parts = 2 * MT * NP;
                let rows = rows * product / parts..rows * (product + 1) / parts;
                // SAFETY: the caller's promises.
                unsafe {
                    add::<MT, NP>(before, rows, products.cast::<Products>().wrapping_add((count - 1) % 2))
                };
            }
        };
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
        // SAFETY: whole tiles of x and weights (the caller's promise); each product has its own place of 16 rows.
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
                            tiles.store::<0>(at(0), ROW);
                        }
                        between(4 * half + 2);
                        tiles.dot_i8_u8::<3, 5, 7>();
                        if half == 1 {
                            tiles.store::<1>(at(1), ROW);
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
                                tiles.store::<0>(at(0), ROW);
                            }
                            between(NP * half + 2);
                            tiles.load::<5>(w(3, half), ROW);
                            tiles.dot_i8_u8::<3, 4, 5>();
                            if half == 1 {
                                tiles.store::<1>(at(1), ROW);
                            }
                            between(NP * half + 3);
                        }
                    }
                }
            }
            if MT * NP < 4 {
                tiles.store::<0>(at(0), ROW);
            }
            if MT == 1 && NP == 2 {
                tiles.store::<1>(at(1), ROW);
            }
            if MT > 1 || NP > 2 {
                tiles.store::<2>(at(2), ROW);
            }
            if MT * NP > 2 {
                tiles.store::<3>(at(3), ROW);
            }
        }
        self.ahead = ahead;
    }

    /// Adds the products before to their totals.
    ///
    /// # Safety
    /// As `multiply`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add<const MT: usize, const NP: usize>(&self, rows: Range<usize>, products: *mut [Products; 2]) {
        let products = products.cast::<Products>().wrapping_add((self.count - 1) % 2);
        // SAFETY: the caller's promises.
        unsafe { add::<MT, NP>(self.before, rows, products) };
    }
}

/// totals += products of a group, scaled, for `rows` of MT tiles.
///
/// # Safety
/// The group exists for all these rows and panels; its totals are `[rows][NP]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn add<const MT: usize, const NP: usize>(place: Place, rows: Range<usize>, products: *const Products) {
    let products = products.cast::<[i32; LANES]>();
    let old = if place.first { 0 } else { u16::MAX };
    // SAFETY: loads and stores are of whole arrays that exist (the caller's promise).
    unsafe {
        let mut scales = [_mm512_setzero_ps(); NP];
        for p in 0..NP {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(place.scales.add(p * place.groups).cast()));
            scales[p] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
        }
        for row in rows {
            let (tile, lane) = (row / ROWS, row % ROWS);
            let x = place.x.wrapping_add(tile * place.groups);
            let excess = _mm512_set1_epi32((*x).excess[lane]);
            let scale = _mm512_set1_ps((*x).scales[lane]);
            for p in 0..NP {
                let product = products.add((2 * tile + p) * ROWS + lane);
                let exact = _mm512_sub_epi32(_mm512_load_si512(product.cast()), excess);
                let total = place.totals.add(row * NP + p).cast::<f32>();
                let scale = _mm512_mul_ps(scale, scales[p]);
                let value =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, _mm512_maskz_loadu_ps(old, total));
                _mm512_storeu_ps(total, value);
            }
        }
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

/// As `prefetch`, of a line that will be written.
#[inline(always)]
fn prefetch_to_write(p: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) };
}
