//! One step: the tiles multiply one group of x and weights.
//!
//! ```text
//! tiles    multiply group g       multiply group g + 1     ...
//! vectors  add group g - 1        add group g              ...
//! memory   prefetch weights       prefetch weights         ...
//! ```

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::{GROUP_BYTES, LINE};
use crate::amx::{ROW, ROWS, TILE, Tiles};
use crate::packed_rows::PackedGroup;
use crate::simd::LANES;

/// i32 products of one group: x tile t times panel p is block 2 t + p, `[16][16]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct GroupProducts(pub(super) [[i32; LANES]; 4 * ROWS]);

/// Pointers of one group: tiles of x, panels of weights, and the totals of their products.
#[derive(Clone, Copy)]
pub(super) struct GroupPtrs {
    /// First tile of x; the next tile is `groups` later.
    pub(super) x: *const PackedGroup,
    /// First panel; the next panel is `group_stride` groups later. The scales have the same stride.
    pub(super) codes: *const u8,
    pub(super) scales: *const [u16; LANES],
    pub(super) totals: *mut [f32; LANES],
    /// Whether this is the first group: totals start from zero.
    pub(super) first: bool,
    pub(super) groups: usize,
    /// Groups between one panel and the next.
    pub(super) group_stride: usize,
}

impl GroupPtrs {
    /// The pointers `count` groups later.
    #[inline(always)]
    pub(super) fn after(self, count: usize) -> GroupPtrs {
        GroupPtrs {
            x: self.x.wrapping_add(count),
            codes: self.codes.wrapping_add(count * GROUP_BYTES),
            scales: self.scales.wrapping_add(count),
            first: self.first && count == 0,
            ..self
        }
    }
}

/// State of the pipeline: the current group, the group before it, and the prefetch.
pub(super) struct TileStep {
    now: GroupPtrs,
    /// Group whose products are not in the totals yet.
    before: GroupPtrs,
    /// Number of multiplied groups. Their products alternate between two buffers.
    count: usize,
    /// Lines of each panel to prefetch from `ahead` on, after every `every`-th product (a power of two).
    pub(super) lines: usize,
    pub(super) every: usize,
    pub(super) ahead: *const u8,
}

impl Default for TileStep {
    fn default() -> TileStep {
        let nowhere = GroupPtrs {
            x: std::ptr::null(),
            codes: std::ptr::null(),
            scales: std::ptr::null(),
            totals: std::ptr::null_mut(),
            first: true,
            groups: 0,
            group_stride: 0,
        };
        TileStep { now: nowhere, before: nowhere, count: 0, lines: 0, every: 1, ahead: std::ptr::null() }
    }
}

impl TileStep {
    /// Moves on to the group `next`.
    #[inline(always)]
    pub(super) fn go_to(&mut self, next: GroupPtrs) {
        self.before = self.now;
        self.now = next;
        self.count += 1;
    }

