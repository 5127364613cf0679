//! y += B h for some rows and panels of a module.

use std::ops::Range;

use super::stack::{Pair, Part, Up};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Rows of the largest register tile, with two panels: the more rows, the fewer conversions of B.
const TALL: usize = 8;
/// Panels or rows of the other tiles.
pub(super) const TILE: usize = 4;
/// Panels between the one in use and the one that is fetched.
const AHEAD: usize = 8;
/// Panels of one strip: their B stays in the first-level cache while rows pass.
const STRIP: usize = 16;

/// Some panels of a module for some rows of a run.
pub(super) struct Expand<'a> {
    pub(super) part: &'a Part,
    /// Panels of y, in which the module has columns.
    pub(super) panels: Range<usize>,
    pub(super) rows: usize,
    /// `[rows][width]`, and more: the values of all modules of a row.
    pub(super) h: &'a [f32],
    pub(super) width: usize,
    /// The base's bias, by column of y.
    pub(super) bias: Option<&'a [f32]>,
    /// The first row's first value of panel `first_panel` is `start`; rows are `stride` apart.
    pub(super) y: &'a Shared<'a, f32>,
    pub(super) first_panel: usize,
    pub(super) start: usize,
    pub(super) stride: usize,
}

impl Expand<'_> {
    /// Adds to y.
    ///
    /// # Safety
    /// No other thread reads or writes these rows and panels of y meanwhile.
    pub(super) unsafe fn add(self, kernels: &Kernels) {
        dispatch(kernels, self);
    }
}

impl Op for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match &self.part.up {
            Up::Bf16(up) => self.strips(s, up),
            Up::F32(up) => self.strips(s, up),
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    fn strips<S: Simd, T: Pair>(&self, s: S, up: &[T]) {
        for start in self.panels.clone().step_by(STRIP) {
            let end = self.panels.end.min(start + STRIP);
            let mut row = 0;
            while row < self.rows {
                row += match self.rows - row {
                    TALL.. if S::WIDE => self.strip::<S, T, TALL, 2>(s, up, row, start..end),
                    TILE.. if S::WIDE => self.strip::<S, T, TILE, TILE>(s, up, row, start..end),
                    TILE.. => self.strip::<S, T, TILE, 1>(s, up, row, start..end),
                    2.. if S::WIDE => self.strip::<S, T, 2, TILE>(s, up, row, start..end),
                    _ => self.strip::<S, T, 1, TILE>(s, up, row, start..end),
                };
            }
        }
    }

    /// MR rows times some panels. Returns MR.
    #[inline(always)]
    fn strip<S: Simd, T: Pair, const MR: usize, const NP: usize>(
        &self,
        s: S,
        up: &[T],
        row: usize,
        panels: Range<usize>,
    ) -> usize {
        let mut panel = panels.start;
        while panel + NP <= panels.end {
            self.tile::<S, T, MR, NP>(s, up, row, panel);
            panel += NP;
        }
        for panel in panel..panels.end {
            self.tile::<S, T, MR, 1>(s, up, row, panel);
        }
        MR
    }

    #[inline(always)]
    fn tile<S: Simd, T: Pair, const MR: usize, const NP: usize>(
        &self,
        s: S,
        up: &[T],
        row: usize,
        panel: usize,
    ) {
        let (rank, pairs, width) = (self.part.rank, self.part.rank.div_ceil(2), self.width);
        let own = panel - self.part.columns.start / LANES;
        let ahead = up.as_ptr().wrapping_add((own + AHEAD) * pairs);
        let up = &up[own * pairs..(own + NP) * pairs];
        let h = &self.h[row * width + self.part.first..][..(MR - 1) * width + rank];
        let mut acc = [[s.zero(); NP]; MR];
        for pair in 0..pairs {
            let mut vectors = [(s.zero(), s.zero()); NP];
            for p in 0..NP {
                if MR < TILE {
                    s.prefetch(ahead.wrapping_add(p * pairs + pair));
                }
                // SAFETY: `up` holds NP panels of `pairs` pairs.
                vectors[p] = unsafe { up.get_unchecked(p * pairs + pair) }.load(s);
            }
            let at = 2 * pair;
            for r in 0..MR {
                // SAFETY: `h` ends behind value `rank - 1` of the last row, and 2 * pair < rank.
                let even = s.splat(unsafe { *h.get_unchecked(r * width + at) });
                for p in 0..NP {
                    acc[r][p] = s.fma(even, vectors[p].0, acc[r][p]);
                }
            }
            if at + 1 < rank {
                for r in 0..MR {
                    // SAFETY: as above, 2 * pair + 1 < rank.
                    let odd = s.splat(unsafe { *h.get_unchecked(r * width + at + 1) });
                    for p in 0..NP {
                        acc[r][p] = s.fma(odd, vectors[p].1, acc[r][p]);
                    }
                }
            }
        }
        let columns = &self.part.columns;
        let whole = columns.start <= panel * LANES && (panel + NP) * LANES <= columns.end;
        if whole && self.part.bias.is_none() && self.part.gain.is_none() {
            return self.finish_plain(s, row, panel, acc);
        }
        for r in 0..MR {
            for p in 0..NP {
                self.finish(s, row + r, panel + p, acc[r][p]);
            }
        }
    }

    /// Adds a tile of whole panels, without a bias and a gain.
    #[inline(always)]
    fn finish_plain<S: Simd, const MR: usize, const NP: usize>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        deltas: [[S::F; NP]; MR],
    ) {
        let start = self.start + row * self.stride + (panel - self.first_panel) * LANES;
        for (r, deltas) in deltas.into_iter().enumerate() {
            let start = start + r * self.stride;
            // SAFETY: tasks have different rows or panels (the caller's promise); a task holds one part at a time.
            let y = unsafe { self.y.part(start..start + NP * LANES) };
            for (y, delta) in y.as_chunks_mut::<LANES>().0.iter_mut().zip(deltas) {
                s.store(s.add(s.load(y), delta), y);
            }
        }
    }

    /// Adds `delta` to a panel of a row of y.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, row: usize, panel: usize, delta: S::F) {
        let Part { columns, bias, gain, .. } = self.part;
        let (first, own) = (panel * LANES, panel - columns.start / LANES);
        let (low, high) = (columns.start.max(first), columns.end.min(first + LANES));
        let start = self.start + row * self.stride + (panel - self.first_panel) * LANES + (low - first);
        // SAFETY: tasks have different rows or panels (the caller's promise); a task holds one part at a time.
        let y = unsafe { self.y.part(start..start + (high - low)) };
        // Lanes of the module, moved to where they stand in the panel.
        let place = |values: &[f32]| match values.try_into() {
            Ok(all) => s.load(all),
            Err(_) => {
                let mut lanes = [0.0; LANES];
                lanes[low - first..high - first].copy_from_slice(values);
                s.load(&lanes)
            }
        };
        let mut value = place(y);
        let base = self.bias.filter(|_| gain.is_some()).map(|bias| place(&bias[low..high]));
        if let Some(base) = base {
            value = s.sub(value, base);
        }
        value = s.add(value, delta);
        if let Some(bias) = bias {
            value = s.add(value, s.load(&bias[own]));
        }
        if let Some(gain) = gain {
            let gain = s.load(&gain[own]);
            value = base.map_or_else(|| s.mul(gain, value), |base| s.fma(gain, value, base));
        }
        if let Ok(all) = (&mut *y).try_into() {
            return s.store(value, all);
        }
        let mut lanes = [0.0; LANES];
        s.store(value, &mut lanes);
        y.copy_from_slice(&lanes[low - first..high - first]);
    }
}
