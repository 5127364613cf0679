//! Matrix products against naive loops, and bit by bit across row counts, threads and instruction sets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, assert_close, bits, every_context, kernels};
use octavo_kernels::{
    Activation, GROUP, Isa, Kernels, Linear, LoraRows, QuantScheme, QuantizedRows, WeightDtype, WeightRows,
    activate_and_mul, bf16, f16, forward_gated, forward_lora_quantized,
};
use proptest::prelude::*;

const INT8_FORMS: [QuantScheme; 2] = [QuantScheme::INT8, QuantScheme::INT8_UNROTATED];
const DTYPES: [WeightDtype; 4] =
    [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::INT8, WeightDtype::INT8_UNROTATED];
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
    w.chunks_exact_mut(k).enumerate().for_each(|(row, out)| linear.row(&kernels(Isa::Portable, 1), row, out));
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

/// The int8 product by its definition, from the documented arrays: integer sums per group, then one fma per group in f32.
/// Bit-equal.
fn naive_int8(linear: &Linear, x: &QuantizedRows) -> Vec<f32> {
    let (n, groups) = (linear.out_features(), linear.in_features().div_ceil(GROUP));
    let [codes, scales] = linear.arrays()[..] else { panic!("arrays of int8 weights") };
    let code = |row: usize, column: usize| {
        let quad = (row / 16 * groups * GROUP + column / 4 * 4) / 4;
        i32::from(codes[(quad * 16 + row % 16) * 4 + column % 4]) - 128
    };
    let scale = |row: usize, group: usize| {
        let at = 2 * ((row / 16 * groups + group) * 16 + row % 16);
        bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
    };
    let mut y = vec![0.0_f32; x.rows() * n];
    for row in 0..x.rows() {
        let codes = &x.codes()[row * groups * GROUP..(row + 1) * groups * GROUP];
        for column in 0..n {
            for (group, codes) in codes.chunks(GROUP).enumerate() {
                let product = |(i, x): (usize, &i8)| code(column, group * GROUP + i) * i32::from(*x);
                let sum: i32 = codes.iter().enumerate().map(product).sum();
                let scale = x.scales()[row * groups + group] * scale(column, group);
                y[row * n + column] = (sum as f32).mul_add(scale, y[row * n + column]);
            }
        }
    }
    y
}