    /// Multiplies the current group. After each product it adds a part of the products of the group before to their totals.
    ///
    /// # Safety
    /// The groups exist for MT tiles of x, NP panels and `rows` rows (FULL: 16 MT), for which the tiles are configured.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline(never)]
    pub(super) unsafe fn multiply<const MT: usize, const NP: usize, const FULL: bool, F: Fn(*const u8)>(
        &mut self,
        tiles: &Tiles,
        rows: usize,
        products: *mut [GroupProducts; 2],
        prefetch: F,
    ) {
        let TileStep { now, before, count, lines, every, ahead } = *self;
        let rows = if FULL { MT * ROWS } else { rows };
        let panel_bytes = now.group_stride * GROUP_BYTES;
        let x = |tile: usize, half: usize| {
            now.x.wrapping_add(tile * now.groups).cast::<u8>().wrapping_add(half * TILE)
        };
        let w = |panel: usize, half: usize| now.codes.wrapping_add(panel * panel_bytes + half * TILE);
        let first = products.cast::<GroupProducts>().wrapping_add(count % 2).cast::<u8>();
        let at = |number: usize| first.wrapping_add(number * TILE);
        let mut ahead = ahead;
        // Vector work after each product. A macro: a closure might not be inlined.
        macro_rules! interleave {
            ($product:expr) => {
                let product: usize = $product;
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
                    add::<MT, NP>(
                        before,
                        rows,
                        products.cast::<GroupProducts>().wrapping_add((count - 1) % 2),
                    );
                }
            };
        }
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
        // SAFETY: whole tiles of x and weights, and the groups that `add` reads (the caller's promise); each product has its own
        // ptrs of 16 rows.
        unsafe {
            for half in 0..2 {
                match (MT, NP) {
                    (2, 2) => {
                        tiles.load::<6>(w(0, half), ROW);
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 6>();
                        interleave!(4 * half);
                        tiles.load::<7>(w(1, half), ROW);
                        tiles.dot_i8_u8::<1, 4, 7>();
                        interleave!(4 * half + 1);
                        tiles.load::<5>(x(1, half), ROW);
                        tiles.dot_i8_u8::<2, 5, 6>();
                        if half == 1 {
                            tiles.store::<0>(at(0), ROW);
                        }
                        interleave!(4 * half + 2);
                        tiles.dot_i8_u8::<3, 5, 7>();
                        if half == 1 {
                            tiles.store::<1>(at(1), ROW);
                        }
                        interleave!(4 * half + 3);
                    }
                    (2, _) => {
                        tiles.load::<6>(w(0, half), ROW);
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 6>();
                        interleave!(2 * half);
                        tiles.load::<5>(x(1, half), ROW);
                        tiles.dot_i8_u8::<2, 5, 6>();
                        interleave!(2 * half + 1);
                    }
                    _ => {
                        tiles.load::<4>(x(0, half), ROW);
                        tiles.load::<5>(w(0, half), ROW);
                        tiles.dot_i8_u8::<0, 4, 5>();
                        interleave!(NP * half);
                        if NP > 1 {
                            tiles.load::<6>(w(1, half), ROW);
                            tiles.dot_i8_u8::<1, 4, 6>();
                            interleave!(NP * half + 1);
                        }
                        if NP > 2 {
                            tiles.load::<7>(w(2, half), ROW);
                            tiles.dot_i8_u8::<2, 4, 7>();
                            if half == 1 {
                                tiles.store::<0>(at(0), ROW);
                            }
                            interleave!(NP * half + 2);
                            tiles.load::<5>(w(3, half), ROW);
                            tiles.dot_i8_u8::<3, 4, 5>();
                            if half == 1 {
                                tiles.store::<1>(at(1), ROW);
                            }
                            interleave!(NP * half + 3);
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

    /// Adds the products of the last group to their totals.
    ///
    /// # Safety
    /// As `multiply`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) unsafe fn finish<const MT: usize, const NP: usize>(
        &self,
        rows: usize,
        products: *mut [GroupProducts; 2],
    ) {
        let products = products.cast::<GroupProducts>().wrapping_add(self.count % 2);
        // SAFETY: the caller's promises.
        unsafe { add::<MT, NP>(self.now, 0..rows, products) };
    }
}

/// totals += products of a group, scaled, for `rows` of MT tiles.
///
/// # Safety
/// The group exists for all these rows and panels; its totals are `[rows][NP]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn add<const MT: usize, const NP: usize>(
    ptrs: GroupPtrs,
    rows: Range<usize>,
    products: *const GroupProducts,
) {
    let products = products.cast::<[i32; LANES]>();
    let old = if ptrs.first { 0 } else { u16::MAX };
    // SAFETY: loads and stores are of whole arrays that exist (the caller's promise).
    unsafe {
        let mut scales = [_mm512_setzero_ps(); NP];
        for p in 0..NP {
            let wide =
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptrs.scales.add(p * ptrs.group_stride).cast()));
            scales[p] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
        }
        for row in rows {
            let (tile, lane) = (row / ROWS, row % ROWS);
            let x = ptrs.x.wrapping_add(tile * ptrs.groups);
            let excess = _mm512_set1_epi32((*x).excess[lane]);
            let scale = _mm512_set1_ps((*x).scales[lane]);
            for p in 0..NP {
                let product = products.add((2 * tile + p) * ROWS + lane);
                let exact = _mm512_sub_epi32(_mm512_load_si512(product.cast()), excess);
                let total = ptrs.totals.add(row * NP + p).cast::<f32>();
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
pub(super) fn prefetch(p: *const u8) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
}

/// As `prefetch`, into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_l2(p: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
}
