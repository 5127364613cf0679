//! A packed weight matrix and its products.

use std::fmt;
use std::ops::Range;

use super::addend::Addend;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::bf16::MatmulBf16;
use super::driver::{self, MatmulOutput, RowsFrom};
use super::f32::MatmulF32;
use super::int8::MatmulInt8;
use super::weight_rows::{StackedRows, WeightRows};
use super::{gated, int8_pack};
use crate::activation::Activation;
use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::quant_scheme::{QuantScheme, Rotation};
use crate::quantize::QuantizedRows;
use crate::simd::LANES;

/// Element type of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// f32; products with f32 activations.
    F32,
    /// bf16, widened to f32; products with f32 activations.
    Bf16,
    /// Integer codes with bf16 scales; activations are quantised to int8 alike.
    Quantized(QuantScheme),
}

impl WeightDtype {
    /// int8 codes with one scale per row and group of 128 columns, rotated.
    pub const INT8: Self = Self::Quantized(QuantScheme::INT8);
    /// As [`Self::INT8`], not rotated.
    pub const INT8_UNROTATED: Self = Self::Quantized(QuantScheme::INT8_UNROTATED);

    /// Whether weights are integer codes.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Quantized(_))
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("F32"),
            Self::Bf16 => f.write_str("Bf16"),
            Self::Quantized(scheme) => write!(f, "Int{}", scheme.bits),
        }
    }
}

/// A packed weight matrix `[out_features (n), in_features (k)]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(super) weights: PackedWeights,
    pub(super) out_features: usize,
}

#[derive(Debug, Clone)]
pub(super) enum PackedWeights {
    F32(MatmulF32),
    Bf16(MatmulBf16),
    Int8(MatmulInt8),
}

