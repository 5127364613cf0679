//! Rows of int8 codes as the tiles of AMX take them: sixteen rows and one group side by side.

use crate::amx::{ROW, ROWS};
use crate::parallel::Shared;
use crate::quantize::GROUP;

/// 64 codes of a row: one row of a tile.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [i8; ROW]);

/// Lines of a group of 16 rows: two tiles.
pub(crate) const GROUP_LINES: usize = GROUP / ROW * ROWS;

/// The content of a `QuantizedRows`, row tile by row tile. Places of rows that do not exist hold anything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tiled {
    /// `[ceil(rows / 16)][groups][2][16]`.
    codes: Vec<Line>,
    /// `[ceil(rows / 16)][groups][16]`.
    scales: Vec<[f32; ROWS]>,
    /// As `scales`: 128 times the sum of the codes, which products with codes of weights + 128 are too large by.
    excess: Vec<[i32; ROWS]>,
    groups: usize,
}

impl Tiled {
    /// Room for `rows` rows of `groups` groups.
    pub(crate) fn resize(&mut self, rows: usize, groups: usize) {
        let count = rows.div_ceil(ROWS) * groups;
        self.groups = groups;
        self.codes.resize(count * GROUP_LINES, Line([0; ROW]));
        self.scales.resize(count, [0.0; ROWS]);
        self.excess.resize(count, [0; ROWS]);
    }

    /// What several tasks write, each its rows.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        Writer {
            codes: Shared::new(&mut self.codes),
            scales: Shared::new(self.scales.as_flattened_mut()),
            excess: Shared::new(self.excess.as_flattened_mut()),
            groups: self.groups,
        }
    }

    /// Two tiles: the codes of a group of row tile `tile`.
    #[inline(always)]
    pub(crate) fn codes(&self, tile: usize, group: usize) -> *const Line {
        self.codes.as_ptr().wrapping_add((tile * self.groups + group) * GROUP_LINES)
    }

    /// The scales of a group of row tile `tile`.
    #[inline(always)]
    pub(crate) fn scales(&self, tile: usize, group: usize) -> &[f32; ROWS] {
        &self.scales[tile * self.groups + group]
    }

    /// The excess of a group of row tile `tile`.
    #[inline(always)]
    pub(crate) fn excess(&self, tile: usize, group: usize) -> &[i32; ROWS] {
        &self.excess[tile * self.groups + group]
    }
}

/// The parts of a [`Tiled`].
pub(crate) struct Writer<'a> {
    codes: Shared<'a, Line>,
    scales: Shared<'a, f32>,
    excess: Shared<'a, i32>,
    groups: usize,
}

impl Writer<'_> {
    /// Writes row `row`: codes `[groups * 128]`, scales and sums of codes `[groups]`.
    ///
    /// # Safety
    /// No two tasks write the same row.
    pub(crate) unsafe fn row(&self, row: usize, codes: &[i8], scales: &[f32], sums: &[i32]) {
        let (tile, lane) = (row / ROWS, row % ROWS);
        for group in 0..self.groups {
            let place = tile * self.groups + group;
            for (half, codes) in codes[group * GROUP..][..GROUP].as_chunks::<ROW>().0.iter().enumerate() {
                let line = place * GROUP_LINES + half * ROWS + lane;
                // SAFETY: each row has lines and lanes of its own, and each row is one task's (the caller's promise).
                unsafe { self.codes.part(line..line + 1)[0] = Line(*codes) };
            }
            let at = place * ROWS + lane;
            // SAFETY: as above.
            unsafe {
                self.scales.part(at..at + 1)[0] = scales[group];
                self.excess.part(at..at + 1)[0] = 128 * sums[group];
            }
        }
    }
}
