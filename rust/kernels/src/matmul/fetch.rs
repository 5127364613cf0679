//! Fetching weights from memory before they are needed.
//!
//! Tiles read NP panels side by side, a cache line of each at a step. With one tile of rows, what limits is memory: lines
//! are asked for a fixed distance ahead. With more, the first tile would wait for memory and the others leave it idle: each
//! tile fetches its share of the panels that come next into the second-level cache, so that memory and arithmetic overlap.

use crate::simd::Simd;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Distance ahead where one tile of rows reads the panels.
const AHEAD: usize = 48 * LINE;
/// Steps of a tile between two calls of `share`: in the innermost loop it would cost more than it gains.
pub(super) const STEP: usize = 32;
/// Fractions of a line, so that a step may fetch less than one.
const ONE: usize = 256;

/// What a tile fetches while it computes.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    /// The panels being read.
    here: *const u8,
    /// The panels that come next; null: none.
    next: *const u8,
    panel_bytes: usize,
    /// Lines that each step of `share` fetches, times `ONE`.
    rate: usize,
    credit: usize,
    /// The next line to fetch.
    at: *const u8,
    tile: usize,
    tiles: usize,
    panels: usize,
}

impl Fetch {
    /// For `tiles` tiles over `panels` panels, the first two of which begin at `here` and `second`; the panels at `next`
    /// come after them.
    #[inline(always)]
    pub(super) fn new(
        here: *const u8,
        second: *const u8,
        next: Option<*const u8>,
        panels: usize,
        tiles: usize,
    ) -> Fetch {
        let panel_bytes = second.addr() - here.addr();
        let next = next.unwrap_or(std::ptr::null());
        let rate = if !next.is_null() { panels * ONE / tiles } else { 0 };
        Fetch { here, next, panel_bytes, rate, credit: 0, at: next, tile: 0, tiles, panels }
    }

    /// For a tile that fetches nothing.
    #[inline(always)]
    pub(super) fn nothing() -> Fetch {
        let null = std::ptr::null();
        Fetch::new(null, null, None, 0, 2)
    }

    /// Goes on to the next tile's share.
    #[inline(always)]
    pub(super) fn next_tile(&mut self) {
        self.tile += 1;
        let lines = self.panels * self.panel_bytes / LINE;
        self.at = self.next.wrapping_add(lines * self.tile / self.tiles * LINE);
    }

    /// Where one tile reads the panels: fetches ahead of line `line` of each of NP panels.
    #[inline(always)]
    pub(super) fn near<S: Simd, const NP: usize>(&self, s: S, line: usize) {
        let ahead = line * LINE + AHEAD;
        let (base, ahead) = match ahead.checked_sub(self.panel_bytes) {
            None => (self.here, ahead),
            Some(_) if self.next.is_null() => return,
            Some(ahead) => (self.next, ahead),
        };
        for p in 0..NP {
            s.prefetch(base.wrapping_add(p * self.panel_bytes + ahead));
        }
    }

    /// Where several tiles read the panels: fetches what falls to `STEP` steps of this tile.
    #[inline(always)]
    pub(super) fn share<S: Simd>(&mut self, s: S) {
        self.credit += self.rate * STEP;
        while self.credit >= ONE {
            s.prefetch_l2(self.at);
            self.at = self.at.wrapping_add(LINE);
            self.credit -= ONE;
        }
    }
}
