//! Norms, rope, activations, quantisation and reductions against f64, and bit by bit across instruction sets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, assert_close, bits, every_context, kernels};
use octavo_kernels::*;

on_each_isa!(
    norms,
    rotations,
    activations,
    sums,
    reductions,
    rows_of_logits,
    quantised_rows,
    faults_stay_in_their_group
);

const WIDTHS: [usize; 9] = [1, 2, 15, 16, 17, 64, 100, 576, 2049];

fn norms(isa: Isa) {
    let kernels = kernels(isa, 2);
    for width in WIDTHS {
        let mut rng = Rng(width as u64);
        let (x, weight) = (rng.floats(3 * width), rng.floats(width));
        for offset in [0.0, 1.0] {
            let norm = RmsNorm { weight: &weight, eps: 1e-5, offset };
            let mut out = vec![f32::NAN; 3 * width];
            rms_norm(&kernels, &x, norm, &mut out);
            let mut want = Vec::new();
            for x in x.chunks_exact(width) {
                let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean + 1e-5).sqrt();
                want.extend(
                    x.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * factor * f64::from(w + offset)),
                );
            }
            assert_close(&format!("norm {width} offset {offset}"), &out, &want, 1e-6);
            // Head by head in rows of two heads and something else.
            let stride = 2 * width + 5;
            let mut rows = vec![9.0; 3 * stride];
            for (row, x) in rows.chunks_exact_mut(stride).zip(x.chunks_exact(width)) {
                row[..width].copy_from_slice(x);
                row[width..2 * width].copy_from_slice(x);
            }
            rms_norm_heads(&kernels, &mut rows, stride, 2, norm);
            for (row, out) in rows.chunks_exact(stride).zip(out.chunks_exact(width)) {
                assert_eq!(bits(&row[..width]), bits(out));
                assert_eq!(bits(&row[width..2 * width]), bits(out));
                assert!(row[2 * width..].iter().all(|&v| v == 9.0), "values beyond the heads changed");
            }
        }
    }
}

fn rotations(isa: Isa) {
    let kernels = kernels(isa, 2);
    let (heads, head_dim, stride) = (3, 20, 70);
    let positions = [4_u32, 0, 9];
    for rotary_dim in [20, 12, 2, 0] {
        let half = rotary_dim / 2;
        let angle = |p: usize, i: usize| (p as f64) * 0.7_f64.powi(i as i32);
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..10 * half).map(|j| f(angle(j / half, j % half)) as f32).collect()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let x = Rng(rotary_dim as u64).floats(positions.len() * stride);
            let mut got = x.clone();
            let layout = RopeLayout { stride, heads, head_dim };
            rope(
                &kernels,
                &mut got,
                layout,
                &positions,
                RopeTable { cos: &cos, sin: &sin, rotary_dim, style },
            );
            let mut want: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            for (row, &p) in positions.iter().enumerate() {
                for head in 0..heads {
                    let start = row * stride + head * head_dim;
                    for i in 0..half {
                        let (a, b) = match style {
                            RopeStyle::Half => (start + i, start + i + half),
                            RopeStyle::Interleaved => (start + 2 * i, start + 2 * i + 1),
                        };
                        let (sin, cos) = angle(p as usize, i).sin_cos();
                        (want[a], want[b]) = (want[a] * cos - want[b] * sin, want[b] * cos + want[a] * sin);
                    }
                }
            }
            assert_close(&format!("rope {rotary_dim} {style:?}"), &got, &want, 3e-7);
        }
    }
}

fn activation_reference(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x / 2.0 * (1.0 + u.tanh())
        }
    }
}

fn activations(isa: Isa) {
    let kernels = kernels(isa, 2);
    for f in [Activation::Silu, Activation::GeluTanh] {
        for inner in WIDTHS {
            let gate_up: Vec<f32> = Rng(inner as u64).floats(6 * inner).iter().map(|x| 12.0 * x).collect();
            let mut out = vec![f32::NAN; 3 * inner];
            activate_and_mul(&kernels, f, &gate_up, inner, &mut out);
            let mut want = Vec::new();
            for row in gate_up.chunks_exact(2 * inner) {
                let (gate, up) = row.split_at(inner);
                let pairs = gate.iter().zip(up);
                want.extend(pairs.map(|(&g, &u)| activation_reference(f, f64::from(g)) * f64::from(u)));
            }
            assert_close(&format!("{f:?} {inner}"), &out, &want, 1e-6);
            let mut plain = gate_up.clone();
            activate(&kernels, f, &mut plain);
            let want: Vec<f64> = gate_up.iter().map(|&x| activation_reference(f, f64::from(x))).collect();
            assert_close(&format!("plain {f:?} {inner}"), &plain, &want, 1e-6);
        }
        let mut ends = [-1e4, -100.0, -0.0, 0.0, 100.0, 1e4, f32::NAN];
        activate(&kernels, f, &mut ends);
        assert_eq!(ends[2..6], [0.0, 0.0, 100.0, 1e4]);
        assert!(ends[..2].iter().all(|x| x.abs() < 1e-30) && ends[6].is_nan(), "{f:?}: {ends:?}");
    }
}

