//! LayerNorm, pointwise functions, attention over latents and int8 rows against f64, and bit by bit across instruction sets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, assert_close, bits, every_context, kernels};
use octavo_kernels::*;

on_each_isa!(layer_norms, pointwise, latents, int8_rows);

fn layer_norms(isa: Isa) {
    let kernels = kernels(isa, 2);
    for width in [1, 2, 15, 16, 17, 100, 577] {
        let mut rng = Rng(width as u64);
        let (x, weight) = (rng.floats(3 * width), rng.floats(width));
        let mut out = x.clone();
        layer_norm(&kernels, &mut out, RmsNorm { weight: &weight, eps: 1e-2, offset: 1.0 });
        let mut want = Vec::new();
        for x in x.chunks_exact(width) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
            let scaled = |(&x, &w): (&f32, &f32)| {
                (f64::from(x) - mean) / (variance + 1e-2).sqrt() * f64::from(w + 1.0)
            };
            want.extend(x.iter().zip(&weight).map(scaled));
        }
        assert_close(&format!("layer norm {width}"), &out, &want, 1e-5);
    }
}

fn pointwise(isa: Isa) {
    let kernels = kernels(isa, 2);
    for width in [1, 5, 16, 33, 256] {
        let x = Rng(width as u64).floats(4 * width);
        let apply = |f: &dyn Fn(&mut [f32])| {
            let mut y = x.clone();
            f(&mut y);
            y
        };
        let want = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(f64::from(v))).collect::<Vec<_>>();
        assert_close("scale", &apply(&|y| scale(&kernels, y, 0.3)), &want(&|v| v * f64::from(0.3_f32)), 1e-6);
        assert_close(
            "cap",
            &apply(&|y| soft_cap(&kernels, y, 0.5)),
            &want(&|v| 0.5 * (v / 0.5).tanh()),
            1e-6,
        );
        assert_close(
            "sigmoid",
            &apply(&|y| sigmoid(&kernels, y)),
            &want(&|v| 1.0 / (1.0 + (-v).exp())),
            1e-6,
        );
        let mut soft = Vec::new();
        for row in x.chunks_exact(width) {
            let sum = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>();
            soft.extend(row.iter().map(|&v| f64::from(v).exp() / sum));
        }
        assert_close("softmax", &apply(&|y| softmax(&kernels, y, width)), &soft, 1e-6);
    }
}

/// Contexts of three sequences, the last of which has only its last tokens in the step.
const CONTEXTS: [(usize, usize); 3] = [(1, 1), (45, 45), (100, 3)];

