//! Weights in int8, symmetric, one scale per row and group of 128 columns.
//!
//! y = sum over groups, in order, of (sum of code products, exact in i32) * (scale of x * scale of w).

use half::bf16;

use super::driver::TileKernel;
use super::fetch::Fetch;
use super::rows::Stack;
use crate::context::Kernels;
use crate::packed::Packed;
use crate::pages::{Pages, Plain};
use crate::parallel::Shared;
use crate::quantize::{GROUP, QuantizedRows};
use crate::simd::{LANES, Simd};

/// Steps of four columns in a group.
const QUADS: usize = GROUP / 4;
/// Codes of 16 rows x 4 columns, each as code + 128: one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Quad([u8; 4 * LANES]);

// SAFETY: 64 bytes, any of them a value, no padding.
unsafe impl Plain for Quad {}

/// A packed int8 matrix.
#[derive(Debug, Clone)]
pub(super) struct MatmulInt8 {
    /// `[ceil(N / 16)][groups][32]`, code 0 beyond N and K.
    pub(super) codes: Packed<Quad>,
    /// `[ceil(N / 16)][groups]` of 16 bf16 scales.
    pub(super) scales: Packed<[u16; LANES]>,
    pub(super) columns: usize,
}

/// How many times the typical magnitude the largest of a group of activations is: that of normal values.
const PEAK: f64 = 3.0;

/// What int8 changes in an output, expected over inputs that are independent, each channel of its own size.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Squares {
    /// Mean square of the error: of rounding the weights, and of rounding the inputs.
    pub errors: f64,
    /// Mean square of the output.
    pub outputs: f64,
}

impl Squares {
    /// Adds one group of a row. `inputs`: the typical magnitude of each channel of x.
    fn add(&mut self, values: &[f32], scale: f32, lane: usize, quads: &[Quad], inputs: &[f32]) {
        let largest = inputs.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        // A code is rounded by up to half a step of largest / 127: a uniform error.
        let rounding = (PEAK * f64::from(largest) / 127.0).powi(2) / 12.0;
        let columns = values.chunks(4).zip(inputs.chunks(4)).zip(quads);
        for ((values, inputs), quad) in columns {
            for ((value, input), code) in values.iter().zip(inputs).zip(&quad.0[4 * lane..4 * lane + 4]) {
                let (value, input) = (f64::from(*value), f64::from(*input));
                let error = value - f64::from((f32::from(*code) - 128.0) * scale);
                self.errors += error * error * input * input + value * value * rounding;
                self.outputs += value * value * input * input;
            }
        }
    }
}

/// The smallest bf16 that is not below `x` (x >= 0): codes then never leave -127..=127.
fn round_up(x: f32) -> bf16 {
    let bits = x.to_bits();
    let up = (bits >> 16) + u32::from(bits & 0xffff != 0);
    // Beyond the largest finite value: keep infinities and NaN as they are, they mark a broken weight.
    bf16::from_bits(up as u16)
}

impl MatmulInt8 {
    /// Also gives, per row, what int8 changes for `inputs`: `[ceil(N / 16)][16]`.
    pub(super) fn pack(
        kernels: &Kernels,
        source: &Stack<'_>,
        inputs: &[f32],
    ) -> (MatmulInt8, Vec<[Squares; LANES]>) {
        let columns = source.columns;
        let groups = columns.div_ceil(GROUP);
        let count = source.rows.div_ceil(LANES);
        let mut codes = Pages::zeroed(count * groups * QUADS);
        let mut scales: Pages<[u16; LANES]> = Pages::zeroed(count * groups);
        let mut squares = vec![[Squares::default(); LANES]; count];
        let (code_parts, scale_parts) = (Shared::new(&mut codes), Shared::new(&mut scales));
        let square_parts = Shared::new(&mut squares);
        kernels.pool().run(count, &|panel| {
            // SAFETY: each panel is one task, and the parts of different panels are disjoint.
            let (codes, scales, squares) = unsafe {
                let codes = code_parts.part(panel * groups * QUADS..(panel + 1) * groups * QUADS);
                let scales = scale_parts.part(panel * groups..(panel + 1) * groups);
                (codes, scales, &mut square_parts.part(panel..panel + 1)[0])
            };
            codes.fill(Quad([128; 4 * LANES]));
            let mut row = vec![0.0; columns];
            for lane in 0..LANES.min(source.rows - panel * LANES) {
                if let Some((row, scale)) = source.codes(panel * LANES + lane) {
                    keep_codes(row, scale, lane, codes, scales);
                    continue;
                }
                source.read(panel * LANES + lane, &mut row);
                for (group, values) in row.chunks(GROUP).enumerate() {
                    let quads = &mut codes[group * QUADS..(group + 1) * QUADS];
                    let scale = quantize_group(values, lane, quads);
                    scales[group][lane] = scale.to_bits();
                    let inputs = &inputs[group * GROUP..][..values.len()];
                    squares[lane].add(values, scale.to_f32(), lane, quads, inputs);
                }
            }
            source.done(panel * LANES, LANES);
        });
        (MatmulInt8 { codes: codes.into(), scales: scales.into(), columns }, squares)
    }

    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let place = panel * self.groups() + group;
            let scale = bf16::from_bits(self.scales[place][lane]).to_f32();
            for (column, to) in out.iter_mut().enumerate() {
                let code = self.codes[place * QUADS + column / 4].0[4 * lane + column % 4];
                *to = (f32::from(code) - 128.0) * scale;
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.scales)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    fn groups(&self) -> usize {
        self.columns.div_ceil(GROUP)
    }

