//! Matrix products against naive loops, and bit by bit across row counts, threads and instruction sets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, assert_close, bits, every_context, kernels};
use octavo_kernels::{
    Activation, GROUP, Isa, Kernels, Linear, LoraRows, QuantScheme, QuantizedRows, WeightDtype, WeightRows,
    activate_and_mul, bf16, f16, forward_gated, forward_lora_quantized,
};
use proptest::prelude::*;

const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::INT8];
/// A product without adapters.
fn without(h: &mut Vec<f32>) -> LoraRows<'_> {
    LoraRows { runs: &[], h }
}

/// (m, n, k) around vector, panel, tile, group, block and job borders.
const SHAPES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (1, 16, 4),
    (2, 15, 3),
    (3, 17, 127),
    (4, 33, 128),
    (5, 64, 129),
    (6, 65, 31),
    (7, 100, 200),
    (8, 48, 256),
    (9, 130, 257),
    (1, 200, 385),
    (23, 80, 64),
    // More rows than a block, and more panels than one group to a job.
    (300, 40, 9),
    (6, 1100, 5),
    // Several slabs of groups, pairs of tiles and a rest of each kind.
    (64, 70, 1200),
    (75, 33, 700),
    (90, 16, 1300),
];

on_each_isa!(
    float_products_match_f64,
    int8_products_match_exact_sums,
    bias_and_stride_are_honoured,
    rows_read_back,
    faults_show,
    gated_is_its_steps,
    random_shapes
);

fn forward(kernels: &Kernels, linear: &Linear, x: &[f32], m: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * linear.out_features()];
    linear.forward(kernels, x, m, bias, &mut y, &mut QuantizedRows::new());
    y
}

/// x w^T in f64, w as `row` reads it back (so that the rounding of weights is not the product's error).
fn reference(linear: &Linear, x: &[f32], m: usize) -> Vec<f64> {
    let (n, k) = (linear.out_features(), linear.in_features());
    let mut w = vec![0.0; n * k];
    w.chunks_exact_mut(k).enumerate().for_each(|(row, out)| linear.row(row, out));
    let mut y = Vec::with_capacity(m * n);
    for x in x.chunks_exact(k) {
        for w in w.chunks_exact(k) {
            y.push(x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum());
        }
    }
    y
}

fn float_products_match_f64(isa: Isa) {
    let kernels = kernels(isa, 2);
    for (seed, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let mut rng = Rng(seed as u64);
        let (w, x) = (rng.floats(n * k), rng.floats(m * k));
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, dtype);
            let y = forward(&kernels, &linear, &x, m, None);
            // One rounding of 2^-24 for each of k terms, in the worst case.
            let tolerance = 6e-8 * k as f64 + 1e-7;
            assert_close(&format!("{dtype:?} {m}x{n}x{k}"), &y, &reference(&linear, &x, m), tolerance);
        }
    }
}

/// The int8 product by its definition: integer sums per group, then one fma per group in f32. Bit-equal.
fn naive_int8(linear: &Linear, x: &QuantizedRows) -> Vec<f32> {
    let (n, k) = (linear.out_features(), linear.in_features());
    let groups = k.div_ceil(GROUP);
    let mut w = vec![0.0; k];
    let mut y = vec![0.0_f32; x.rows() * n];
    for column in 0..n {
        linear.row(column, &mut w);
        for row in 0..x.rows() {
            let codes = &x.codes()[row * groups * GROUP..];
            for group in 0..groups {
                let w = &w[group * GROUP..k.min((group + 1) * GROUP)];
                let scale = group_scale(w);
                let sum: i32 = w
                    .iter()
                    .zip(&codes[group * GROUP..])
                    .map(|(&w, &x)| if scale == 0.0 { 0 } else { (w / scale).round() as i32 * i32::from(x) })
                    .sum();
                let scale = x.scales()[row * groups + group] * scale;
                y[row * n + column] = (sum as f32).mul_add(scale, y[row * n + column]);
            }
        }
    }
    y
}

/// The scale of a group as the format defines it, from values that are codes times scale: the largest code is 127 or,
/// after the scale was rounded up, 126; a bf16 decides which.
fn group_scale(w: &[f32]) -> f32 {
    let largest = w.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let exact = |code: f32| {
        let scale = largest / code;
        (bf16::from_f32(scale).to_f32() == scale && scale * code == largest).then_some(scale)
    };
    if largest == 0.0 { 0.0 } else { exact(127.0).or(exact(126.0)).expect("largest code is 127 or 126") }
}

