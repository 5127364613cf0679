//! Where finished sums go: to rows of f32, or through a gated activation to int8.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Part;
use crate::activation::{Activation, apply};
use crate::parallel::Shared;
use crate::quantize::{GROUP, Parts};
use crate::simd::{Avx512, LANES, Simd};

/// Takes the sums of jobs. Jobs have different rows or panels.
pub(super) trait Sink: Sync {
    /// Whether a product's two panels are a panel of gates and its panel of factors.
    const GATED: bool;

    /// Says that the sums of a part will come soon.
    fn expect<const NP: usize>(&self, part: Part);

    /// Takes the sums `[rows][NP][16]` of a part, `done` rows after the first of its job. `kept` is the thread's, for what it
    /// keeps until `end`.
    fn take<const NP: usize>(&self, part: Part, done: usize, totals: &[[f32; LANES]], kept: &mut Vec<f32>);

    /// All panels before `panel` are done for these rows.
    fn end(&self, rows: Range<usize>, panel: usize, kept: &[f32]);
}

/// y + bias, row `r` beginning at `r * stride`.
pub(super) struct Plain<'a> {
    pub(super) n: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: &'a Shared<'a, f32>,
    pub(super) stride: usize,
}

impl Sink for Plain<'_> {
    const GATED: bool = false;

    #[inline(always)]
    fn expect<const NP: usize>(&self, part: Part) {
        for row in part.row..part.row + part.rows {
            let y = self.y.as_ptr().wrapping_add(row * self.stride + part.panel * LANES);
            for p in 0..NP {
                // SAFETY: a prefetch of any address is harmless.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(y.wrapping_add(p * LANES).cast()) };
            }
        }
    }

    #[inline(always)]
    fn take<const NP: usize>(&self, part: Part, _: usize, totals: &[[f32; LANES]], _: &mut Vec<f32>) {
        // SAFETY: sums come from threads whose level is AMX.
        unsafe { self.write::<NP>(part, totals) }
    }

    fn end(&self, _: Range<usize>, _: usize, _: &[f32]) {}
}

impl Plain<'_> {
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
}

/// f(gate) * up, quantised a group of columns at a time.
pub(super) struct Gated<'a> {
    pub(super) f: Activation,
    pub(super) inner: usize,
    pub(super) out: &'a Parts<'a>,
}

impl Sink for Gated<'_> {
    const GATED: bool = true;

    fn expect<const NP: usize>(&self, _: Part) {}

    /// Keeps the activated values, `[rows][128]`.
    #[inline(always)]
    fn take<const NP: usize>(&self, part: Part, done: usize, totals: &[[f32; LANES]], kept: &mut Vec<f32>) {
        let rows = done + part.rows;
        if kept.len() < rows * GROUP {
            kept.resize(rows * GROUP, 0.0);
        }
        let column = part.panel * LANES % GROUP;
        // SAFETY: sums come from threads whose level is AMX.
        unsafe { self.activate(&totals[..2 * part.rows], &mut kept[done * GROUP + column..rows * GROUP]) }
    }

    fn end(&self, rows: Range<usize>, panel: usize, kept: &[f32]) {
        let columns = panel * LANES;
        if columns.is_multiple_of(GROUP) || columns == self.inner {
            let group = (columns - 1) / GROUP;
            let width = columns - group * GROUP;
            // SAFETY: as above; jobs have different rows or groups.
            unsafe { self.quantize(rows, group, width, kept) }
        }
    }
}

impl Gated<'_> {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn activate(&self, totals: &[[f32; LANES]], to: &mut [f32]) {
        // SAFETY: this function's own features.
        let s = unsafe { Avx512::new() };
        for (pair, to) in totals.as_chunks::<2>().0.iter().zip(to.chunks_mut(GROUP)) {
            let active = apply(s, self.f, s.load(&pair[0]));
            s.store_partial(s.mul(active, s.load(&pair[1])), &mut to[..LANES]);
        }
    }

    /// # Safety
    /// No other thread writes these rows of the group.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn quantize(&self, rows: Range<usize>, group: usize, width: usize, kept: &[f32]) {
        // SAFETY: this function's own features.
        let s = unsafe { Avx512::new() };
        for (row, x) in rows.zip(kept.chunks(GROUP)) {
            // SAFETY: the caller's promise.
            unsafe { self.out.write(s, row, group, &x[..width]) };
        }
    }
}