    pub(super) fn with<'a>(&'a self, x: &'a QuantizedRows) -> impl TileKernel + 'a {
        Product { weights: self, x }
    }
}

/// Writes the codes of one row of a group and gives its scale.
///
/// A group with NaN or an infinity gets the scale NaN, so that the fault shows in every output of the row.
fn quantize_group(values: &[f32], lane: usize, quads: &mut [Quad]) -> bf16 {
    if values.iter().any(|v| !v.is_finite()) {
        return bf16::NAN;
    }
    let largest = values.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
    let scale = round_up(largest / 127.0);
    // Too small for codes: the group counts as zero.
    if largest < f32::MIN_POSITIVE * 256.0 {
        return bf16::ZERO;
    }
    for (column, &value) in values.iter().enumerate() {
        let code = (value / scale.to_f32()).round_ties_even().clamp(-127.0, 127.0) as i32;
        quads[column / 4].0[4 * lane + column % 4] = (code + 128) as u8;
    }
    scale
}

/// Takes over a row that is int8 already: its codes as they are, its scale in every group, rounded to bf16.
///
/// The code -128, which other quantisers use at times for a row's largest weight, becomes -127: kernels need codes that can
/// change their sign. One weight moves by one step; quantising its group anew would move all of them.
fn keep_codes(row: &[u8], scale: f32, lane: usize, codes: &mut [Quad], scales: &mut [[u16; LANES]]) {
    for (column, &code) in row.iter().enumerate() {
        codes[column / 4].0[4 * lane + column % 4] = (code ^ 0x80).max(1);
    }
    scales.iter_mut().for_each(|group| group[lane] = bf16::from_f32(scale).to_bits());
}

struct Product<'a> {
    weights: &'a MatmulInt8,
    x: &'a QuantizedRows,
}

impl TileKernel for Product<'_> {
    fn row_bytes(&self) -> usize {
        self.weights.groups() * GROUP
    }

    fn panel(&self, panel: usize) -> *const u8 {
        self.weights.codes.as_ptr().wrapping_add(panel * self.weights.groups() * QUADS).cast()
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        mut fetch: Fetch,
    ) -> [[S::F; NP]; MR] {
        let groups = self.weights.groups();
        let first = row * groups;
        let x = self.x.codes().as_ptr().wrapping_add(first * GROUP);
        let sums = self.x.sums().as_ptr().wrapping_add(first);
        let x_scales = self.x.scales().as_ptr().wrapping_add(first);
        let codes = self.weights.codes.as_ptr().wrapping_add(panel * groups * QUADS);
        let scales = self.weights.scales.as_ptr().wrapping_add(panel * groups);
        let mut total = [[s.zero(); NP]; MR];
        for group in 0..groups {
            let mut acc = [[s.dot_start(0); NP]; MR];
            for r in 0..MR {
                // SAFETY: row + r exists (the caller's promise), group < groups.
                acc[r] = [s.dot_start(unsafe { *sums.wrapping_add(r * groups + group) }); NP];
            }
            if !NEAR {
                fetch.share(s);
            }
            for quad in 0..QUADS {
                if NEAR {
                    fetch.near::<S, NP>(s, group * QUADS + quad);
                }
                let mut vectors = [s.weights(&[0; 4 * LANES]); NP];
                for p in 0..NP {
                    let at = codes.wrapping_add((p * groups + group) * QUADS + quad);
                    // SAFETY: panel + p exists (the caller's promise), group < groups, quad < 32.
                    vectors[p] = s.weights(unsafe { &(*at).0 });
                }
                for r in 0..MR {
                    let at = x.wrapping_add((r * groups + group) * GROUP + 4 * quad);
                    // SAFETY: row + r exists (the caller's promise) with `groups` groups of 128 codes.
                    let value = s.quad(unsafe { &*at.cast::<[i8; 4]>() });
                    for p in 0..NP {
                        acc[r][p] = s.dot(acc[r][p], vectors[p], value);
                    }
                }
            }
            for p in 0..NP {
                // SAFETY: panel + p exists (the caller's promise), group < groups.
                let scale = s.load_bf16(unsafe { &*scales.wrapping_add(p * groups + group) });
                for r in 0..MR {
                    // SAFETY: row + r exists (the caller's promise), group < groups.
                    let x_scale = s.splat(unsafe { *x_scales.wrapping_add(r * groups + group) });
                    total[r][p] = s.fma(s.to_f32(acc[r][p]), s.mul(x_scale, scale), total[r][p]);
                }
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_round_up() {
        assert_eq!(round_up(1.0).to_f32(), 1.0);
        assert_eq!(round_up(1.0 + 1e-6).to_f32(), 1.007_812_5);
        assert_eq!(round_up(0.0).to_f32(), 0.0);
    }
}
