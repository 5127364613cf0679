//! int8 quantisation of activations: symmetric, one scale per row and group of 128 columns, each group rotated or not.
//!
//! ```text
//! x [rows, columns] f32  ->  codes [rows][groups * 128] i8, scales [rows][groups] f32, sums of codes [rows][groups] i32
//! ```

use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::packed_rows::{PackedRows, PackedRowsWriter};
use crate::parallel::Shared;
use crate::quant_scheme::{GROUP, Rotation};
use crate::rotation::rotate;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Groups with a smaller maximum are zero: 127 / max would overflow.
const MIN_MAGNITUDE: f32 = 1e-35;
/// Minimum sum of the codes of a group.
const MIN_SUM: f32 = -127.0 * GROUP as f32;
/// Minimum rows of one task.
const MIN_ROWS_PER_TASK: usize = 4;
/// Minimum rows for AMX tiles. Fewer rows are limited by memory on any level.
#[cfg(target_arch = "x86_64")]
const MIN_AMX_ROWS: usize = 5;

/// Rows of activations as int8 codes in -127..=127: x ~ code * scale of its group.
///
/// Quantise once, then use the value for every matmul over the same input. A value reuses its memory.
#[derive(Debug, Clone, Default)]
pub struct QuantizedRows {
    rows: usize,
    columns: usize,
    groups: usize,
    rotation: Rotation,
    /// `[rows][groups * 128]`, padded with zeros before the rotation.
    codes: Vec<[i8; GROUP]>,
    /// `[rows][groups]`: largest magnitude / 127; 0 for a group of zeros; NaN where x holds NaN or an infinity.
    scales: Vec<f32>,
    /// `[rows][groups]`: the sum of the codes.
    sums: Vec<i32>,
    /// The same rows packed for AMX tiles; valid with `has_packed`.
    #[cfg(target_arch = "x86_64")]
    packed: PackedRows,
    #[cfg(target_arch = "x86_64")]
    has_packed: bool,
}

impl QuantizedRows {
    /// No rows; the first `quantize` allocates memory.
    pub fn new() -> QuantizedRows {
        QuantizedRows::default()
    }

    /// Replaces the content by `x` `[rows, columns]`, rotated as the weights are that it will be multiplied with.
    ///
    /// Codes are rounded to the nearest, ties to even. A group with NaN or an infinity gets the scale NaN: then every
    /// output of this group is NaN.
    pub fn quantize(&mut self, kernels: &Kernels, x: &[f32], columns: usize, rotation: Rotation) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
        let rows = x.len() / columns;
        let writer = self.writer(kernels, rows, columns, rotation);
        let rows_per_task = rows.div_ceil(4 * kernels.threads()).max(MIN_ROWS_PER_TASK);
        kernels.pool().run(rows.div_ceil(rows_per_task), &|task| {
            for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                dispatch(
                    kernels,
                    QuantizeRow { x: &x[row * columns..(row + 1) * columns], row, writer: &writer },
                );
            }
        });
    }

    /// A writer for `rows` rows of `columns` values. Several tasks may write; they must write all groups.
    pub(crate) fn writer(
        &mut self,
        kernels: &Kernels,
        rows: usize,
        columns: usize,
        rotation: Rotation,
    ) -> RowsWriter<'_> {
        self.rows = rows;
        self.columns = columns;
        self.groups = columns.div_ceil(GROUP);
        self.rotation = rotation;
        let groups = self.groups;
        self.codes.resize(rows * groups, [0; GROUP]);
        self.scales.resize(rows * groups, 0.0);
        self.sums.resize(rows * groups, 0);
        #[cfg(target_arch = "x86_64")]
        {
            self.has_packed = kernels.isa() == Isa::Amx && QuantizedRows::uses_amx(rows);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = kernels;
        RowsWriter {
            codes: Shared::new(&mut self.codes),
            scales: Shared::new(&mut self.scales),
            sums: Shared::new(&mut self.sums),
            groups,
            rotation,
            #[cfg(target_arch = "x86_64")]
            packed: self.has_packed.then(|| self.packed.writer(rows, groups)),
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

    /// How the groups are rotated.
    pub fn rotation(&self) -> Rotation {
        self.rotation
    }

    /// All codes, `[rows][groups * 128]`, zero beyond the last column where groups are not rotated.
    pub fn codes(&self) -> &[i8] {
        self.codes.as_flattened()
    }

    /// All scales, `[rows][groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Whether this number of rows is packed for AMX tiles on machines with AMX.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn uses_amx(rows: usize) -> bool {
        rows >= MIN_AMX_ROWS
    }

    /// The rows packed for AMX tiles; None on other levels and for few rows.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn packed(&self) -> Option<&PackedRows> {
        self.has_packed.then_some(&self.packed)
    }

    /// The sum of each group's codes, `[rows][groups]`.
    pub(crate) fn sums(&self) -> &[i32] {
        &self.sums
    }
}

