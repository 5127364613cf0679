//! Source of weights: rows of a checkpoint matrix in its own dtype.

use half::{bf16, f16};

/// A row-major matrix `[rows, columns]` to pack. The caller passes the column count separately.
///
/// The `..Bytes` forms read little-endian values at any alignment, directly from a mapped file.
#[derive(Debug, Clone, Copy)]
pub enum WeightRows<'a> {
    /// f32 values.
    F32(&'a [f32]),
    /// bf16 values.
    Bf16(&'a [bf16]),
    /// f16 values.
    F16(&'a [f16]),
    /// f32 values as little-endian bytes.
    F32Bytes(&'a [u8]),
    /// bf16 values as little-endian bytes.
    Bf16Bytes(&'a [u8]),
    /// f16 values as little-endian bytes.
    F16Bytes(&'a [u8]),
    /// int8 codes, with a scale for each row: value = code * scale.
    Int8 {
        /// Codes in two's complement.
        codes: &'a [u8],
        /// One scale per row.
        scales: &'a [f32],
    },
}

impl WeightRows<'_> {
    /// The number of values.
    pub fn values(&self) -> usize {
        match self {
            WeightRows::F32(x) => x.len(),
            WeightRows::Bf16(x) => x.len(),
            WeightRows::F16(x) => x.len(),
            WeightRows::F32Bytes(x) => x.len() / 4,
            WeightRows::Bf16Bytes(x) | WeightRows::F16Bytes(x) => x.len() / 2,
            WeightRows::Int8 { codes, .. } => codes.len(),
        }
    }

    /// Writes row `row`, `to.len()` values.
    #[inline(always)]
    pub(super) fn read(&self, row: usize, to: &mut [f32]) {
        let (start, end) = (row * to.len(), (row + 1) * to.len());
        match self {
            WeightRows::F32(x) => to.copy_from_slice(&x[start..end]),
            WeightRows::Bf16(x) => convert(&x[start..end], to, |v| widen(v.to_bits())),
            WeightRows::F16(x) => convert(&x[start..end], to, |v| v.to_f32()),
            WeightRows::F32Bytes(x) => {
                convert(x[4 * start..4 * end].as_chunks().0, to, |v| f32::from_le_bytes(*v))
            }
            WeightRows::Bf16Bytes(x) => {
                convert(x[2 * start..2 * end].as_chunks().0, to, |v| widen(u16::from_le_bytes(*v)))
            }
            WeightRows::F16Bytes(x) => {
                convert(x[2 * start..2 * end].as_chunks().0, to, |v| f16::from_le_bytes(*v).to_f32())
            }
            WeightRows::Int8 { codes, scales } => {
                convert(&codes[start..end], to, |v| f32::from(v.cast_signed()) * scales[row])
            }
        }
    }

    /// The bytes of some rows, where rows are bytes.
    fn bytes(&self, rows: std::ops::Range<usize>, columns: usize) -> Option<&[u8]> {
        let (bytes, size) = match self {
            WeightRows::F32(_) | WeightRows::Bf16(_) | WeightRows::F16(_) => return None,
            WeightRows::F32Bytes(x) => (x, 4 * columns),
            WeightRows::Bf16Bytes(x) | WeightRows::F16Bytes(x) => (x, 2 * columns),
            WeightRows::Int8 { codes, .. } => (codes, columns),
        };
        Some(&bytes[rows.start * size..rows.end * size])
    }
}

/// A bf16 as f32, NaN bits unchanged. Without a branch: loops over it vectorise.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn convert<T>(from: &[T], to: &mut [f32], f: impl Fn(&T) -> f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f(from);
    }
}

/// Several matrices with the same column count, stacked by rows.
pub(super) struct StackedRows<'a> {
    parts: &'a [WeightRows<'a>],
    /// Called with bytes after their last read.
    release: &'a (dyn Fn(&[u8]) + Sync),
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a> StackedRows<'a> {
    pub(super) fn new(
        parts: &'a [WeightRows<'a>],
        columns: usize,
        release: &'a (dyn Fn(&[u8]) + Sync),
    ) -> StackedRows<'a> {
        assert!(columns > 0, "a matrix of no columns");
        for part in parts {
            let values = part.values();
            assert!(values.is_multiple_of(columns), "{values} weights are no whole rows of {columns}");
            if let WeightRows::Int8 { scales, .. } = part {
                assert_eq!(scales.len(), values / columns, "scales of int8 rows");
            }
        }
        let rows = parts.iter().map(|part| part.values() / columns).sum();
        assert!(rows > 0, "a matrix of no rows");
        StackedRows { parts, release, rows, columns }
    }

    /// Writes row `row`, `columns` values.
    #[inline(always)]
    pub(super) fn read(&self, mut row: usize, to: &mut [f32]) {
        for part in self.parts {
            let rows = part.values() / self.columns;
            if row < rows {
                return part.read(row, &mut to[..self.columns]);
            }
            row -= rows;
        }
        panic!("row beyond the {} of the stack", self.rows);
    }

    /// Releases `count` rows from `first` on (fewer at the end) after their last read.
    pub(super) fn done(&self, first: usize, count: usize) {
        let (mut start, end) = (0, first + count);
        for part in self.parts {
            let rows = part.values() / self.columns;
            let of_part = first.max(start)..end.min(start + rows);
            if !of_part.is_empty() {
                part.bytes(of_part.start - start..of_part.end - start, self.columns).map(self.release);
            }
            start += rows;
        }
    }

    /// Whether a part is stored as int8.
    pub(super) fn has_codes(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, WeightRows::Int8 { .. }))
    }

    /// Codes and scale of a row that is stored as int8.
    pub(super) fn codes(&self, mut row: usize) -> Option<(&'a [u8], f32)> {
        for part in self.parts {
            let rows = part.values() / self.columns;
            if row < rows {
                let WeightRows::Int8 { codes, scales } = part else { return None };
                return Some((&codes[row * self.columns..(row + 1) * self.columns], scales[row]));
            }
            row -= rows;
        }
        None
    }
}