impl Linear {
    /// Packs matrices `[n_i, columns]`, one below the other (as q, k, v or gate, up), in parallel.
    ///
    /// n is the sum of the n_i; any n and any number of columns from 1 on. Values are rounded to the nearest of `dtype`.
    pub fn pack(kernels: &Kernels, parts: &[WeightRows<'_>], columns: usize, dtype: WeightDtype) -> Linear {
        Linear::pack_releasing(kernels, parts, columns, dtype, &|_| ())
    }

    /// As [`Linear::pack`]. `release` is called from several threads with bytes of `..Bytes` and int8 rows after their last
    /// read. The caller may then release this memory.
    pub fn pack_releasing(
        kernels: &Kernels,
        parts: &[WeightRows<'_>],
        columns: usize,
        dtype: WeightDtype,
        release: &(dyn Fn(&[u8]) + Sync),
    ) -> Linear {
        let source = StackedRows::new(parts, columns, release);
        let weights = match dtype {
            WeightDtype::F32 => PackedWeights::F32(MatmulF32::pack(kernels, &source)),
            WeightDtype::Bf16 => PackedWeights::Bf16(MatmulBf16::pack(kernels, &source)),
            WeightDtype::Quantized(scheme) => {
                return Linear::quantize(kernels, parts, columns, scheme, None, release).0;
            }
        };
        Linear { weights, out_features: source.rows }
    }

    /// As [`Linear::pack`] with `scheme`; parts that are stored as int8 keep their codes, and then no part is rotated. Also estimates the quantisation error: the relative RMS error of the outputs of each part.
    ///
    /// The error includes the rounding of weights and activations. It is an expectation over independent channels with the
    /// typical magnitudes `inputs` `[columns]`, such as the weights of the norm before (None: all equal). It is 0 for a part
    /// whose outputs are zero, and NaN for a part with NaN or infinities. `release` as for [`Linear::pack_releasing`].
    ///
    /// # Panics
    /// When kernels do not implement `scheme` (see [`QuantScheme::check`]).
    pub fn quantize(
        kernels: &Kernels,
        parts: &[WeightRows<'_>],
        columns: usize,
        scheme: QuantScheme,
        inputs: Option<&[f32]>,
        release: &(dyn Fn(&[u8]) + Sync),
    ) -> (Linear, Vec<f64>) {
        assert_eq!(scheme.check(), Ok(scheme));
        let source = StackedRows::new(parts, columns, release);
        let alike = vec![1.0; if inputs.is_none() { columns } else { 0 }];
        let inputs = inputs.unwrap_or(&alike);
        assert_eq!(inputs.len(), columns, "magnitudes of inputs");
        let (weights, squares) = int8_pack::pack(kernels, &source, inputs, scheme.rotation);
        let mut rows = squares.as_flattened().iter();
        let errors = parts.iter().map(|part| {
            let (mut errors, mut outputs) = (0.0, 0.0);
            for row in rows.by_ref().take(part.values() / columns) {
                errors += row.errors;
                outputs += row.outputs;
            }
            if outputs == 0.0 { 0.0 } else { (errors / outputs).sqrt() }
        });
        let errors = errors.collect();
        (Linear { weights: PackedWeights::Int8(weights), out_features: source.rows }, errors)
    }

    /// y = x w^T + bias: x `[m, in_features]`, y `[m, out_features]`.
    ///
    /// `scratch` receives x as int8 when the weights are int8; otherwise it is unchanged.
    pub fn forward(
        &self,
        kernels: &Kernels,
        x: &[f32],
        m: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
        scratch: &mut QuantizedRows,
    ) {
        self.forward_strided(kernels, x, m, bias, y, self.out_features, scratch);
    }

    /// As [`Linear::forward`]; row `r` of y begins at `r * y_stride`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_strided(
        &self,
        kernels: &Kernels,
        x: &[f32],
        m: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
        y_stride: usize,
        scratch: &mut QuantizedRows,
    ) {
        let columns = self.in_features();
        assert!(
            x.len().is_multiple_of(columns) && x.len() / columns == m,
            "x holds {} values, not [m = {m}, k = {columns}]",
            x.len()
        );
        self.quantize_input(kernels, x, scratch);
        let output = MatmulOutput { m, n: self.out_features, bias, addend: None, y, stride: y_stride };
        self.multiply(kernels, x, scratch, output);
    }

    /// Fills `quantized` with x where weights are int8.
    pub(crate) fn quantize_input(&self, kernels: &Kernels, x: &[f32], quantized: &mut QuantizedRows) {
        if let PackedWeights::Int8(weights) = &self.weights {
            quantized.quantize(kernels, x, self.in_features(), weights.rotation);
        }
    }

    /// Computes `output` of the rows of x. `quantized` holds them where weights are int8; others read `x`.
    pub(crate) fn multiply(
        &self,
        kernels: &Kernels,
        x: &[f32],
        quantized: &QuantizedRows,
        output: MatmulOutput<'_>,
    ) {
        match &self.weights {
            PackedWeights::F32(weights) => driver::run(kernels, &weights.with(x), output),
            PackedWeights::Bf16(weights) => driver::run(kernels, &weights.with(x), output),
            PackedWeights::Int8(weights) => multiply_int8(kernels, weights, quantized, output),
        }
    }

    /// Computes `output` of int8 rows: several matrices can share one quantisation of x.
    ///
    /// # Panics
    /// When weights are not int8.
    pub(crate) fn multiply_quantized(&self, kernels: &Kernels, x: &QuantizedRows, output: MatmulOutput<'_>) {
        let PackedWeights::Int8(weights) = &self.weights else {
            panic!("rows in int8 for {} weights", self.dtype());
        };
        assert_eq!(x.columns(), self.in_features(), "columns of x");
        multiply_int8(kernels, weights, x, output);
    }

    /// y = x w^T for the rows `rows` of x alone: y `[rows, out_features]`, and more.
    ///
    /// `quantized` holds all rows of x where weights are int8; float weights read `x`. The bits are those of
    /// [`Linear::forward`].
    pub(crate) fn forward_rows(
        &self,
        kernels: &Kernels,
        x: &[f32],
        quantized: &QuantizedRows,
        rows: Range<usize>,
        y: &mut [f32],
    ) {
        let (columns, n) = (self.in_features(), self.out_features);
        let output = MatmulOutput { m: rows.len(), n, bias: None, addend: None, y, stride: n };
        let of_x = || &x[rows.start * columns..rows.end * columns];
        match &self.weights {
            PackedWeights::F32(weights) => driver::run(kernels, &weights.with(of_x()), output),
            PackedWeights::Bf16(weights) => driver::run(kernels, &weights.with(of_x()), output),
            PackedWeights::Int8(weights) => {
                assert_eq!(quantized.columns(), columns, "columns of x");
                assert!(rows.end <= quantized.rows(), "rows {rows:?} of {}", quantized.rows());
                if rows.len() == quantized.rows() {
                    return multiply_int8(kernels, weights, quantized, output);
                }
                driver::run(
                    kernels,
                    &RowsFrom { kernel: weights.with(quantized), first: rows.start },
                    output,
                );
            }
        }
    }

    /// Whether [`Linear::multiply_gated`] is possible and faster for `m` rows.
    pub(crate) fn gated_pays(&self, kernels: &Kernels, m: usize) -> bool {
        if !self.dtype().is_quantized() || !self.out_features.is_multiple_of(2 * LANES) {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if kernels.isa() == Isa::Amx && QuantizedRows::uses_amx(m) {
            return true;
        }
        gated::pays(kernels, m, self.out_features / 2)
    }

    /// f(gate) * up as int8 with `rotation`, in one pass. The first half of the outputs is gate, the second half is up; `addend` adds
    /// to both.
    ///
    /// # Panics
    /// When weights are not int8.
    pub(crate) fn multiply_gated(
        &self,
        kernels: &Kernels,
        x: &QuantizedRows,
        f: Activation,
        addend: Option<&dyn Addend>,
        (out, rotation): (&mut QuantizedRows, Rotation),
    ) {
        let PackedWeights::Int8(weights) = &self.weights else {
            panic!("multiply_gated on {} weights", self.dtype());
        };
        assert_eq!(x.columns(), self.in_features(), "columns of x");
        let (m, inner) = (x.rows(), self.out_features / 2);
        let product = weights.with(x);
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Amx, Some(x)) = (kernels.isa(), x.packed()) {
            return amx::run_gated(kernels, weights, (x, m), (inner, f), addend, (out, rotation));
        }
        gated::run(kernels, &product, m, (inner, f), addend, (out, rotation));
    }

    /// Writes row `row` as f32 into `out` (`in_features` values): an embedding lookup.
    pub fn row(&self, kernels: &Kernels, row: usize, out: &mut [f32]) {
        assert!(row < self.out_features, "row {row} of {}", self.out_features);
        assert_eq!(out.len(), self.in_features(), "length of a row");
        match &self.weights {
            PackedWeights::F32(weights) => weights.row(row, out),
            PackedWeights::Bf16(weights) => weights.row(row, out),
            PackedWeights::Int8(weights) => weights.row(kernels, row, out),
        }
    }

    /// n: number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// k: number of inputs.
    pub fn in_features(&self) -> usize {
        match &self.weights {
            PackedWeights::F32(weights) => weights.columns(),
            PackedWeights::Bf16(weights) => weights.columns(),
            PackedWeights::Int8(weights) => weights.columns(),
        }
    }

    /// Element type of the stored weights.
    pub fn dtype(&self) -> WeightDtype {
        match &self.weights {
            PackedWeights::F32(_) => WeightDtype::F32,
            PackedWeights::Bf16(_) => WeightDtype::Bf16,
            PackedWeights::Int8(weights) => {
                WeightDtype::Quantized(QuantScheme { rotation: weights.rotation, ..QuantScheme::INT8 })
            }
        }
    }

    /// Memory of the packed weights, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            PackedWeights::F32(weights) => weights.bytes(),
            PackedWeights::Bf16(weights) => weights.bytes(),
            PackedWeights::Int8(weights) => weights.bytes(),
        }
    }
}

/// Both paths give the same bits.
fn multiply_int8(kernels: &Kernels, weights: &MatmulInt8, x: &QuantizedRows, output: MatmulOutput<'_>) {
    let product = weights.with(x);
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Amx, Some(x)) = (kernels.isa(), x.packed()) {
        return amx::run(kernels, weights, x, output);
    }
    driver::run(kernels, &product, output);
}
