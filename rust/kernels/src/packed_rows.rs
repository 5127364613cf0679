//! Rows of int8 codes as the tiles of AMX take them: sixteen rows and one group side by side.

use crate::amx::{ROW, ROWS};
use crate::parallel::Shared;
use crate::quantize::GROUP;

/// Tiles of a group.
const TILES: usize = GROUP / ROW;

/// A group of sixteen rows. Places of rows that do not exist hold anything.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileGroup {
    pub(crate) codes: [[[i8; ROW]; ROWS]; TILES],
    pub(crate) scales: [f32; ROWS],
    /// 128 times the sum of a row's codes: what products with codes of weights + 128 are too large by.
    pub(crate) excess: [i32; ROWS],
}

const EMPTY: TileGroup =
    TileGroup { codes: [[[0; ROW]; ROWS]; TILES], scales: [0.0; ROWS], excess: [0; ROWS] };

/// The content of a `QuantizedRows`: `[ceil(rows / 16)][groups]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tiled {
    groups: usize,
    data: Vec<TileGroup>,
}

impl Tiled {
    /// Makes room for `rows` rows of `groups` groups, which several tasks write.
    pub(crate) fn writer(&mut self, rows: usize, groups: usize) -> Writer<'_> {
        self.groups = groups;
        self.data.resize(rows.div_ceil(ROWS) * groups, EMPTY);
        Writer { data: Shared::new(&mut self.data), groups }
    }

    /// Group `group` of row tile `tile` and all that come after it.
    #[inline(always)]
    pub(crate) fn from(&self, tile: usize, group: usize) -> &[TileGroup] {
        &self.data[tile * self.groups + group..]
    }
}

/// Writes rows of a [`Tiled`].
pub(crate) struct Writer<'a> {
    data: Shared<'a, TileGroup>,
    groups: usize,
}

impl Writer<'_> {
    /// Writes a group of row `row`.
    ///
    /// # Safety
    /// No two tasks write the same group of the same row.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, row: usize, group: usize, codes: &[i8; GROUP], scale: f32, sum: i32) {
        let (tile, lane) = (row / ROWS, row % ROWS);
        let to = self.data.place(tile * self.groups + group);
        // SAFETY: the place exists, and these elements of it are those of one row, which is one task's (the caller's
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
