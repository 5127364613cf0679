//! DoRA: the lengths of rows are trained by themselves. A row of W + s B A is scaled to the length that the adapter says.

use octavo_kernels::{Kernels, Linear, QuantizedRows, WeightDtype, WeightRows};

/// Rows that are computed together.
const ROWS: usize = 64;

/// magnitude / |W + B A| for each row of a module, whose rows begin at `first` in `base`. `a` `[rank, inputs]`, `b`
/// `[outputs, rank]` with the scale. None for a row without length.
///
/// W is what products with it see: the rounding of its codes belongs to the row.
pub(super) fn gain(
    kernels: &Kernels,
    base: &Linear,
    first: usize,
    a: &[f32],
    b: &[f32],
    magnitude: &[f32],
) -> Option<Vec<f32>> {
    let inputs = base.in_features();
    let rank = a.len() / inputs;
    let transposed: Vec<f32> =
        (0..inputs).flat_map(|column| (0..rank).map(move |j| a[j * inputs + column])).collect();
    let down = Linear::pack(kernels, &[WeightRows::F32(&transposed)], rank, WeightDtype::F32);
    let (mut row, mut delta) = (vec![0.0; inputs], vec![0.0; ROWS * inputs]);
    let mut gains = Vec::with_capacity(magnitude.len());
    for (start, b) in (0..).step_by(ROWS).zip(b.chunks(ROWS * rank)) {
        let rows = b.len() / rank;
        let delta = &mut delta[..rows * inputs];
        down.forward(kernels, b, rows, None, delta, &mut QuantizedRows::new());
        for (i, delta) in delta.chunks_exact(inputs).enumerate() {
            base.row(kernels, first + start + i, &mut row);
            let squares = row.iter().zip(delta).map(|(w, d)| f64::from(w + d).powi(2));
            let gain = (f64::from(magnitude[start + i]) / squares.sum::<f64>().sqrt()) as f32;
            gains.push(Some(gain).filter(|gain| gain.is_finite())?);
        }
    }
    Some(gains)
}
