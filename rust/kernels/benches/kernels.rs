//! Speed of the kernels: one row per op, instruction set and thread count.
//!
//! `cargo bench -p octavo-kernels` prints p20/p50/p80 of each rate. Weights of the int8 GEMV cover many layers, so that
//! they come from memory, and a plain read of as many bytes stands beside it as the limit.

use std::hint::black_box;
use std::time::Instant;

use octavo_kernels::{
    AttentionParams, BLOCK_SIZE, Isa, Kernels, KvDtype, KvLayer, Linear, QuantizedRows, Rows, SeqView,
    WeightDtype, paged_attention,
};

const ROUNDS: usize = 9;

/// Prints p20/p50/p80 of `work / seconds / 1e9` over some rounds, after one to warm up.
fn report(name: &str, kernels: &Kernels, unit: &str, work: f64, mut f: impl FnMut()) {
    f();
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            f();
            work / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let at = |part: usize| rates[(ROUNDS - 1) * part / 10];
    let (isa, threads) = (kernels.isa().name(), kernels.threads());
    println!("{name:<28} {isa:<9} {threads:>2} threads  {:8.2} {:8.2} {:8.2} {unit}", at(2), at(5), at(8));
}

/// Numbers that are neither equal nor all positive.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn plain_read(kernels: &Kernels, bytes: usize) {
    let data = vec![1_u64; bytes / 8];
    let parts: Vec<&[u64]> = data.chunks(1 << 15).collect();
    report("plain read", kernels, "GB/s", bytes as f64, || {
        kernels.pool().run(parts.len(), &|part| {
            black_box(parts[part].iter().fold(0_u64, |a, &b| a.wrapping_add(b)));
        });
    });
}

fn gemv(kernels: &Kernels, dtype: WeightDtype, layers: usize) {
    let (n, k) = (8192, 2048);
    let w = numbers(n * k);
    let layers: Vec<Linear> =
        (0..layers).map(|_| Linear::pack(kernels, &[Rows::F32(&w)], k, dtype)).collect();
    let (x, mut y) = (numbers(k), vec![0.0; n]);
    let mut scratch = QuantizedRows::new();
    let bytes: usize = layers.iter().map(Linear::bytes).sum();
    report(&format!("{dtype:?} m=1 k={k} n={n}"), kernels, "GB/s", bytes as f64, || {
        for layer in &layers {
            layer.forward(kernels, black_box(&x), 1, None, &mut y, &mut scratch);
        }
    });
}

fn gemm(kernels: &Kernels, dtype: WeightDtype, m: usize) {
    let (n, k) = (8192, 2048);
    let linear = Linear::pack(kernels, &[Rows::F32(&numbers(n * k))], k, dtype);
    let (x, mut y) = (numbers(m * k), vec![0.0; m * n]);
    let mut scratch = QuantizedRows::new();
    report(&format!("{dtype:?} m={m} k={k} n={n}"), kernels, "GOPS", 2.0 * (m * n * k) as f64, || {
        linear.forward(kernels, black_box(&x), m, None, &mut y, &mut scratch);
    });
}

fn attention(kernels: &Kernels, query_len: usize) {
    let (heads, kv_heads, head_dim, context_len) = (16, 4, 64, 2048);
    let layer = KvLayer::new(context_len / BLOCK_SIZE, kv_heads, head_dim, KvDtype::Bf16);
    let block_table: Vec<u32> = (0..(context_len / BLOCK_SIZE) as u32).collect();
    let params = AttentionParams { heads, kv_heads, head_dim, scale: 0.125, window: None, softcap: None };
    let width = heads * head_dim;
    let (q, mut out) = (numbers(query_len * width), vec![0.0; query_len * width]);
    let seq = SeqView { query_start: 0, query_len, context_len, block_table: &block_table };
    let keys = (0..query_len).map(|i| context_len - i).sum::<usize>();
    let name = format!("attention q={query_len} ctx={context_len}");
    report(&name, kernels, "GFLOPS", 4.0 * (keys * width) as f64, || {
        paged_attention(kernels, &layer, black_box(&q), width, &[seq], &params, &mut out);
    });
}

fn main() {
    // `cargo test --benches` and friends pass flags; only a real bench run measures.
    if !std::env::args().any(|flag| flag == "--bench") {
        return;
    }
    println!("{:<28} {:<9} {:>10}  {:>8} {:>8} {:>8}", "op", "isa", "threads", "p20", "p50", "p80");
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable) {
        for threads in [1, 2] {
            let kernels = &Kernels::new(threads, Some(isa)).expect("the level is available");
            plain_read(kernels, 1 << 29);
            gemv(kernels, WeightDtype::Int8, 32);
            gemv(kernels, WeightDtype::Bf16, 16);
            for m in [2, 4, 5, 16, 256] {
                gemm(kernels, WeightDtype::Int8, m);
            }
            gemm(kernels, WeightDtype::F32, 256);
            gemm(kernels, WeightDtype::Bf16, 256);
            attention(kernels, 1);
            attention(kernels, 512);
        }
    }
}
