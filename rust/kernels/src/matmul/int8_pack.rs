//! Quantises rows of a checkpoint to packed int8 and estimates the quantisation error.

use half::bf16;

use super::int8::{MatmulInt8, QUADS, Quad};
use super::weight_rows::StackedRows;
use crate::context::Kernels;
use crate::pages::Pages;
use crate::parallel::Shared;
use crate::quant_scheme::{GROUP, Rotation};
use crate::rotation::{WEIGHT_SCALE, rotate};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Maximum of a group of activations divided by their typical magnitude, for normally distributed values.
const MAX_TO_TYPICAL: f64 = 3.0;
/// value + ROUND, for values below 2^22, has the nearest integer (ties to even) in its low bits.
const ROUND: f32 = 12_582_912.0;

/// Expected squares of one output over independent inputs, each channel with its own magnitude.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MeanSquares {
    /// Mean square of the error: of rounding the weights, and of rounding the inputs.
    pub errors: f64,
    /// Mean square of the output.
    pub outputs: f64,
}

/// The typical magnitudes of the channels of x, group by group.
struct ChannelMagnitudes {
    /// The largest of each group.
    largest: Vec<f64>,
    /// Squares of the magnitudes relative to `largest`, `[groups * 128]`, zero beyond k.
    shares: Vec<f32>,
    /// The magnitude of each channel of a group after its rotation: all have the same.
    rotated: Vec<f64>,
}

impl ChannelMagnitudes {
    fn new(inputs: &[f32]) -> ChannelMagnitudes {
        let mut shares = vec![0.0; inputs.len().next_multiple_of(GROUP)];
        let (mut largest, mut rotated) = (Vec::new(), Vec::new());
        for (inputs, shares) in inputs.chunks(GROUP).zip(shares.chunks_exact_mut(GROUP)) {
            let top = inputs.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
            largest.push(f64::from(top));
            rotated.push(inputs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt());
            if top > 0.0 {
                shares.iter_mut().zip(inputs).for_each(|(share, x)| *share = (x / top) * (x / top));
            }
        }
        ChannelMagnitudes { largest, shares, rotated }
    }
}

/// Packs `source`; without rotation if a part is stored as int8. Also returns the mean squares of each row for the magnitudes
/// `inputs`, `[ceil(n / 16)][16]`.
pub(super) fn pack(
    kernels: &Kernels,
    source: &StackedRows<'_>,
    inputs: &[f32],
    rotation: Rotation,
) -> (MatmulInt8, Vec<[MeanSquares; LANES]>) {
    let columns = source.columns;
    let rotation = if source.has_codes() { Rotation::None } else { rotation };
    let groups = columns.div_ceil(GROUP);
    let count = source.rows.div_ceil(LANES);
    let mut codes = Pages::zeroed(count * groups * QUADS);
    let mut scales: Pages<[u16; LANES]> = Pages::zeroed(count * groups);
    let mut squares = vec![[MeanSquares::default(); LANES]; count];
    let (code_parts, scale_parts) = (Shared::new(&mut codes), Shared::new(&mut scales));
    let square_parts = Shared::new(&mut squares);
    let inputs = ChannelMagnitudes::new(inputs);
    kernels.pool().run(count, &|panel| {
        // SAFETY: each panel is one task, and the parts of different panels are disjoint.
        let (codes, scales, squares) = unsafe {
            let codes = code_parts.part(panel * groups * QUADS..(panel + 1) * groups * QUADS);
            let scales = scale_parts.part(panel * groups..(panel + 1) * groups);
            (codes, scales, &mut square_parts.part(panel..panel + 1)[0])
        };
        dispatch(
            kernels,
            PackPanel { source, inputs: &inputs, rotation, first: panel * LANES, codes, scales, squares },
        );
        source.done(panel * LANES, LANES);
    });
    (MatmulInt8 { codes: codes.into(), scales: scales.into(), columns, rotation }, squares)
}

/// The smallest bf16 >= `x` (x >= 0): then codes stay within -127..=127.
#[inline(always)]
fn round_up(x: f32) -> bf16 {
    let bits = x.to_bits();
    let up = (bits >> 16) + u32::from(bits & 0xffff != 0);
    // Beyond the largest finite value: keep infinities and NaN as they are, they mark a broken weight.
    bf16::from_bits(up as u16)
}

/// Op: packs 16 rows, from row `first` on.
struct PackPanel<'a> {
    source: &'a StackedRows<'a>,
    inputs: &'a ChannelMagnitudes,
    rotation: Rotation,
    first: usize,
    codes: &'a mut [Quad],
    scales: &'a mut [[u16; LANES]],
    squares: &'a mut [MeanSquares; LANES],
}