fn int8_products_match_exact_sums(isa: Isa) {
    let kernels = kernels(isa, 2);
    for (seed, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let mut rng = Rng(100 + seed as u64);
        let (w, x) = (rng.floats(n * k), rng.floats(m * k));
        let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
        let mut quantized = QuantizedRows::new();
        quantized.quantize(&kernels, &x, k);
        let mut y = vec![f32::NAN; m * n];
        forward_lora_quantized(&kernels, &linear, &quantized, None, without(&mut Vec::new()), &mut y);
        assert_eq!(bits(&y), bits(&naive_int8(&linear, &quantized)), "{m}x{n}x{k}");
        assert_eq!(bits(&y), bits(&forward(&kernels, &linear, &x, m, None)), "{m}x{n}x{k}: quantised inside");
        // Against the product without any quantisation: both sides have codes of about +-127.
        let exact = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::F32);
        assert_close(&format!("int8 {m}x{n}x{k}"), &y, &reference(&exact, &x, m), 0.04);
    }
}

/// The estimated quantisation error equals the measured error of products of such inputs, part by part.
#[test]
fn quantize_foretells_the_error_of_each_part() {
    let (n, k, m) = ([19, 5, 40, 3], 300, 200);
    let mut rng = Rng(7);
    let mut parts: Vec<Vec<f32>> = n.iter().map(|n| rng.floats(n * k)).collect();
    parts[3].fill(0.0);
    let mut inputs = vec![1.0; k];
    // A channel that hardly speaks and is turned up by the weights: other weights of its group, and its own values,
    // lose their resolution.
    inputs[140] = 0.05;
    parts[1].iter_mut().skip(140).step_by(k).for_each(|v| *v = 30.0);
    let x: Vec<f32> = (0..m).flat_map(|_| normal(&mut rng, &inputs)).collect();
    let rows: Vec<WeightRows<'_>> = parts.iter().map(|part| WeightRows::F32(part)).collect();
    for kernels in every_context() {
        let (linear, errors) =
            Linear::quantize(&kernels, &rows, k, QuantScheme::INT8, Some(&inputs), &|_| ());
        let exact = Linear::pack(&kernels, &rows, k, WeightDtype::F32);
        let (got, want) = (forward(&kernels, &linear, &x, m, None), reference(&exact, &x, m));
        let mut first = 0;
        for (part, error) in n.iter().zip(&errors) {
            let (mut off, mut all) = (0.0, 0.0);
            for row in 0..m {
                for column in first..first + part {
                    let place = row * linear.out_features() + column;
                    off += (f64::from(got[place]) - want[place]).powi(2);
                    all += want[place].powi(2);
                }
            }
            first += part;
            let shown = if all == 0.0 { 0.0 } else { (off / all).sqrt() };
            assert!((error - shown).abs() <= 0.2 * shown, "{error} was foretold, {shown} came: {errors:?}");
        }
        assert!(errors[0] < 0.02 && errors[1] > 0.05, "{errors:?}");
    }
    let broken = [1.0, f32::NAN, 3.0];
    let (_, errors) = Linear::quantize(
        &kernels(Isa::Portable, 1),
        &[WeightRows::F32(&broken)],
        3,
        QuantScheme::INT8,
        None,
        &|_| (),
    );
    assert!(errors[0].is_nan());
}

/// Normal values, one for each magnitude.
fn normal(rng: &mut Rng, magnitudes: &[f32]) -> Vec<f32> {
    let sums: Vec<f32> = rng.floats(12 * magnitudes.len()).chunks(12).map(|v| v.iter().sum()).collect();
    let size = (sums.iter().map(|v| v * v).sum::<f32>() / sums.len() as f32).sqrt();
    sums.iter().zip(magnitudes).map(|(v, m)| v / size * m).collect()
}

/// Every code at its extreme: the sums that overflow first, were anything narrower than i32.
#[test]
fn int8_extremes_do_not_saturate() {
    for kernels in every_context() {
        let k = 256;
        for (sign_w, sign_x) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
            let (w, x) = (vec![sign_w * 127.0; 16 * k], vec![sign_x * 127.0; k]);
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
            let want = sign_w * sign_x * (127 * 127 * k) as f32;
            assert_eq!(forward(&kernels, &linear, &x, 1, None), vec![want; 16], "{}", kernels.isa());
        }
    }
}

