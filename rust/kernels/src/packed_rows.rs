//! int8 rows packed for AMX tiles: 16 rows and one group of 128 columns together.
//!
//! ```text
//! PackedGroup = codes  [half 0: rows 0..16 x columns 0..64] [half 1: rows 0..16 x columns 64..128]   i8, 2 x 1 KiB
//!               scales [16] f32
//!               excess [16] i32
//! ```

use crate::amx::{ROW, ROWS};
use crate::parallel::Shared;

/// Tiles of a group.
const TILES: usize = 2;
/// Codes of a group of one row. `quantize::GROUP` is equal: arrays of both are one type.
const GROUP: usize = TILES * ROW;

/// One group of 16 rows. Rows beyond the last one have undefined values.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct PackedGroup {
    pub(crate) codes: [[[i8; ROW]; ROWS]; TILES],
    pub(crate) scales: [f32; ROWS],
    /// 128 * (sum of the codes of the row): the excess of products with weights stored as code + 128.
    pub(crate) excess: [i32; ROWS],
}

const EMPTY_GROUP: PackedGroup =
    PackedGroup { codes: [[[0; ROW]; ROWS]; TILES], scales: [0.0; ROWS], excess: [0; ROWS] };

/// The rows of a `QuantizedRows`: `[ceil(rows / 16)][groups]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedRows {
    groups: usize,
    data: Vec<PackedGroup>,
}

impl PackedRows {
    /// A writer for `rows` rows of `groups` groups. Several tasks may write.
    pub(crate) fn writer(&mut self, rows: usize, groups: usize) -> PackedRowsWriter<'_> {
        self.groups = groups;
        self.data.resize(rows.div_ceil(ROWS) * groups, EMPTY_GROUP);
        PackedRowsWriter { data: Shared::new(&mut self.data), groups }
    }

    /// Group `group` of row tile `tile`, and all groups after it.
    #[inline(always)]
    pub(crate) fn from(&self, tile: usize, group: usize) -> &[PackedGroup] {
        &self.data[tile * self.groups + group..]
    }
}

/// Writes rows of a [`PackedRows`].
pub(crate) struct PackedRowsWriter<'a> {
    data: Shared<'a, PackedGroup>,
    groups: usize,
}

impl PackedRowsWriter<'_> {
    /// Writes a group of row `row`.
    ///
    /// # Safety
    /// No two tasks write the same group of the same row.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, row: usize, group: usize, codes: &[i8; GROUP], scale: f32, sum: i32) {
        let (tile, lane) = (row / ROWS, row % ROWS);
        let to = self.data.element_ptr(tile * self.groups + group);
        // SAFETY: the group exists, and these elements belong to one row, which one task writes (the caller's
        // promise); no reference to the whole is made.
        unsafe {
            for (half, codes) in codes.as_chunks::<ROW>().0.iter().enumerate() {
                (&raw mut (*to).codes[half][lane]).write(*codes);
            }
            (&raw mut (*to).scales[lane]).write(scale);
            (&raw mut (*to).excess[lane]).write(128 * sum);
        }
    }
}
