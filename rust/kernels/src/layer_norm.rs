//! LayerNorm without bias: y = (x - mean) / sqrt(variance + eps) * (weight + offset).

use crate::context::Kernels;
use crate::norm::RmsNorm;
use crate::parallel::for_row_runs;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Minimum values of one task.
const VALUES_PER_TASK: usize = 16 << 10;

/// Normalises the rows of `x` (each `norm.weight.len()` long) in place; `norm.eps` is added to the variance.
pub fn layer_norm(kernels: &Kernels, x: &mut [f32], norm: RmsNorm<'_>) {
    let width = norm.weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let rows = x.len() / width;
    for_row_runs(kernels.pool(), x, rows, width, VALUES_PER_TASK.div_ceil(width), |_, _, x| {
        dispatch(kernels, LayerNormRows { x, norm });
    });
}

struct LayerNormRows<'a> {
    x: &'a mut [f32],
    norm: RmsNorm<'a>,
}

impl Op for LayerNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.norm.weight.len();
        for x in self.x.chunks_exact_mut(width) {
            let mut sum = s.zero();
            for part in x.chunks(LANES) {
                sum = s.add(sum, s.load_partial(part, 0.0));
            }
            let mean = s.reduce_add(sum) / width as f32;
            let mut squares = s.zero();
            for part in x.chunks(LANES) {
                // Lanes beyond the row are at the mean: they add nothing.
                let v = s.sub(s.load_partial(part, mean), s.splat(mean));
                squares = s.fma(v, v, squares);
            }
            let factor = s.splat(1.0 / (s.reduce_add(squares) / width as f32 + self.norm.eps).sqrt());
            for (part, weight) in x.chunks_mut(LANES).zip(self.norm.weight.chunks(LANES)) {
                let v = s.mul(s.sub(s.load_partial(part, mean), s.splat(mean)), factor);
                let weight = s.add(s.load_partial(weight, 0.0), s.splat(self.norm.offset));
                s.store_partial(s.mul(v, weight), part);
            }
        }
    }
}
