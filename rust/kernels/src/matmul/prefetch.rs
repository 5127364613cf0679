//! Fetching weights from memory before they are needed.
//!
//! Tiles read NP panels side by side, a cache line of each at a step. With one tile of rows, what limits is memory: lines
//! are asked for a fixed distance ahead. With more, the first tile would wait for memory and the others leave it idle: each
//! tile fetches its share of the panels that come next into the second-level cache, so that memory and arithmetic overlap.

use std::sync::OnceLock;

use crate::simd::Simd;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Steps of a tile between two calls of `share`: in the innermost loop it would cost more than it gains.
pub(super) const STEP: usize = 32;
/// Fractions of a line, so that a step may fetch less than one.
const ONE: usize = 256;

/// How lines are asked for where one tile of rows reads the panels.
#[derive(Clone, Copy)]
struct Near {
    /// Lines ahead, those of all panels together.
    lines: usize,
    /// Whether they go to the second-level cache: else to the first.
    second: bool,
}

impl Near {
    /// What is fastest on this machine: on Zen 4, 80 lines to the second-level cache read a matrix 1.3 times as fast as 192 to the first; on
    /// Zen 5 and Sapphire Rapids, whose first-level caches are larger, the second level was no faster.
    fn of_machine() -> Near {
        static FOUND: OnceLock<Near> = OnceLock::new();
        *FOUND.get_or_init(|| {
            if before_zen_5() { Near { lines: 80, second: true } } else { Near { lines: 192, second: false } }
        })
    }
}

/// Whether this is a core of AMD's older than Zen 5 (AMD, CPUID Specification: vendor and family).
fn before_zen_5() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        const ZEN_5: u32 = 0x1a;
        let (vendor, version) = (__cpuid(0), __cpuid(1).eax);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
        name.as_flattened() == b"AuthenticAMD" && family < ZEN_5
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

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
    near: Near,
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
        Fetch {
            here,
            next,
            panel_bytes,
            rate,
            credit: 0,
            at: next,
            tile: 0,
            tiles,
            panels,
            near: Near::of_machine(),
        }
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
        let ahead = (line + self.near.lines / NP) * LINE;
        let (base, ahead) = match ahead.checked_sub(self.panel_bytes) {
            None => (self.here, ahead),
            Some(_) if self.next.is_null() => return,
            Some(ahead) => (self.next, ahead),
        };
        for p in 0..NP {
            let line = base.wrapping_add(p * self.panel_bytes + ahead);
            if self.near.second { s.prefetch_l2(line) } else { s.prefetch(line) }
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

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What the system calls this machine.
    fn field(of: &str, name: &str) -> Option<String> {
        let line = of.lines().find(|line| line.starts_with(name))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    }

    #[test]
    fn the_family_is_the_one_that_the_system_sees() {
        let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else {
            eprintln!("skipped: no /proc/cpuinfo");
            return;
        };
        let (Some(vendor), Some(family)) = (field(&text, "vendor_id"), field(&text, "cpu family")) else {
            eprintln!("skipped: /proc/cpuinfo names no vendor and family");
            return;
        };
        let old = vendor == "AuthenticAMD" && family.parse::<u32>().is_ok_and(|family| family < 26);
        assert_eq!(before_zen_5(), old, "{vendor}, family {family}");
    }
}