fn bias_and_stride_are_honoured(isa: Isa) {
    let kernels = kernels(isa, 2);
    let (m, n, k) = (5, 37, 70);
    let mut rng = Rng(7);
    let (w, x, bias) = (rng.floats(n * k), rng.floats(m * k), rng.floats(n));
    for dtype in DTYPES {
        let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, dtype);
        let plain = forward(&kernels, &linear, &x, m, None);
        let stride = n + 3;
        let mut y = vec![7.0; (m - 1) * stride + n];
        linear.forward_strided(&kernels, &x, m, Some(&bias), &mut y, stride, &mut QuantizedRows::new());
        for (place, &got) in y.iter().enumerate() {
            let (row, column) = (place / stride, place % stride);
            let want = if column < n { plain[row * n + column] + bias[column] } else { 7.0 };
            assert_eq!(got.to_bits(), want.to_bits(), "{dtype:?} row {row} column {column}");
        }
    }
}

fn rows_read_back(isa: Isa) {
    let kernels = kernels(isa, 2);
    let (n, k) = (35, 150);
    let w = Rng(8).floats(n * k);
    let half: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
    let short: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
    let bytes: Vec<u8> = std::iter::once(0).chain(half.iter().flat_map(|v| v.to_le_bytes())).collect();
    let mut out = vec![0.0; k];
    // Parts of different dtypes below each other; the bytes lie at an odd address.
    let parts = [
        WeightRows::F32(&w[..10 * k]),
        WeightRows::Bf16(&half),
        WeightRows::F16(&short[..3 * k]),
        WeightRows::Bf16Bytes(&bytes[1..]),
    ];
    let linear = Linear::pack(&kernels, &parts, k, WeightDtype::F32);
    assert_eq!(linear.out_features(), 10 + n + 3 + n);
    for row in 0..n {
        linear.row(10 + row, &mut out);
        assert_eq!(
            out,
            half[row * k..][..k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(),
            "bf16 row {row}"
        );
        linear.row(10 + n + 3 + row, &mut out);
        assert_eq!(
            out,
            half[row * k..][..k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(),
            "bytes row {row}"
        );
    }
    linear.row(10 + n + 2, &mut out);
    assert_eq!(out, short[2 * k..3 * k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(), "f16 row");
    let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
    for (row, w) in w.chunks_exact(k).enumerate() {
        linear.row(row, &mut out);
        for (w, out) in w.chunks(GROUP).zip(out.chunks(GROUP)) {
            let step = w.iter().fold(0.0_f32, |a, v| a.max(v.abs())) / 127.0 * (1.0 + 1.0 / 128.0);
            for (a, b) in w.iter().zip(out) {
                assert!((a - b).abs() <= step * 0.501, "row {row}: {a} came back as {b}, step {step}");
            }
        }
    }
    assert_eq!(linear.bytes(), 3 * 2 * (16 * GROUP + 32));
}

fn faults_show(isa: Isa) {
    let kernels = kernels(isa, 1);
    let (m, n, k) = (3, 20, 300);
    let mut rng = Rng(9);
    let (w, mut x) = (rng.floats(n * k), rng.floats(m * k));
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        x[k + 140] = fault;
        for dtype in DTYPES {
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, dtype);
            let y = forward(&kernels, &linear, &x, m, None);
            assert!(y[n..2 * n].iter().all(|v| !v.is_finite()), "{dtype:?}: {fault} in row 1 vanished");
            assert!(y[..n].iter().chain(&y[2 * n..]).all(|v| v.is_finite()), "{dtype:?}: other rows");
        }
    }
    // Zeros and numbers too small for a scale give zero, not NaN.
    let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
    for tiny in [0.0, 1e-40, -1e-38] {
        assert!(forward(&kernels, &linear, &vec![tiny; k], 1, None).iter().all(|&v| v == 0.0), "x = {tiny}");
    }
    let linear = Linear::pack(&kernels, &[WeightRows::F32(&vec![1e-39; n * k])], k, WeightDtype::INT8);
    assert!(forward(&kernels, &linear, &x[..k], 1, None).iter().all(|&v| v == 0.0), "tiny weights");
}

fn random_shapes(isa: Isa) {
    let kernels = kernels(isa, 2);
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(m in 1_usize..14, n in 1_usize..90, k in 1_usize..300, seed: u64)| {
        let mut rng = Rng(seed);
        let (w, x) = (rng.floats(n * k), rng.floats(m * k));
        let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::F32);
        let y = forward(&kernels, &linear, &x, m, None);
        assert_close(&format!("{m}x{n}x{k}"), &y, &reference(&linear, &x, m), 6e-8 * k as f64 + 1e-7);
        let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
        let mut quantized = QuantizedRows::new();
        quantized.quantize(&kernels, &x, k);
        let mut y = vec![f32::NAN; m * n];
        forward_lora_quantized(&kernels, &linear, &quantized, None, without(&mut Vec::new()), &mut y);
        prop_assert_eq!(bits(&y), bits(&naive_int8(&linear, &quantized)));
    });
}