impl Op for PackPanel<'_> {
    type Output = ();

    // Plain loops over whole groups: the compiler vectorises them for the level. No rounding depends on it.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.codes.fill(Quad([128; 4 * LANES]));
        let columns = self.source.columns;
        let mut row = vec![0.0; self.scales.len() * GROUP];
        for lane in 0..LANES.min(self.source.rows - self.first) {
            if let Some((row, scale)) = self.source.codes(self.first + lane) {
                keep_codes(row, scale, lane, self.codes, self.scales);
                continue;
            }
            self.source.read(self.first + lane, &mut row[..columns]);
            for (group, values) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                let quads = &mut self.codes[group * QUADS..(group + 1) * QUADS];
                let shares: &[f32] = &self.inputs.shares[group * GROUP..(group + 1) * GROUP];
                let largest = self.inputs.largest[group];
                let squares = &mut self.squares[lane];
                let scale = match self.rotation {
                    Rotation::None => quantize_group(values, shares, largest, lane, quads, squares),
                    Rotation::Hadamard => {
                        // The rotated channels are not independent, so outputs come from the channels as they are.
                        let outputs = squares.outputs + output_square(values, shares, largest);
                        let values = rotate(s, values).map(|value| value * WEIGHT_SCALE);
                        let largest = self.inputs.rotated[group];
                        let scale = quantize_group(&values, &[1.0; GROUP], largest, lane, quads, squares);
                        squares.outputs = outputs;
                        scale
                    }
                };
                self.scales[group][lane] = scale.to_bits();
            }
        }
    }
}

/// Expected square of the output of a group.
#[inline(always)]
fn output_square(values: &[f32; GROUP], shares: &[f32], largest_input: f64) -> f64 {
    let mut sums = [0.0_f64; LANES];
    for (values, shares) in values.as_chunks::<LANES>().0.iter().zip(shares.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            sums[i] += f64::from(values[i]) * f64::from(values[i]) * f64::from(shares[i]);
        }
    }
    sums.iter().sum::<f64>() * largest_input.powi(2)
}

/// Writes the codes of one row of a group, adds its squares and returns the scale.
///
/// A group with NaN or an infinity gets the scale NaN: then every output of the row is NaN.
#[inline(always)]
fn quantize_group(
    values: &[f32; GROUP],
    shares: &[f32],
    largest_input: f64,
    lane: usize,
    quads: &mut [Quad],
    squares: &mut MeanSquares,
) -> bf16 {
    // Magnitudes have the order of their bits; NaN and infinities are the largest.
    let top = values.iter().fold(0, |top, v| (v.to_bits() & 0x7fff_ffff).max(top));
    let largest = f32::from_bits(top);
    if !largest.is_finite() {
        *squares = MeanSquares { errors: f64::NAN, outputs: f64::NAN };
        return bf16::NAN;
    }
    // Too small for codes: the group counts as zero.
    if largest < f32::MIN_POSITIVE * 256.0 {
        let lost = output_square(values, shares, largest_input);
        squares.errors += lost;
        squares.outputs += lost;
        return bf16::ZERO;
    }
    let scale = round_up(largest / 127.0);
    let step = scale.to_f32();
    let mut codes = [0_u8; GROUP];
    // In units of the step: rounding errors of weights, weights, and outputs.
    let (mut errors, mut weights, mut outputs) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
    for start in (0..GROUP).step_by(LANES) {
        for i in 0..LANES {
            let value = values[start + i] / step;
            let rounded = value.clamp(-127.0, 127.0) + ROUND;
            codes[start + i] = (rounded.to_bits() as u8).wrapping_add(128);
            let (error, share) = (value - (rounded - ROUND), shares[start + i]);
            errors[i] += error * error * share;
            weights[i] += value * value;
            outputs[i] += value * value * share;
        }
    }
    for (quad, codes) in quads.iter_mut().zip(codes.as_chunks::<4>().0) {
        quad.0[4 * lane..4 * lane + 4].copy_from_slice(codes);
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().map(|x| f64::from(*x)).sum::<f64>();
    // The rounding error of an input is uniform, up to half a step of largest / 127.
    let rounding = (MAX_TO_TYPICAL / 127.0).powi(2) / 12.0;
    let unit = (f64::from(step) * largest_input).powi(2);
    squares.errors += unit * (sum(errors) + rounding * sum(weights));
    squares.outputs += unit * sum(outputs);
    scale
}

/// Copies a row that is already int8: the same codes, and its scale (rounded to bf16) in every group.
///
/// The code -128 becomes -127: kernels negate codes. Some quantisers use -128 for the largest weight of a row. One weight
/// changes by one step; a new quantisation would change the whole group.
fn keep_codes(row: &[u8], scale: f32, lane: usize, codes: &mut [Quad], scales: &mut [[u16; LANES]]) {
    for (column, &code) in row.iter().enumerate() {
        codes[column / 4].0[4 * lane + column % 4] = (code ^ 0x80).max(1);
    }
    scales.iter_mut().for_each(|group| group[lane] = bf16::from_f32(scale).to_bits());
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

    /// Codes against the definition: division, rounding to nearest with ties to even.
    #[test]
    fn codes_are_rounded_quotients() {
        for seed in 0..200_u32 {
            // Includes halves, for ties.
            let value = |i: usize| {
                let bits = (seed.wrapping_mul(2_654_435_761).wrapping_add(i as u32 * 40_503)) >> 7;
                (bits % 509) as f32 - 254.0
            };
            let values: [f32; GROUP] = std::array::from_fn(|i| value(i) / 2.0);
            let (mut quads, mut squares) = ([Quad([128; 4 * LANES]); QUADS], MeanSquares::default());
            let scale = quantize_group(&values, &[1.0; GROUP], 1.0, 3, &mut quads, &mut squares).to_f32();
            for (i, v) in values.iter().enumerate() {
                let code = i32::from(quads[i / 4].0[12 + i % 4]) - 128;
                assert_eq!(code, (v / scale).round_ties_even() as i32, "{v} in steps of {scale}");
            }
        }
    }
}
