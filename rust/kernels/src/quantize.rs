//! Activations as int8: symmetric, one scale per row and group of 128 columns.

use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};
#[cfg(target_arch = "x86_64")]
use crate::tiled::Tiled;

/// Columns that share a scale, in weights and activations.
pub const GROUP: usize = 128;
/// A group whose largest magnitude is below this counts as zero: 127 / largest would overflow.
const SMALLEST: f32 = 1e-35;
/// Rows that one task quantises at least.
const ROWS_PER_TASK: usize = 4;
/// Fewer rows than this wait for memory on any level, so they are not laid out for tiles.
#[cfg(target_arch = "x86_64")]
const FEWEST_ROWS: usize = 5;

/// Rows of activations as int8 codes in -127..=127: x ~ code * scale of its group.
///
/// Made once and used by every matmul over the same input; keep the value and its memory is used again.
#[derive(Debug, Clone, Default)]
pub struct QuantizedRows {
    rows: usize,
    columns: usize,
    groups: usize,
    /// `[rows][groups * 128]`, padded with zeros.
    codes: Vec<i8>,
    /// `[rows][groups]`: largest magnitude / 127; 0 for a group of zeros; NaN where x holds NaN or an infinity.
    scales: Vec<f32>,
    /// `[rows][groups]`: the sum of the codes.
    sums: Vec<i32>,
    /// The same for tiles, where the rows are for them.
    #[cfg(target_arch = "x86_64")]
    tiled: Tiled,
    #[cfg(target_arch = "x86_64")]
    has_tiles: bool,
}

impl QuantizedRows {
    /// No rows; memory comes with the first `quantize`.
    pub fn new() -> QuantizedRows {
        QuantizedRows::default()
    }

    /// Replaces the content by `x`, rows of `columns` f32 each.
    ///
    /// Codes are rounded to the nearest, ties to even. A group that holds NaN or an infinity gets the scale NaN, so
    /// that every output that reads it becomes NaN.
    pub fn quantize(&mut self, kernels: &Kernels, x: &[f32], columns: usize) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
        self.rows = x.len() / columns;
        self.columns = columns;
        self.groups = columns.div_ceil(GROUP);
        self.codes.resize(self.rows * self.groups * GROUP, 0);
        self.scales.resize(self.rows * self.groups, 0.0);
        self.sums.resize(self.rows * self.groups, 0);
        let (groups, rows) = (self.groups, self.rows);
        #[cfg(target_arch = "x86_64")]
        let tiles = {
            self.has_tiles = kernels.isa() == Isa::Amx && rows >= FEWEST_ROWS;
            self.has_tiles.then(|| self.tiled.writer(rows, groups))
        };
        let (codes, scales, sums) =
            (Shared::new(&mut self.codes), Shared::new(&mut self.scales), Shared::new(&mut self.sums));
        let run = rows.div_ceil(4 * kernels.threads()).max(ROWS_PER_TASK);
        kernels.pool().run(rows.div_ceil(run), &|task| {
            for row in task * run..rows.min((task + 1) * run) {
                let of_row = row * groups..(row + 1) * groups;
                // SAFETY: each row is in one task, and the parts of different rows are disjoint.
                let (codes, scales, sums) = unsafe {
                    let codes = codes.part(row * groups * GROUP..(row + 1) * groups * GROUP);
                    (codes, scales.part(of_row.clone()), sums.part(of_row))
                };
                let x = &x[row * columns..(row + 1) * columns];
                dispatch(kernels, Row { x, codes: &mut *codes, scales: &mut *scales, sums: &mut *sums });
                #[cfg(target_arch = "x86_64")]
                if let Some(tiles) = &tiles {
                    // SAFETY: as above.
                    unsafe { tiles.row(row, codes, scales, sums) };
                }
            }
        });
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns, without padding.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of groups in a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// All codes, `[rows][groups * 128]`, zero beyond the last column.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// All scales, `[rows][groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The rows as tiles, if [`QuantizedRows::quantize`] was given the level that has them and rows enough.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiled(&self) -> Option<&Tiled> {
        self.has_tiles.then_some(&self.tiled)
    }

    /// The sum of each group's codes, `[rows][groups]`.
    pub(crate) fn sums(&self) -> &[i32] {
        &self.sums
    }
}

struct Row<'a> {
    x: &'a [f32],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Op for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group, (x, codes)) in self.x.chunks(GROUP).zip(self.codes.chunks_exact_mut(GROUP)).enumerate() {
            let mut largest = s.zero();
            // Stays zero, or turns into NaN at the first NaN or infinity.
            let mut fault = s.zero();
            for part in x.chunks(LANES) {
                let v = s.load_partial(part, 0.0);
                largest = s.max(s.abs(v), largest);
                fault = s.fma(v, s.zero(), fault);
            }
            let (largest, fault) = (s.reduce_max(largest), s.reduce_add(fault));
            if fault.is_nan() || largest < SMALLEST {
                codes.fill(0);
                self.scales[group] = if fault.is_nan() { f32::NAN } else { 0.0 };
                self.sums[group] = 0;
                continue;
            }
            self.scales[group] = largest / 127.0;
            let inverse = s.splat(127.0 / largest);
            let (low, high) = (s.splat(-127.0), s.splat(127.0));
            codes[x.len().div_ceil(LANES) * LANES..].fill(0);
            let mut sum = 0;
            for (part, codes) in x.chunks(LANES).zip(codes.as_chunks_mut::<LANES>().0) {
                let v = s.mul(s.load_partial(part, 0.0), inverse);
                s.store_i8(s.round(s.max(low, s.min(high, v))), codes);
                sum += codes.iter().map(|&code| i32::from(code)).sum::<i32>();
            }
            self.sums[group] = sum;
        }
    }
}
