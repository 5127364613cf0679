//! Products with adapters.

use super::LoraRows;
use super::update::{LoraInput, LoraUpdate};
use crate::activation::Activation;
use crate::context::Kernels;
use crate::matmul::{Addend, Linear, MatmulOutput, WeightDtype};
use crate::quantize::QuantizedRows;

/// y = x w^T + bias as [`Linear::forward`], and what adapters add to their rows: x `[m, in_features]`,
/// y `[m, out_features]`.
///
/// `scratch` receives x as int8 when the weights are int8; otherwise it is unchanged.
///
/// # Panics
/// When runs of rows overlap, or rows or columns of adapters lie outside of y.
pub fn forward_lora(
    kernels: &Kernels,
    linear: &Linear,
    x: &[f32],
    bias: Option<&[f32]>,
    adapters: LoraRows<'_>,
    y: &mut [f32],
    scratch: &mut QuantizedRows,
) {
    let (columns, n) = (linear.in_features(), linear.out_features());
    assert!(x.len().is_multiple_of(columns), "x holds {} values, not rows of {columns}", x.len());
    let m = x.len() / columns;
    linear.quantize_input(kernels, x, scratch);
    let update = LoraUpdate::new(kernels, adapters, LoraInput { x, quantized: scratch, bias }, (m, n));
    let addend = update.as_ref().map(|update| update as &dyn Addend);
    linear.multiply(kernels, x, scratch, MatmulOutput { m, n, bias, addend, y, stride: n });
}

/// As [`forward_lora`] for rows in int8.
///
/// # Panics
/// When the weights are not int8 (see [`Linear::dtype`]), and as [`forward_lora`].
pub fn forward_lora_quantized(
    kernels: &Kernels,
    linear: &Linear,
    x: &QuantizedRows,
    bias: Option<&[f32]>,
    adapters: LoraRows<'_>,
    y: &mut [f32],
) {
    let (m, n) = (x.rows(), linear.out_features());
    let update = LoraUpdate::new(kernels, adapters, LoraInput { x: &[], quantized: x, bias }, (m, n));
    let addend = update.as_ref().map(|update| update as &dyn Addend);
    linear.multiply_quantized(kernels, x, MatmulOutput { m, n, bias, addend, y, stride: n });
}

/// f(gate) * up as int8, in one pass. The first half of the outputs is gate, the second half is up; adapters change both.
///
/// x `[m, in_features]`, `out` `[m, out_features / 2]`. The bits are those of [`forward_lora`],
/// [`activate_and_mul`](crate::activate_and_mul) and [`QuantizedRows::quantize`] with the rotation of `next`, which reads `out`.
/// Returns false, with `out` unchanged, when one pass is not faster or the weights of `next` are not int8.
pub fn forward_gated(
    kernels: &Kernels,
    [linear, next]: [&Linear; 2],
    x: &[f32],
    f: Activation,
    adapters: LoraRows<'_>,
    out: &mut QuantizedRows,
    scratch: &mut QuantizedRows,
) -> bool {
    let (m, n) = (x.len() / linear.in_features(), linear.out_features());
    let WeightDtype::Quantized(scheme) = next.dtype() else { return false };
    if !linear.gated_pays(kernels, m) {
        return false;
    }
    linear.quantize_input(kernels, x, scratch);
    let update =
        LoraUpdate::new(kernels, adapters, LoraInput { x: &[], quantized: scratch, bias: None }, (m, n));
    let addend = update.as_ref().map(|update| update as &dyn Addend);
    linear.multiply_gated(kernels, scratch, f, addend, (out, scheme.rotation));
    true
}
