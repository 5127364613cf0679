//! The packed form as named arrays: the layout in an octavo file.

use std::fmt;

use super::bf16::MatmulBf16;
use super::f32::MatmulF32;
use super::int8::MatmulInt8;
use super::linear::{Linear, PackedWeights, WeightDtype};
use crate::packed::{Packed, PackedError};
use crate::quant_scheme::GROUP;
use crate::quant_scheme::QuantScheme;
use crate::region::Region;
use crate::simd::LANES;

/// Element type of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayDtype {
    /// Bytes: int8 codes + 128.
    U8,
    /// bf16.
    Bf16,
    /// f32.
    F32,
}

/// One array of a packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedArray {
    /// Name of the array.
    pub name: &'static str,
    /// Element type, little-endian.
    pub dtype: ArrayDtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl PackedArray {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        let element = match self.dtype {
            ArrayDtype::U8 => 1,
            ArrayDtype::Bf16 => 2,
            ArrayDtype::F32 => 4,
        };
        element * self.shape.iter().product::<usize>()
    }

    /// The arrays of a matrix `[rows, columns]`, in the order of [`Linear::arrays`] and [`Linear::mapped`].
    ///
    /// Rows are in panels of 16; the last panel is padded. The size of the first array is a multiple of 64 bytes, and kernels
    /// require its start at a multiple of 64 bytes.
    pub fn of(dtype: WeightDtype, rows: usize, columns: usize) -> Vec<PackedArray> {
        let panels = rows.div_ceil(LANES);
        let array =
            |name, element, shape: &[usize]| PackedArray { name, dtype: element, shape: shape.to_vec() };
        match dtype {
            WeightDtype::Quantized(QuantScheme { group, .. }) => {
                let groups = columns.div_ceil(group);
                vec![
                    array("codes", ArrayDtype::U8, &[panels, groups, group / 4, LANES, 4]),
                    array("scales", ArrayDtype::Bf16, &[panels, groups, LANES]),
                ]
            }
            WeightDtype::Bf16 => {
                vec![array("panels", ArrayDtype::Bf16, &[panels, columns.div_ceil(2), LANES, 2])]
            }
            WeightDtype::F32 => vec![array("panels", ArrayDtype::F32, &[panels, columns, LANES])],
        }
    }
}

impl Linear {
    /// Name of the packed form, with its version: it changes when any array does.
    pub const LAYOUT: &str = "panels-16x4-group-128-v1";

    /// The arrays as bytes in the order of this machine, as [`PackedArray::of`] describes them.
    pub fn arrays(&self) -> Vec<&[u8]> {
        match &self.weights {
            PackedWeights::F32(weights) => vec![weights.panels.bytes()],
            PackedWeights::Bf16(weights) => vec![weights.panels.bytes()],
            PackedWeights::Int8(weights) => vec![weights.codes.bytes(), weights.scales.bytes()],
        }
    }

    /// A matrix over mapped `arrays`, without a copy. Any bytes are safe: they change values, not memory accesses.
    ///
    /// # Errors
    /// The index of the array that differs from [`PackedArray::of`], and why.
    ///
    /// # Panics
    /// When kernels do not implement the scheme of `dtype`.
    pub fn mapped(
        dtype: WeightDtype,
        rows: usize,
        columns: usize,
        arrays: Vec<Region>,
    ) -> Result<Linear, (usize, PackedError)> {
        if rows == 0 || columns == 0 {
            return Err((0, PackedError::Shape));
        }
        let panels = rows.div_ceil(LANES);
        let elements = |number: usize, per_panel: usize| {
            panels.checked_mul(per_panel).ok_or((number, PackedError::Shape))
        };
        let mut arrays = arrays.into_iter();
        let mut next = |number| arrays.next().ok_or((number, PackedError::Shape));
        let at = |number| move |error| (number, error);
        let weights = match dtype {
            WeightDtype::F32 => {
                let panels = Packed::mapped(next(0)?, elements(0, columns)?).map_err(at(0))?;
                PackedWeights::F32(MatmulF32 { panels, columns })
            }
            WeightDtype::Bf16 => {
                let pairs = elements(0, columns.div_ceil(2))?;
                let panels = Packed::mapped(next(0)?, pairs).map_err(at(0))?;
                PackedWeights::Bf16(MatmulBf16 { panels, columns })
            }
            WeightDtype::Quantized(scheme) => {
                // The arrays have the sizes that kernels read.
                assert_eq!(scheme.check(), Ok(scheme));
                let groups = columns.div_ceil(GROUP);
                let quads = elements(0, groups.saturating_mul(GROUP / 4))?;
                let codes = Packed::mapped(next(0)?, quads).map_err(at(0))?;
                let scales = Packed::mapped(next(1)?, elements(1, groups)?).map_err(at(1))?;
                PackedWeights::Int8(MatmulInt8 { codes, scales, columns, rotation: scheme.rotation })
            }
        };
        Ok(Linear { weights, out_features: rows })
    }
}

impl fmt::Display for ArrayDtype {
    /// The name in safetensors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArrayDtype::U8 => "U8",
            ArrayDtype::Bf16 => "BF16",
            ArrayDtype::F32 => "F32",
        })
    }
}
