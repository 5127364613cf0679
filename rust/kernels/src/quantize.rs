//! Activations as int8: symmetric, one scale per row and group of 128 columns.

use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::packed_rows::{Tiled, Writer};
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Columns that share a scale, in weights and activations.
pub const GROUP: usize = 128;
/// A group whose largest magnitude is below this counts as zero: 127 / largest would overflow.
const SMALLEST: f32 = 1e-35;
/// What the codes of a group sum up to at least.
const LEAST_SUM: f32 = -127.0 * GROUP as f32;
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
    codes: Vec<[i8; GROUP]>,
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
        let rows = x.len() / columns;
        let parts = self.parts(kernels, rows, columns);
        let run = rows.div_ceil(4 * kernels.threads()).max(ROWS_PER_TASK);
        kernels.pool().run(rows.div_ceil(run), &|task| {
            for row in task * run..rows.min((task + 1) * run) {
                dispatch(kernels, Row { x: &x[row * columns..(row + 1) * columns], row, parts: &parts });
            }
        });
    }

    /// Makes room for `rows` rows of `columns`, whose groups several tasks write, all of them.
    pub(crate) fn parts(&mut self, kernels: &Kernels, rows: usize, columns: usize) -> Parts<'_> {
        self.rows = rows;
        self.columns = columns;
        self.groups = columns.div_ceil(GROUP);
        let groups = self.groups;
        self.codes.resize(rows * groups, [0; GROUP]);
        self.scales.resize(rows * groups, 0.0);
        self.sums.resize(rows * groups, 0);
        #[cfg(target_arch = "x86_64")]
        {
            self.has_tiles = kernels.isa() == Isa::Amx && QuantizedRows::takes_tiles(rows);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = kernels;
        Parts {
            codes: Shared::new(&mut self.codes),
            scales: Shared::new(&mut self.scales),
            sums: Shared::new(&mut self.sums),
            groups,
            #[cfg(target_arch = "x86_64")]
            tiled: self.has_tiles.then(|| self.tiled.writer(rows, groups)),
        }
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
        self.codes.as_flattened()
    }

    /// All scales, `[rows][groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Whether so many rows are laid out for tiles where there are any.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn takes_tiles(rows: usize) -> bool {
        rows >= FEWEST_ROWS
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

/// A [`QuantizedRows`] that is being written.
pub(crate) struct Parts<'a> {
    codes: Shared<'a, [i8; GROUP]>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
    groups: usize,
    #[cfg(target_arch = "x86_64")]
    tiled: Option<Writer<'a>>,
}

impl Parts<'_> {
    /// Quantises group `group` of row `row`, up to 128 values.
    ///
    /// # Safety
    /// No two tasks write the same group of the same row.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, s: S, row: usize, group: usize, x: &[f32]) {
        let place = row * self.groups + group;
        // SAFETY: the caller's promise.
        let (codes, scale, sum) = unsafe {
            let codes = &mut self.codes.part(place..place + 1)[0];
            (codes, &mut self.scales.part(place..place + 1)[0], &mut self.sums.part(place..place + 1)[0])
        };
        (*scale, *sum) = quantize_group(s, x, codes);
        #[cfg(target_arch = "x86_64")]
        if let Some(tiled) = &self.tiled {
            // SAFETY: the caller's promise.
            unsafe { tiled.write(row, group, codes, *scale, *sum) };
        }
    }
}

/// Writes the codes of a group of up to 128 values, and zeros after them; gives the scale and the sum of the codes.
#[inline(always)]
fn quantize_group<S: Simd>(s: S, x: &[f32], codes: &mut [i8; GROUP]) -> (f32, i32) {
    // Apart, so that the loops over whole groups have a known length.
    let done = match x.first_chunk::<GROUP>() {
        Some(whole) => encode_group(s, whole, codes),
        None => encode_group(s, x, codes),
    };
    done.unwrap_or_else(|| {
        codes.fill(0);
        (if x.iter().all(|x| x.is_finite()) { 0.0 } else { f32::NAN }, 0)
    })
}

/// As [`quantize_group`]; None, and any codes, for a group of zeros or with NaN or an infinity.
#[inline(always)]
fn encode_group<S: Simd>(s: S, x: &[f32], codes: &mut [i8; GROUP]) -> Option<(f32, i32)> {
    let mut largest = s.zero();
    for part in x.chunks(LANES) {
        largest = s.max(s.abs(s.load_partial(part, 0.0)), largest);
    }
    let largest = s.reduce_max(largest);
    if largest < SMALLEST {
        return None;
    }
    codes[x.len().div_ceil(LANES) * LANES..].fill(0);
    let inverse = s.splat(127.0 / largest);
    let mut sum = s.zero();
    for (part, codes) in x.chunks(LANES).zip(codes.as_chunks_mut::<LANES>().0) {
        sum = s.add(sum, encode(s, s.load_partial(part, 0.0), inverse, codes));
    }
    let sum = s.reduce_add(sum);
    // The code of what is not finite is the least integer.
    (sum >= LEAST_SUM).then_some((largest / 127.0, sum as i32))
}

/// Writes the codes of sixteen values, and gives them: sums of integers this small are exact in f32.
#[inline(always)]
fn encode<S: Simd>(s: S, x: S::F, inverse: S::F, codes: &mut [i8; LANES]) -> S::F {
    let (low, high) = (s.splat(-127.0), s.splat(127.0));
    // Bounds first: a NaN in the second operand comes through.
    let rounded = s.round(s.max(low, s.min(high, s.mul(x, inverse))));
    s.store_i8(rounded, codes);
    s.to_f32(rounded)
}

struct Row<'a> {
    x: &'a [f32],
    row: usize,
    parts: &'a Parts<'a>,
}

impl Op for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group, x) in self.x.chunks(GROUP).enumerate() {
            // SAFETY: each row is in one task.
            unsafe { self.parts.write(s, self.row, group, x) };
        }
    }
}