fn sums(isa: Isa) {
    let kernels = kernels(isa, 2);
    for width in WIDTHS.into_iter().chain([0, 100_003]) {
        let mut rng = Rng(width as u64);
        let (mut x, y) = (rng.floats(width), rng.floats(width));
        let want: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
        add_assign(&kernels, &mut x, &y);
        assert_eq!(bits(&x), bits(&want), "sum of {width}");
    }
}

fn reductions(isa: Isa) {
    let kernels = kernels(isa, 1);
    for width in WIDTHS {
        let row: Vec<f32> = Rng(width as u64).floats(width).iter().map(|x| 20.0 * x).collect();
        let want = (0..width).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        assert_eq!(argmax(&kernels, &row), want, "width {width}");
        let want: f64 = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((f64::from(log_sum_exp(&kernels, &row)) - want).abs() < 4e-6, "width {width}");
        let equal = vec![-3.0; width];
        assert_eq!(argmax(&kernels, &equal), 0, "ties go to the lowest place");
    }
    let inf = f32::INFINITY;
    assert_eq!(argmax(&kernels, &[f32::NAN, -inf, 2.0, f32::NAN, 2.0]), 2);
    assert_eq!(argmax(&kernels, &[f32::NAN; 3]), 0);
    assert_eq!(log_sum_exp(&kernels, &[]), -inf);
    assert_eq!(log_sum_exp(&kernels, &[-inf; 20]), -inf);
    assert_eq!(log_sum_exp(&kernels, &[-inf, 1.0, -inf]), 1.0);
    assert!(log_sum_exp(&kernels, &[1.0, f32::NAN]).is_nan());
}

/// Passes over logits against plain loops, with ties, faults and rows around every block.
fn rows_of_logits(isa: Isa) {
    let kernels = kernels(isa, 1);
    let inf = f32::INFINITY;
    for width in WIDTHS.into_iter().chain([0, 63, 64, 65, 1023, 1024, 1025, 5000]) {
        let mut rng = Rng(width as u64);
        let mut row: Vec<f32> = rng.floats(width).iter().map(|x| (20.0 * x).round() / 2.0).collect();
        for fault in [0.0, -inf, inf, f32::NAN] {
            if width > 0 {
                row[rng.below(width)] = fault;
            }
            let value = row.iter().copied().filter(|x| !x.is_nan()).fold(-inf, f32::max);
            let place = row.iter().position(|&x| x == value).unwrap_or(0);
            let sound = row.iter().all(|&x| x < inf);
            assert_eq!(peak(&kernels, &row), Peak { index: place, value, sound }, "width {width}, {fault}");
            let mut peaks = vec![1.0; 3];
            block_peaks(&kernels, &row, &mut peaks);
            let of_block = |b: &[f32]| b.iter().copied().filter(|x| !x.is_nan()).fold(-inf, f32::max);
            assert_eq!(peaks, row.chunks(PEAK_BLOCK).map(of_block).collect::<Vec<_>>(), "width {width}");
        }
        let row: Vec<f32> = rng.floats(width).iter().map(|x| 20.0 * x).collect();
        let weighting = Weighting { largest: 20.0, temperature: 0.7, limit: -8.0 };
        let exact = |x: &f32| match *x < -8.0 {
            true => 0.0,
            false => (f64::from(x - 20.0) / f64::from(0.7_f32)).exp(),
        };
        let want: Vec<f64> = row.iter().map(exact).collect();
        let (mut found, mut sums) = (vec![1.0; 2], vec![1.0; 2]);
        weights(&kernels, &row, weighting, &mut found);
        // The argument, up to 57 here, is rounded to f32.
        assert!(found.iter().zip(&want).all(|(w, e)| (f64::from(*w) - e).abs() <= 4e-6 * e), "width {width}");
        weight_sums(&kernels, &row, weighting, &mut sums);
        let blocks = found.chunks(SUM_BLOCK).map(|b| b.iter().map(|w| f64::from(*w)).sum::<f64>());
        assert_eq!(sums.len(), width.div_ceil(SUM_BLOCK));
        assert!(sums.iter().zip(blocks).all(|(s, b)| (s - b).abs() <= 1e-13 * b), "width {width}");
    }
}