fn int8_products_match_exact_sums(isa: Isa) {
    let kernels = kernels(isa, 2);
    for (seed, (m, n, k)) in SHAPES.into_iter().enumerate() {
        for scheme in INT8_FORMS {
            let what = format!("{m}x{n}x{k}, {scheme}");
            let mut rng = Rng(100 + seed as u64);
            let (w, x) = (rng.floats(n * k), rng.floats(m * k));
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::Quantized(scheme));
            let mut quantized = QuantizedRows::new();
            quantized.quantize(&kernels, &x, k, scheme.rotation);
            let mut y = vec![f32::NAN; m * n];
            forward_lora_quantized(&kernels, &linear, &quantized, None, without(&mut Vec::new()), &mut y);
            assert_eq!(bits(&y), bits(&naive_int8(&linear, &quantized)), "{what}");
            assert_eq!(bits(&y), bits(&forward(&kernels, &linear, &x, m, None)), "{what}: quantised inside");
            // Against the product without any quantisation: both sides have codes of about +-127.
            let exact = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::F32);
            assert_close(&what, &y, &reference(&exact, &x, m), 0.04);
        }
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
    for (kernels, scheme) in every_context().into_iter().flat_map(|kernels| {
        let kernels = std::rc::Rc::new(kernels);
        INT8_FORMS.map(|scheme| (kernels.clone(), scheme))
    }) {
        let (linear, errors) = Linear::quantize(&kernels, &rows, k, scheme, Some(&inputs), &|_| ());
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
        // A rotation spreads that channel over its group.
        let high = if scheme == QuantScheme::INT8 { 0.02..0.03 } else { 0.05..0.1 };
        assert!(errors[0] < 0.02 && high.contains(&errors[1]), "{errors:?}");
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
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8_UNROTATED);
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
        linear.row(&kernels, 10 + row, &mut out);
        assert_eq!(
            out,
            half[row * k..][..k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(),
            "bf16 row {row}"
        );
        linear.row(&kernels, 10 + n + 3 + row, &mut out);
        assert_eq!(
            out,
            half[row * k..][..k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(),
            "bytes row {row}"
        );
    }
    linear.row(&kernels, 10 + n + 2, &mut out);
    assert_eq!(out, short[2 * k..3 * k].iter().map(|v| v.to_f32()).collect::<Vec<_>>(), "f16 row");
    let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8);
    for (row, w) in w.chunks_exact(k).enumerate() {
        linear.row(&kernels, row, &mut out);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let (error, all) =
            (square(&mut w.iter().zip(&out).map(|(a, b)| a - b)), square(&mut w.iter().copied()));
        assert!(error.sqrt() < 0.01 * all.sqrt(), "row {row}: {error} of {all}");
    }
    let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::INT8_UNROTATED);
    for (row, w) in w.chunks_exact(k).enumerate() {
        linear.row(&kernels, row, &mut out);
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
        for scheme in INT8_FORMS {
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&w)], k, WeightDtype::Quantized(scheme));
            let mut quantized = QuantizedRows::new();
            quantized.quantize(&kernels, &x, k, scheme.rotation);
            let mut y = vec![f32::NAN; m * n];
            forward_lora_quantized(&kernels, &linear, &quantized, None, without(&mut Vec::new()), &mut y);
            prop_assert_eq!(bits(&y), bits(&naive_int8(&linear, &quantized)));
        }
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
        for (f, scheme) in [Activation::Silu, Activation::GeluTanh].into_iter().zip(INT8_FORMS) {
            let mut rng = Rng(900 + number as u64);
            let weights = rng.floats(2 * inner * columns);
            let x = rng.floats(m * columns);
            let linear = Linear::pack(&kernels, &[WeightRows::F32(&weights)], columns, WeightDtype::INT8);
            // Its own rotation may differ from that of the next product.
            let down = rng.floats(48 * inner);
            let down =
                Linear::pack(&kernels, &[WeightRows::F32(&down)], inner, WeightDtype::Quantized(scheme));
            let (mut got, mut want) = (QuantizedRows::new(), QuantizedRows::new());
            let mut scratch = QuantizedRows::new();
            let mut h = Vec::new();
            if !forward_gated(&kernels, [&linear, &down], &x, f, without(&mut h), &mut got, &mut scratch) {
                assert!(m < if isa == Isa::Amx { 5 } else { 64 }, "m = {m}, inner {inner} is not taken");
                continue;
            }
            let (mut gate_up, mut activated) = (vec![0.0; m * 2 * inner], vec![0.0; m * inner]);
            linear.forward(&kernels, &x, m, None, &mut gate_up, &mut scratch);
            activate_and_mul(&kernels, f, &gate_up, inner, &mut activated);
            want.quantize(&kernels, &activated, inner, scheme.rotation);
            assert_eq!(got.codes(), want.codes(), "m = {m}, inner {inner}, {f:?}");
            assert_eq!(bits(got.scales()), bits(want.scales()), "m = {m}, inner {inner}, {f:?}");
            // What the next product reads of it.
            let (mut a, mut b) = (vec![0.0; m * 48], vec![0.0; m * 48]);
            forward_lora_quantized(&kernels, &down, &got, None, without(&mut Vec::new()), &mut a);
            forward_lora_quantized(&kernels, &down, &want, None, without(&mut Vec::new()), &mut b);
            assert_eq!(bits(&a), bits(&b), "m = {m}, inner {inner}, {f:?}");
        }
    }
}
