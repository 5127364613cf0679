//! Rows of a checkpoint to packed int8, with what that changes.

use half::bf16;

use super::int8::{MatmulInt8, QUADS, Quad};
use super::weight_rows::StackedRows;
use crate::context::Kernels;
use crate::pages::Pages;
use crate::parallel::Shared;
use crate::quantize::GROUP;
use crate::simd::{LANES, Op, Simd, dispatch};

/// How many times the typical magnitude the largest of a group of activations is: that of normal values.
const PEAK: f64 = 3.0;
/// Added to a value below 2^22 it leaves the value's integer, ties to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// What int8 changes in an output, expected over inputs that are independent, each channel of its own size.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Squares {
    /// Mean square of the error: of rounding the weights, and of rounding the inputs.
    pub errors: f64,
    /// Mean square of the output.
    pub outputs: f64,
}

/// The typical magnitudes of the channels of x, group by group.
struct Inputs {
    /// The largest of each group.
    largest: Vec<f64>,
    /// Squares of the others as shares of it, `[groups * 128]`, zero beyond K.
    shares: Vec<f32>,
}

impl Inputs {
    fn new(inputs: &[f32]) -> Inputs {
        let mut shares = vec![0.0; inputs.len().next_multiple_of(GROUP)];
        let mut largest = Vec::new();
        for (inputs, shares) in inputs.chunks(GROUP).zip(shares.chunks_exact_mut(GROUP)) {
            let top = inputs.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
            largest.push(f64::from(top));
            if top > 0.0 {
                shares.iter_mut().zip(inputs).for_each(|(share, x)| *share = (x / top) * (x / top));
            }
        }
        Inputs { largest, shares }
    }
}

/// Packs `source`. Also gives, per row, what int8 changes for `inputs`: `[ceil(N / 16)][16]`.
pub(super) fn pack(
    kernels: &Kernels,
    source: &StackedRows<'_>,
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
    let inputs = Inputs::new(inputs);
    kernels.pool().run(count, &|panel| {
        // SAFETY: each panel is one task, and the parts of different panels are disjoint.
        let (codes, scales, squares) = unsafe {
            let codes = code_parts.part(panel * groups * QUADS..(panel + 1) * groups * QUADS);
            let scales = scale_parts.part(panel * groups..(panel + 1) * groups);
            (codes, scales, &mut square_parts.part(panel..panel + 1)[0])
        };
        dispatch(kernels, Panel { source, inputs: &inputs, first: panel * LANES, codes, scales, squares });
        source.done(panel * LANES, LANES);
    });
    (MatmulInt8 { codes: codes.into(), scales: scales.into(), columns }, squares)
}

/// The smallest bf16 that is not below `x` (x >= 0): codes then never leave -127..=127.
#[inline(always)]
fn round_up(x: f32) -> bf16 {
    let bits = x.to_bits();
    let up = (bits >> 16) + u32::from(bits & 0xffff != 0);
    // Beyond the largest finite value: keep infinities and NaN as they are, they mark a broken weight.
    bf16::from_bits(up as u16)
}

/// Sixteen rows of the matrix, from row `first` on.
struct Panel<'a> {
    source: &'a StackedRows<'a>,
    inputs: &'a Inputs,
    first: usize,
    codes: &'a mut [Quad],
    scales: &'a mut [[u16; LANES]],
    squares: &'a mut [Squares; LANES],
}

impl Op for Panel<'_> {
    type Output = ();

    // Loops over whole groups of plain values: the compiler turns them into vectors of the level. No operation depends on it.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
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
                self.scales[group][lane] =
                    quantize_group(values, shares, largest, lane, quads, &mut self.squares[lane]).to_bits();
            }
        }
    }
}

/// Writes the codes of one row of a group, adds what they change and gives the scale.
///
/// A group with NaN or an infinity gets the scale NaN, so that the fault shows in every output of the row.
#[inline(always)]
fn quantize_group(
    values: &[f32; GROUP],
    shares: &[f32],
    largest_input: f64,
    lane: usize,
    quads: &mut [Quad],
    squares: &mut Squares,
) -> bf16 {
    // Magnitudes order as their bits do, and what is not finite has the largest.
    let top = values.iter().fold(0, |top, v| (v.to_bits() & 0x7fff_ffff).max(top));
    let largest = f32::from_bits(top);
    if !largest.is_finite() {
        *squares = Squares { errors: f64::NAN, outputs: f64::NAN };
        return bf16::NAN;
    }
    // Too small for codes: the group counts as zero.
    if largest < f32::MIN_POSITIVE * 256.0 {
        let of = |(value, share): (&f32, &f32)| f64::from(*value).powi(2) * f64::from(*share);
        let lost = values.iter().zip(shares).map(of).sum::<f64>() * largest_input.powi(2);
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
    // An input is rounded by up to half a step of largest / 127: a uniform error.
    let rounding = (PEAK / 127.0).powi(2) / 12.0;
    let unit = (f64::from(step) * largest_input).powi(2);
    squares.errors += unit * (sum(errors) + rounding * sum(weights));
    squares.outputs += unit * sum(outputs);
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
            // Halves among them, so that ties come.
            let value = |i: usize| {
                let bits = (seed.wrapping_mul(2_654_435_761).wrapping_add(i as u32 * 40_503)) >> 7;
                (bits % 509) as f32 - 254.0
            };
            let values: [f32; GROUP] = std::array::from_fn(|i| value(i) / 2.0);
            let (mut quads, mut squares) = ([Quad([128; 4 * LANES]); QUADS], Squares::default());
            let scale = quantize_group(&values, &[1.0; GROUP], 1.0, 3, &mut quads, &mut squares).to_f32();
            for (i, v) in values.iter().enumerate() {
                let code = i32::from(quads[i / 4].0[12 + i % 4]) - 128;
                assert_eq!(code, (v / scale).round_ties_even() as i32, "{v} in steps of {scale}");
            }
        }
    }
}