/// A fault shows in its own group, whole or not; a group of (nearly) nothing counts as zero.
fn faults_stay_in_their_group(isa: Isa) {
    let kernels = kernels(isa, 2);
    let columns = 300;
    let mut rng = Rng(31);
    let sound = rng.floats(columns);
    let mut rows = QuantizedRows::new();
    for fault in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for group in 0..3 {
            let mut x = sound.clone();
            let end = columns.min((group + 1) * GROUP);
            x[group * GROUP + rng.below(end - group * GROUP)] = fault;
            rows.quantize(&kernels, &x, columns, Rotation::None);
            let codes = &rows.codes()[group * GROUP..(group + 1) * GROUP];
            assert!(codes.iter().all(|&code| code == 0), "{fault} in group {group}");
            for (at, scale) in rows.scales().iter().enumerate() {
                assert_eq!(scale.is_nan(), at == group, "{fault} in group {group}: scale {at}");
            }
        }
    }
    for little in [0.0, -0.0, 1e-40, -9e-36] {
        rows.quantize(&kernels, &vec![little; columns], columns, Rotation::None);
        assert!(rows.codes().iter().all(|&code| code == 0) && rows.scales() == [0.0; 3], "{little}");
    }
}

fn quantised_rows(isa: Isa) {
    let kernels = kernels(isa, 2);
    for columns in [1, 16, 100, 128, 129, 500] {
        let x = Rng(columns as u64).floats(7 * columns);
        let mut rows = QuantizedRows::new();
        // Old content must not show through.
        rows.quantize(&kernels, &vec![1.0; 7 * 640], 640, Rotation::None);
        rows.quantize(&kernels, &x, columns, Rotation::None);
        let groups = columns.div_ceil(GROUP);
        assert_eq!((rows.rows(), rows.columns(), rows.groups()), (7, columns, groups));
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let codes = &rows.codes()[row * groups * GROUP..(row + 1) * groups * GROUP];
            assert!(codes[columns..].iter().all(|&code| code == 0), "padding of row {row}");
            for (group, x) in x.chunks(GROUP).enumerate() {
                let largest = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
                assert_eq!(rows.scales()[row * groups + group], largest / 127.0);
                for (&x, &code) in x.iter().zip(&codes[group * GROUP..]) {
                    let want = (x * (127.0 / largest)).round_ties_even();
                    assert_eq!(f32::from(code), want, "row {row}: code of {x}");
                }
            }
        }
    }
}

#[test]
fn bits_are_the_same_everywhere() {
    let mut rng = Rng(5);
    let (rows, width) = (5, 173);
    let x: Vec<f32> = rng.floats(rows * 2 * width).iter().map(|x| 30.0 * x).collect();
    let weight = rng.floats(2 * width);
    let compute = |kernels: &Kernels| {
        let mut all = Vec::new();
        let mut out = vec![0.0; x.len()];
        rms_norm(kernels, &x, RmsNorm { weight: &weight, eps: 1e-6, offset: 1.0 }, &mut out);
        all.extend(bits(&out));
        for f in [Activation::Silu, Activation::GeluTanh] {
            activate_and_mul(kernels, f, &x, width, &mut out[..rows * width]);
            all.extend(bits(&out));
        }
        all.push(log_sum_exp(kernels, &x).to_bits());
        let weighting = Weighting { largest: 30.0, temperature: 3.0, limit: -25.0 };
        let (mut each, mut sums) = (Vec::new(), Vec::new());
        weights(kernels, &x, weighting, &mut each);
        weight_sums(kernels, &x, weighting, &mut sums);
        all.extend(bits(&each));
        all.extend(sums.iter().flat_map(|sum| [sum.to_bits() as u32, (sum.to_bits() >> 32) as u32]));
        let mut quantized = QuantizedRows::new();
        quantized.quantize(kernels, &x, 2 * width, Rotation::None);
        all.extend(bits(quantized.scales()));
        all.extend(quantized.codes().iter().map(|&code| code as u32));
        all
    };
    let contexts = every_context();
    let want = compute(&contexts[0]);
    for kernels in &contexts {
        assert!(compute(kernels) == want, "{} with {} threads", kernels.isa(), kernels.threads());
    }
}
