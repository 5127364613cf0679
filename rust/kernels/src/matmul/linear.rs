//! A packed weight matrix and its products.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::bf16::MatmulBf16;
use super::driver::{self, Output};
use super::f32::MatmulF32;
use super::int8::MatmulInt8;
use super::weight_rows::{StackedRows, WeightRows};
use super::{gated, int8_pack};
use crate::activation::Activation;
use crate::context::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::quantize::QuantizedRows;
use crate::simd::LANES;

/// How packed weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// f32; products with f32 activations.
    F32,
    /// bf16; widened, products with f32 activations.
    Bf16,
    /// int8 with a bf16 scale per row and group of 128 columns; activations are quantised to int8 alike.
    Int8,
}

/// A packed weight matrix `[rows (n), columns (k)]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(super) weights: Weights,
    pub(super) out_features: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Weights {
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

    /// As [`Linear::pack`]; `taken` is called with bytes of `..Bytes` and int8 rows that will not be read again, so that
    /// their memory can be given back meanwhile. It is called from several threads.
    pub fn pack_releasing(
        kernels: &Kernels,
        parts: &[WeightRows<'_>],
        columns: usize,
        dtype: WeightDtype,
        taken: &(dyn Fn(&[u8]) + Sync),
    ) -> Linear {
        let source = StackedRows::new(parts, columns, taken);
        let weights = match dtype {
            WeightDtype::F32 => Weights::F32(MatmulF32::pack(kernels, &source)),
            WeightDtype::Bf16 => Weights::Bf16(MatmulBf16::pack(kernels, &source)),
            WeightDtype::Int8 => return Linear::quantize(kernels, parts, columns, None, taken).0,
        };
        Linear { weights, out_features: source.rows }
    }

    /// As [`Linear::pack`] with int8, and for each part the relative root mean square error of its outputs.
    ///
    /// The error is that of rounding weights and activations, expected over activations whose channels are independent and
    /// of the typical magnitudes `inputs` `[columns]`, such as the weights of the norm before (None: all alike). It is 0 for
    /// a part that gives zeros, and NaN for one with values that are not finite. `taken` as for [`Linear::pack_releasing`].
    pub fn quantize(
        kernels: &Kernels,
        parts: &[WeightRows<'_>],
        columns: usize,
        inputs: Option<&[f32]>,
        taken: &(dyn Fn(&[u8]) + Sync),
    ) -> (Linear, Vec<f64>) {
        let source = StackedRows::new(parts, columns, taken);
        let alike = vec![1.0; if inputs.is_none() { columns } else { 0 }];
        let inputs = inputs.unwrap_or(&alike);
        assert_eq!(inputs.len(), columns, "magnitudes of inputs");
        let (weights, squares) = int8_pack::pack(kernels, &source, inputs);
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
        (Linear { weights: Weights::Int8(weights), out_features: source.rows }, errors)
    }

    /// y = x w^T + bias: x `[m, columns]`, y `[m, rows]`.
    ///
    /// `scratch` takes the int8 form of x where the weights are int8, and is left alone otherwise.
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
        let output = Output { m, n: self.out_features, bias, y, stride: y_stride };
        match &self.weights {
            Weights::F32(weights) => driver::run(kernels, &weights.with(x), output),
            Weights::Bf16(weights) => driver::run(kernels, &weights.with(x), output),
            Weights::Int8(weights) => {
                scratch.quantize(kernels, x, columns);
                multiply_int8(kernels, weights, scratch, output);
            }
        }
    }

    /// y = x w^T + bias for rows that are already int8, so that several matrices share one quantisation of x.
    ///
    /// # Panics
    /// When the weights are not int8 (see [`Linear::dtype`]).
    pub fn forward_quantized(
        &self,
        kernels: &Kernels,
        x: &QuantizedRows,
        bias: Option<&[f32]>,
        y: &mut [f32],
        y_stride: usize,
    ) {
        let Weights::Int8(weights) = &self.weights else {
            panic!("forward_quantized on {:?} weights", self.dtype());
        };
        assert_eq!(x.columns(), self.in_features(), "columns of x");
        let output = Output { m: x.rows(), n: self.out_features, bias, y, stride: y_stride };
        multiply_int8(kernels, weights, x, output);
    }

    /// f(gate) * up as int8, in one pass: gate and up are x times the upper and the lower half of the rows.
    ///
    /// x `[m, columns]`, `out` `[m, rows / 2]`: the bits of [`Linear::forward`], [`activate_and_mul`](crate::activate_and_mul)
    /// and [`QuantizedRows::quantize`] one after the other. Says whether it did so: false, and `out` is left alone, where
    /// nothing is gained by it.
    pub fn forward_gated(
        &self,
        kernels: &Kernels,
        x: &[f32],
        f: Activation,
        out: &mut QuantizedRows,
        scratch: &mut QuantizedRows,
    ) -> bool {
        let Weights::Int8(weights) = &self.weights else { return false };
        let (columns, inner) = (self.in_features(), self.out_features / 2);
        let m = x.len() / columns;
        if !self.out_features.is_multiple_of(2 * LANES) {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if kernels.isa() == Isa::Amx && QuantizedRows::takes_tiles(m) {
            scratch.quantize(kernels, x, columns);
            let x = scratch.tiled().expect("rows enough for tiles");
            amx::run_gated(kernels, weights, x, m, (inner, f), out);
            return true;
        }
        if !gated::pays(kernels, m, inner) {
            return false;
        }
        scratch.quantize(kernels, x, columns);
        gated::run(kernels, &weights.with(scratch), m, (inner, f), out);
        true
    }

    /// Writes row `row` as f32 into `out` (`columns` values): the look-up of an embedding.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out_features, "row {row} of {}", self.out_features);
        assert_eq!(out.len(), self.in_features(), "length of a row");
        match &self.weights {
            Weights::F32(weights) => weights.row(row, out),
            Weights::Bf16(weights) => weights.row(row, out),
            Weights::Int8(weights) => weights.row(row, out),
        }
    }

    /// n: the number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// k: the number of inputs.
    pub fn in_features(&self) -> usize {
        match &self.weights {
            Weights::F32(weights) => weights.columns(),
            Weights::Bf16(weights) => weights.columns(),
            Weights::Int8(weights) => weights.columns(),
        }
    }

    /// How the weights are stored.
    pub fn dtype(&self) -> WeightDtype {
        match &self.weights {
            Weights::F32(_) => WeightDtype::F32,
            Weights::Bf16(_) => WeightDtype::Bf16,
            Weights::Int8(_) => WeightDtype::Int8,
        }
    }

    /// Memory of the packed weights, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::F32(weights) => weights.bytes(),
            Weights::Bf16(weights) => weights.bytes(),
            Weights::Int8(weights) => weights.bytes(),
        }
    }
}

/// The same bits either way.
fn multiply_int8(kernels: &Kernels, weights: &MatmulInt8, x: &QuantizedRows, output: Output<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Amx, Some(x)) = (kernels.isa(), x.tiled()) {
        return amx::run(kernels, weights, x, output);
    }
    driver::run(kernels, &weights.with(x), output);
}