fn latents(isa: Isa) {
    let kernels = kernels(isa, 2);
    for (heads, rank, rope) in [(3, 16, 8), (40, 20, 4), (1, 7, 2)] {
        let width = rank + rope;
        let params = MlaParams { heads, value_width: rank, scale: 0.2 };
        let mut cache = MlaCache::new(12, width, KvDtype::F32);
        let mut rng = Rng(rank as u64);
        let (mut q, mut tables, mut want) = (Vec::new(), Vec::new(), Vec::new());
        let mut block = 11;
        for (context, queries) in CONTEXTS {
            let tokens = rng.floats(context * width);
            let table: Vec<u32> = (0..context.div_ceil(BLOCK_SIZE)).map(|i| block - i as u32).collect();
            block -= table.len() as u32;
            let slots: Vec<u32> = (0..context).map(|t| table[t / 32] * 32 + t as u32 % 32).collect();
            cache.write(&tokens, &slots);
            tables.push(table);
            for position in context - queries..context {
                for _ in 0..heads {
                    let query = rng.floats(width);
                    let dot = |t: &[f32]| t.iter().zip(&query).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                    let rows = tokens.chunks_exact(width).take(position + 1);
                    let weights: Vec<f64> =
                        rows.clone().map(|t| (dot(t) * f64::from(0.2_f32)).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    let mean = |c: usize| {
                        rows.clone().zip(&weights).map(|(t, w)| w * f64::from(t[c])).sum::<f64>() / sum
                    };
                    want.extend((0..rank).map(mean));
                    q.extend(query);
                }
            }
        }
        let mut start = 0;
        let mut views = Vec::new();
        for ((context, queries), table) in CONTEXTS.iter().zip(&tables) {
            views.push(SeqView {
                open_blocks: &[],
                query_start: start,
                query_len: *queries,
                context_len: *context,
                block_table: table,
            });
            start += queries;
        }
        let mut out = vec![f32::NAN; start * heads * rank];
        mla_attention(&kernels, &cache, &q, &views, params, &mut out);
        assert_close(&format!("latents {heads} x {width}"), &out, &want, 1e-5);
        // A sequence has the same bits alone.
        for view in &views {
            let mut alone = vec![f32::NAN; out.len()];
            mla_attention(&kernels, &cache, &q, std::slice::from_ref(view), params, &mut alone);
            let rows = view.query_start * heads * rank..(view.query_start + view.query_len) * heads * rank;
            assert_eq!(bits(&alone[rows.clone()]), bits(&out[rows]), "alone");
        }
    }
}

#[test]
fn latents_have_the_same_bits_everywhere() {
    let (heads, width) = (5, 24);
    let q = Rng(1).floats(40 * heads * width);
    let tokens = Rng(2).floats(40 * width);
    let slots: Vec<u32> = (0..40).collect();
    let view =
        SeqView { query_start: 0, query_len: 40, context_len: 40, block_table: &[0, 1], open_blocks: &[] };
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut first: Option<Vec<u32>> = None;
        for kernels in every_context() {
            let mut cache = MlaCache::new(2, width, dtype);
            cache.write(&tokens, &slots);
            let params = MlaParams { heads, value_width: 17, scale: 0.3 };
            let mut out = vec![0.0; 40 * heads * 17];
            mla_attention(&kernels, &cache, &q, &[view], params, &mut out);
            let out = bits(&out);
            assert_eq!(
                first.get_or_insert_with(|| out.clone()),
                &out,
                "{:?} with {} threads",
                kernels.isa(),
                kernels.threads()
            );
        }
    }
}

/// Rows that are int8 already keep their codes where the scale is a bf16.
fn int8_rows(isa: Isa) {
    let kernels = kernels(isa, 1);
    let (rows, columns) = (19, 200);
    let codes: Vec<u8> = (0..rows * columns).map(|i| (i * 37 % 256) as u8).collect();
    let scales: Vec<f32> = (0..rows).map(|r| bf16::from_f32(0.01 + r as f32 / 77.0).to_f32()).collect();
    let source = WeightRows::Int8 { codes: &codes, scales: &scales };
    for dtype in [WeightDtype::INT8, WeightDtype::F32] {
        let packed = Linear::pack(&kernels, &[source], columns, dtype);
        let held = if dtype.is_quantized() { WeightDtype::INT8_UNROTATED } else { dtype };
        assert_eq!(packed.dtype(), held, "codes of a checkpoint are not rotated");
        let lowest = if dtype.is_quantized() { -127 } else { -128 };
        for r in 0..rows {
            let mut row = vec![0.0; columns];
            packed.row(&kernels, r, &mut row);
            let code = |i: usize| f32::from(codes[r * columns + i].cast_signed().max(lowest));
            let want: Vec<f32> = (0..columns).map(|i| code(i) * scales[r]).collect();
            assert_eq!(bits(&row), bits(&want), "row {r} as {dtype:?}");
        }
        // Odd codes take part in products as they are read.
        let x: Vec<f32> = (0..columns).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let mut y = vec![0.0; rows];
        packed.forward(&kernels, &x, 1, None, &mut y, &mut QuantizedRows::new());
        let mut want = Vec::new();
        for r in 0..rows {
            let mut row = vec![0.0; columns];
            packed.row(&kernels, r, &mut row);
            want.push(row.iter().zip(&x).map(|(w, x)| f64::from(w * x)).sum::<f64>());
        }
        assert_close(&format!("product as {dtype:?}"), &y, &want, 1e-4);
    }
}
