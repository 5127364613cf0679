//! Epilogues: store the sums as f32 rows, or apply a gated activation and quantise to int8.

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::PanelBlock;
use crate::activation::{Activation, apply};
use crate::matmul::addend::Addend;
use crate::parallel::Shared;
use crate::quant_scheme::GROUP;
use crate::quantize::RowsWriter;
use crate::simd::{Avx512, LANES, Simd};

/// Consumes the sums of jobs. Jobs have different rows or panels.
pub(super) trait Epilogue: Sync {
    /// Whether the two panels of a product are a gate panel and its up panel.
    const GATED: bool;

    /// Prefetches the output of a block.
    fn prefetch<const NP: usize>(&self, part: PanelBlock);

    /// Consumes the sums `[rows][NP][16]` of a block, which it may change, `done` rows after the first row of its job. `pending` is the
    /// thread's buffer for values until `finish_panels`.
    fn store<const NP: usize>(
        &self,
        part: PanelBlock,
        done: usize,
        totals: &mut [[f32; LANES]],
        pending: &mut Vec<f32>,
    );

    /// Called when the panels `panels`, and those before them, are done for these rows.
    fn finish_panels(&self, rows: Range<usize>, panels: Range<usize>, pending: &[f32]);
}

/// Stores sum + bias, then adds the addend; row `r` of y begins at `r * stride`.
pub(super) struct StoreEpilogue<'a> {
    pub(super) n: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) addend: Option<&'a dyn Addend>,
    pub(super) y: &'a Shared<'a, f32>,
    pub(super) stride: usize,
}

impl Epilogue for StoreEpilogue<'_> {
    const GATED: bool = false;

    #[inline(always)]
    fn prefetch<const NP: usize>(&self, part: PanelBlock) {
        for row in part.row..part.row + part.rows {
            let y = self.y.as_ptr().wrapping_add(row * self.stride + part.panel * LANES);
            for p in 0..NP {
                // SAFETY: a prefetch of any address is harmless.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(y.wrapping_add(p * LANES).cast()) };
            }
        }
    }

    #[inline(always)]
    fn store<const NP: usize>(
        &self,
        part: PanelBlock,
        _: usize,
        totals: &mut [[f32; LANES]],
        _: &mut Vec<f32>,
    ) {
        // SAFETY: the level of the calling thread is AMX.
        unsafe { self.write::<NP>(part, totals) }
    }

    fn finish_panels(&self, rows: Range<usize>, panels: Range<usize>, _: &[f32]) {
        if let Some(addend) = self.addend {
            let start = rows.start * self.stride + panels.start * LANES;
            // SAFETY: jobs have different rows or panels.
            unsafe { addend.add(rows, panels, self.y, (start, self.stride)) };
        }
    }
}

impl StoreEpilogue<'_> {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn write<const NP: usize>(&self, part: PanelBlock, totals: &[[f32; LANES]]) {
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
                // SAFETY: 16 values are read, and the lanes of the mask are written.
                unsafe {
                    let total = _mm512_loadu_ps(total.as_ptr());
                    let value = if self.bias.is_some() { _mm512_add_ps(total, bias) } else { total };
                    _mm512_mask_storeu_ps(y.as_mut_ptr(), mask, value);
                }
            }
        }
    }
}

/// Writes f(gate) * up as int8, one group of 128 columns at a time.
pub(super) struct GatedEpilogue<'a> {
    pub(super) f: Activation,
    pub(super) inner: usize,
    pub(super) addend: Option<&'a dyn Addend>,
    pub(super) out: &'a RowsWriter<'a>,
}

impl Epilogue for GatedEpilogue<'_> {
    const GATED: bool = true;

    fn prefetch<const NP: usize>(&self, _: PanelBlock) {}

    /// Keeps the activated values in `pending`, `[rows][128]`.
    #[inline(always)]
    fn store<const NP: usize>(
        &self,
        part: PanelBlock,
        done: usize,
        totals: &mut [[f32; LANES]],
        pending: &mut Vec<f32>,
    ) {
        let rows = done + part.rows;
        if pending.len() < rows * GROUP {
            pending.resize(rows * GROUP, 0.0);
        }
        if let Some(addend) = self.addend {
            let up = part.panel + self.inner / LANES;
            let rows = part.row..part.row + part.rows;
            let totals = totals[..2 * part.rows].as_flattened_mut();
            addend.add_to(rows.clone(), part.panel..part.panel + 1, totals, 2 * LANES);
            addend.add_to(rows, up..up + 1, &mut totals[LANES..], 2 * LANES);
        }
        let column = part.panel * LANES % GROUP;
        // SAFETY: the level of the calling thread is AMX.
        unsafe { self.activate(&totals[..2 * part.rows], &mut pending[done * GROUP + column..rows * GROUP]) }
    }

    fn finish_panels(&self, rows: Range<usize>, panels: Range<usize>, pending: &[f32]) {
        let columns = panels.end * LANES;
        if columns.is_multiple_of(GROUP) || columns == self.inner {
            let group = (columns - 1) / GROUP;
            let width = columns - group * GROUP;
            // SAFETY: as above; jobs have different rows or groups.
            unsafe { self.quantize(rows, group, width, pending) }
        }
    }
}

impl GatedEpilogue<'_> {
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
    unsafe fn quantize(&self, rows: Range<usize>, group: usize, width: usize, pending: &[f32]) {
        // SAFETY: this function's own features.
        let s = unsafe { Avx512::new() };
        for (row, x) in rows.zip(pending.chunks(GROUP)) {
            // SAFETY: the caller's promise.
            unsafe { self.out.write(s, row, group, &x[..width]) };
        }
    }
}
