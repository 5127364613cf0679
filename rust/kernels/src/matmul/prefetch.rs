//! Prefetch of weights.
//!
//! A tile reads NP panels in parallel, one cache line of each per step.
//! - One tile of rows: memory is the limit. `ahead` prefetches a fixed distance ahead, tuned per CPU.
//! - Several tiles: only the first tile would wait for memory. Each tile prefetches its part of the next panels into the
//!   L2 cache with `next_lines`. Memory and arithmetic overlap.

use std::sync::OnceLock;

use crate::simd::Simd;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Steps of a tile between two calls of `next_lines`: a call per step is too expensive.
pub(super) const STEP: usize = 32;
/// One line in units of `rate`: a step may prefetch a fraction of a line.
const ONE: usize = 256;

/// Prefetch distance of the decode path (one tile of rows).
#[derive(Clone, Copy)]
struct Distance {
    /// Lines ahead, summed over all panels.
    lines: usize,
    /// Prefetch into the L2 cache instead of L1.
    to_l2: bool,
}

impl Distance {
    /// The decode prefetch distance, tuned per CPU.
    ///
    /// Zen 4: 80 lines into L2 read a matrix 1.3 times as fast as 192 lines into L1. Zen 5 and Sapphire Rapids have
    /// larger L1 caches; L2 was not faster there.
    fn of_cpu() -> Distance {
        static FOUND: OnceLock<Distance> = OnceLock::new();
        *FOUND.get_or_init(|| {
            if before_zen_5() {
                Distance { lines: 80, to_l2: true }
            } else {
                Distance { lines: 192, to_l2: false }
            }
        })
    }
}

/// Whether this CPU is from AMD and older than Zen 5 (AMD, CPUID Specification: vendor and family).
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

/// Prefetch state of one tile.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// The current panels.
    here: *const u8,
    /// The next panels; null: none.
    next: *const u8,
    panel_bytes: usize,
    /// Lines per step of `next_lines`, times `ONE`.
    rate: usize,
    credit: usize,
    /// The next line to prefetch.
    at: *const u8,
    tile: usize,
    tiles: usize,
    panels: usize,
    distance: Distance,
}

impl Prefetch {
    /// For `tiles` tiles over `panels` panels. The first two panels begin at `here` and `second`, the next ones at `next`.
    #[inline(always)]
    pub(super) fn new(
        here: *const u8,
        second: *const u8,
        next: Option<*const u8>,
        panels: usize,
        tiles: usize,
    ) -> Prefetch {
        let panel_bytes = second.addr() - here.addr();
        let next = next.unwrap_or(std::ptr::null());
        let rate = if !next.is_null() { panels * ONE / tiles } else { 0 };
        Prefetch {
            here,
            next,
            panel_bytes,
            rate,
            credit: 0,
            at: next,
            tile: 0,
            tiles,
            panels,
            distance: Distance::of_cpu(),
        }
    }

    /// For a tile without prefetch.
    #[inline(always)]
    pub(super) fn nothing() -> Prefetch {
        let null = std::ptr::null();
        Prefetch::new(null, null, None, 0, 2)
    }

    /// Moves on to the part of the next tile.
    #[inline(always)]
    pub(super) fn next_tile(&mut self) {
        self.tile += 1;
        let lines = self.panels * self.panel_bytes / LINE;
        self.at = self.next.wrapping_add(lines * self.tile / self.tiles * LINE);
    }

    /// One tile of rows: prefetches ahead of line `line` of each of NP panels.
    #[inline(always)]
    pub(super) fn ahead<S: Simd, const NP: usize>(&self, s: S, line: usize) {
        let ahead = (line + self.distance.lines / NP) * LINE;
        let (base, ahead) = match ahead.checked_sub(self.panel_bytes) {
            None => (self.here, ahead),
            Some(_) if self.next.is_null() => return,
            Some(ahead) => (self.next, ahead),
        };
        for p in 0..NP {
            let line = base.wrapping_add(p * self.panel_bytes + ahead);
            if self.distance.to_l2 { s.prefetch_l2(line) } else { s.prefetch(line) }
        }
    }

    /// Several tiles of rows: prefetches the lines of `STEP` steps of this tile.
    #[inline(always)]
    pub(super) fn next_lines<S: Simd>(&mut self, s: S) {
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

    /// A field of /proc/cpuinfo.
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