/// The bits of a row depend on nothing but the row.
#[test]
fn rows_have_the_same_bits_everywhere() {
    let contexts = every_context();
    for (n, k) in [(70, 200), (129, 513), (16, 1)] {
        let mut rng = Rng(n as u64);
        let (w, x) = (rng.floats(n * k), rng.floats(9 * k));
        for dtype in DTYPES {
            let linear = Linear::pack(&contexts[0], &[WeightRows::F32(&w)], k, dtype);
            let want: Vec<u32> =
                x.chunks_exact(k).flat_map(|x| bits(&forward(&contexts[0], &linear, x, 1, None))).collect();
            for kernels in &contexts {
                let linear = Linear::pack(kernels, &[WeightRows::F32(&w)], k, dtype);
                for m in 1..=9 {
                    let got = bits(&forward(kernels, &linear, &x[(9 - m) * k..], m, None));
                    let (isa, threads) = (kernels.isa(), kernels.threads());
                    assert_eq!(
                        got,
                        want[(9 - m) * n..],
                        "{dtype:?} m={m} n={n} k={k} {isa} threads={threads}"
                    );
                }
            }
        }
    }
}

/// The pass in one gives the bits of its steps, where it is taken.
fn gated_is_its_steps(isa: Isa) {
    let kernels = kernels(isa, 2);
    let shapes = [
        (1, 40, 32),
        (5, 130, 16),
        (16, 128, 128),
        (17, 300, 144),
        (33, 257, 272),
        (70, 64, 400),
        (150, 64, 144),
        (520, 64, 96),
    ];
    for (number, (m, columns, inner)) in shapes.into_iter().enumerate() {
        for f in [Activation::Silu, Activation::GeluTanh] {
            let mut rng = Rng(900 + number as u64);
            let weights = rng.floats(2 * inner * columns);
            let x = rng.floats(m * columns);
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&weights)], columns, WeightDtype::INT8);
            let (mut got, mut want) = (QuantizedRows::new(), QuantizedRows::new());
            let mut scratch = QuantizedRows::new();
            let mut h = Vec::new();
            if !forward_gated(&kernels, &linear, &x, f, without(&mut h), &mut got, &mut scratch) {
                assert!(m < if isa == Isa::Amx { 5 } else { 64 }, "m = {m}, inner {inner} is not taken");
                continue;
            }
            let (mut gate_up, mut activated) = (vec![0.0; m * 2 * inner], vec![0.0; m * inner]);
            linear.forward(&kernels, &x, m, None, &mut gate_up, &mut scratch);
            activate_and_mul(&kernels, f, &gate_up, inner, &mut activated);
            want.quantize(&kernels, &activated, inner);
            assert_eq!(got.codes(), want.codes(), "m = {m}, inner {inner}, {f:?}");
            assert_eq!(bits(got.scales()), bits(want.scales()), "m = {m}, inner {inner}, {f:?}");
            // What the next product reads of it.
            let down =
                Linear::pack(&kernels, &[WeightRows::F32(&rng.floats(48 * inner))], inner, WeightDtype::INT8);
            let (mut a, mut b) = (vec![0.0; m * 48], vec![0.0; m * 48]);
            forward_lora_quantized(&kernels, &down, &got, None, without(&mut Vec::new()), &mut a);
            forward_lora_quantized(&kernels, &down, &want, None, without(&mut Vec::new()), &mut b);
            assert_eq!(bits(&a), bits(&b), "m = {m}, inner {inner}, {f:?}");
        }
    }
}