/// Writes the groups of a [`QuantizedRows`].
pub(crate) struct RowsWriter<'a> {
    codes: Shared<'a, [i8; GROUP]>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
    groups: usize,
    rotation: Rotation,
    #[cfg(target_arch = "x86_64")]
    packed: Option<PackedRowsWriter<'a>>,
}

impl RowsWriter<'_> {
    /// Quantises group `group` of row `row`, up to 128 values.
    ///
    /// # Safety
    /// No two tasks write the same group of the same row.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, s: S, row: usize, group: usize, x: &[f32]) {
        let index = row * self.groups + group;
        // SAFETY: the caller's promise.
        let (codes, scale, sum) = unsafe {
            let codes = &mut self.codes.part(index..index + 1)[0];
            (codes, &mut self.scales.part(index..index + 1)[0], &mut self.sums.part(index..index + 1)[0])
        };
        (*scale, *sum) = match self.rotation {
            Rotation::None => quantize_group(s, x, codes),
            Rotation::Hadamard => quantize_group(s, &rotate(s, x), codes),
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = &self.packed {
            // SAFETY: the caller's promise.
            unsafe { packed.write(row, group, codes, *scale, *sum) };
        }
    }
}

/// Writes the codes of at most 128 values, then zeros. Returns the scale and the sum of the codes.
#[inline(always)]
fn quantize_group<S: Simd>(s: S, x: &[f32], codes: &mut [i8; GROUP]) -> (f32, i32) {
    // Two calls: the loops over whole groups have a constant length.
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
    if largest < MIN_MAGNITUDE {
        return None;
    }
    codes[x.len().div_ceil(LANES) * LANES..].fill(0);
    let inverse = s.splat(127.0 / largest);
    let mut sum = s.zero();
    for (part, codes) in x.chunks(LANES).zip(codes.as_chunks_mut::<LANES>().0) {
        sum = s.add(sum, encode(s, s.load_partial(part, 0.0), inverse, codes));
    }
    let sum = s.reduce_add(sum);
    // The code of NaN or an infinity is the minimum integer.
    (sum >= MIN_SUM).then_some((largest / 127.0, sum as i32))
}

/// Writes the codes of 16 values and returns them as f32: sums of such small integers are exact.
#[inline(always)]
fn encode<S: Simd>(s: S, x: S::F, inverse: S::F, codes: &mut [i8; LANES]) -> S::F {
    let (low, high) = (s.splat(-127.0), s.splat(127.0));
    // Bounds first: a NaN in the second operand passes through.
    let rounded = s.round(s.max(low, s.min(high, s.mul(x, inverse))));
    s.store_i8(rounded, codes);
    s.to_f32(rounded)
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    row: usize,
    writer: &'a RowsWriter<'a>,
}

impl Op for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group, x) in self.x.chunks(GROUP).enumerate() {
            // SAFETY: each row is in one task.
            unsafe { self.writer.write(s, self.row, group, x) };
        }
    }
}
