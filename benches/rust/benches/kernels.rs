//! Speed of the kernels: one row per op, instruction set and thread count.
//!
//! `cargo bench -p octavo-bench` prints p20/p50/p80 of each rate; `-- gemm avx512 t2` selects rows by label,
//! level and number of threads. Weights cover many layers: they come from memory, as in a model. A plain read of as many
//! bytes is the limit of the products with one row.

use std::hint::black_box;
use std::time::Instant;

use octavo_kernels::{
    AttentionParams, AttentionReport, BLOCK_SIZE, DynamicParams, Isa, Kernels, KvDtype, KvLayer, Linear,
    Mode, OpenDtype, QuantizedRows, SealedBlock, Selection, SeqView, WeightDtype, WeightRows,
    paged_attention, seal_blocks, write_kv,
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
    println!("{name:<44} {isa:<9} {threads:>2} threads  {:8.2} {:8.2} {:8.2} {unit}", at(2), at(5), at(8));
}

/// Numbers of both signs.
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
        (0..layers).map(|_| Linear::pack(kernels, &[WeightRows::F32(&w)], k, dtype)).collect();
    let (x, mut y) = (numbers(k), vec![0.0; n]);
    let mut scratch = QuantizedRows::new();
    let bytes: usize = layers.iter().map(Linear::bytes).sum();
    report(&format!("{dtype} m=1 k={k} n={n}"), kernels, "GB/s", bytes as f64, || {
        for layer in &layers {
            layer.forward(kernels, black_box(&x), 1, None, &mut y, &mut scratch);
        }
    });
}

fn gemm(kernels: &Kernels, dtype: WeightDtype, m: usize, k: usize, n: usize) {
    let name = format!("{dtype} m={m} k={k} n={n}");
    if !wanted(&format!("gemm {name}"), false) {
        return;
    }
    let weights = numbers(n * k);
    let layers = if dtype == WeightDtype::INT8 { (1 << 28) / (n * k) } else { 1 };
    let layers: Vec<Linear> =
        (0..layers).map(|_| Linear::pack(kernels, &[WeightRows::F32(&weights)], k, dtype)).collect();
    let (x, mut y) = (numbers(m * k), vec![0.0; m * n]);
    let mut scratch = QuantizedRows::new();
    let work = 2.0 * (layers.len() * m * n * k) as f64;
    report(&name, kernels, "GOPS", work, || {
        for layer in &layers {
            layer.forward(kernels, black_box(&x), m, None, &mut y, &mut scratch);
        }
    });
}

/// Enough layers of keys and values to come from memory. The last block of a decode is partly filled.
fn attention(
    kernels: &Kernels,
    query_len: usize,
    context_len: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    dtype: KvDtype,
) {
    let form = if let KvDtype::Int8(_) = dtype { "int8" } else { "bf16" };
    let name = format!("attention {form} q={query_len} ctx={context_len} {heads}/{kv_heads}x{head_dim}");
    if !wanted(&name, false) {
        return;
    }
    let blocks = context_len.div_ceil(BLOCK_SIZE);
    let bytes = blocks * KvLayer::bytes_per_block(kv_heads, head_dim, dtype);
    let count = if query_len == 1 { ((1 << 27) / bytes).max(1) } else { 1 };
    let width = kv_heads * head_dim;
    let block_table: Vec<u32> = (0..blocks as u32).collect();
    // Here the open block of a block has the block's number.
    let open_blocks = &block_table[(context_len - query_len) / BLOCK_SIZE..];
    let layers: Vec<KvLayer> = (0..count)
        .map(|_| {
            let mut layer = KvLayer::new(blocks, kv_heads, head_dim, dtype);
            layer.grow_open_blocks(blocks);
            let slots: Vec<u32> = (0..context_len as u32).collect();
            let rows = numbers(context_len * width);
            write_kv(kernels, &mut layer, &rows, width, &rows, width, &slots);
            if let KvDtype::Int8(_) = dtype {
                let filled =
                    (0..(context_len / BLOCK_SIZE) as u32).map(|b| SealedBlock { block: b, open: b });
                seal_blocks(kernels, &mut layer, &filled.collect::<Vec<_>>());
            }
            layer
        })
        .collect();
    let params = AttentionParams { heads, kv_heads, head_dim, scale: 0.125, window: None, softcap: None };
    let width = heads * head_dim;
    let (q, mut out) = (numbers(query_len * width), vec![0.0; query_len * width]);
    let seq = SeqView { query_start: 0, query_len, context_len, block_table: &block_table, open_blocks };
    let keys = (0..query_len).map(|i| context_len - i).sum::<usize>();
    let (work, unit) = match query_len {
        1 => ((count * bytes) as f64, "GB/s"),
        _ => (4.0 * (count * keys * width) as f64, "GFLOPS"),
    };
    report(&name, kernels, unit, work, || {
        for layer in &layers {
            paged_attention(kernels, layer, black_box(&q), width, &[seq], &params, None, &mut out);
        }
    });
}

/// One decode of 32k tokens: dense bf16, dense int8 and dynamic int8, for heads with a few spans and for diffuse heads. All
/// variants run in turn; milliseconds of all layers together.
fn dynamic(kernels: &Kernels, (heads, kv_heads, head_dim): (usize, usize, usize)) {
    let name = format!("dynamic {heads}/{kv_heads}x{head_dim}");
    if !wanted(&name, false) {
        return;
    }
    let context_len: usize = 32_767;
    let blocks = context_len.div_ceil(BLOCK_SIZE);
    let block_table: Vec<u32> = (0..blocks as u32).collect();
    let (width, q_width) = (kv_heads * head_dim, heads * head_dim);
    let q = numbers(q_width);
    let layer = |dtype: KvDtype, spans: bool| {
        let mut rows = numbers(context_len * width);
        for (t, row) in rows.chunks_mut(width).enumerate() {
            // All query heads of a KV head have the query of its first head.
            let near = spans && (t < 4 || [9000, 17_500, 25_000].iter().any(|&at| (at..at + 4).contains(&t)));
            for (head, row) in row.chunks_mut(head_dim).enumerate() {
                let wanted = &q[head * (heads / kv_heads) * head_dim..][..head_dim];
                row.iter_mut().zip(wanted).for_each(|(x, w)| *x = if near { 5.0 * w } else { 0.5 * *x });
            }
        }
        let mut layer = KvLayer::new(blocks, kv_heads, head_dim, dtype);
        layer.grow_open_blocks(blocks);
        let slots: Vec<u32> = (0..context_len as u32).collect();
        write_kv(kernels, &mut layer, &rows, width, &rows, width, &slots);
        if let KvDtype::Int8(_) = dtype {
            let filled = (0..(context_len / BLOCK_SIZE) as u32).map(|b| SealedBlock { block: b, open: b });
            seal_blocks(kernels, &mut layer, &filled.collect::<Vec<_>>());
        }
        layer
    };
    let q: Vec<f32> = (0..heads)
        .flat_map(|head| q[head / (heads / kv_heads) * (heads / kv_heads) * head_dim..][..head_dim].to_vec())
        .collect();
    let params = AttentionParams { heads, kv_heads, head_dim, scale: 0.125, window: None, softcap: None };
    let certified = DynamicParams::default();
    let estimated = DynamicParams { mode: Mode::Estimated, ..certified };
    let int8 = KvDtype::Int8(OpenDtype::Bf16);
    let layers = [layer(KvDtype::Bf16, true), layer(int8, true), layer(int8, false)];
    let open_blocks = &block_table[blocks - 1..];
    let seq = SeqView { query_start: 0, query_len: 1, context_len, block_table: &block_table, open_blocks };
    let mut out = vec![0.0; q_width];
    let mut reports = [AttentionReport::default(); 6];
    let mut seconds = [const { Vec::new() }; 6];
    for _ in 0..=ROUNDS {
        for (way, seconds) in seconds.iter_mut().enumerate() {
            let start = Instant::now();
            let layer = &layers[[0, 1, 1, 1, 2, 2][way]];
            let q = black_box(&q);
            let choices = [if way == 3 { estimated } else { certified }];
            let selection = [2, 3, 5]
                .contains(&way)
                .then_some(Selection { choices: &choices, reports: &mut reports[way..way + 1] });
            paged_attention(kernels, layer, q, q_width, &[seq], &params, selection, &mut out);
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let median = seconds.map(|mut times| {
        times.remove(0);
        times.sort_by(f64::total_cmp);
        1e3 * times[ROUNDS / 2]
    });
    let ways = [
        "bf16 dense",
        "int8 dense",
        "int8 certified 1e-2",
        "int8 estimated 1e-2",
        "int8 dense, diffuse",
        "int8 certified 1e-2, diffuse",
    ];
    for ((way, ms), report) in ways.iter().zip(median).zip(reports) {
        let share =
            if report.calls == 0 { 1.0 } else { report.bytes_read as f64 / report.bytes_dense as f64 };
        let threads = kernels.threads();
        println!(
            "{name:<24} {way:<30} {threads:>2} threads {ms:9.3} ms  {:5.2}x of int8 dense, {share:.2} of its bytes; at most {:.4} left out",
            median[1] / ms,
            report.max_omitted_mass
        );
    }
}

fn main() {
    // `cargo test --benches` and friends pass flags; only a real bench run measures.
    if !std::env::args().any(|flag| flag == "--bench") {
        return;
    }
    println!("{:<44} {:<9} {:>10}  {:>8} {:>8} {:>8}", "op", "isa", "threads", "p20", "p50", "p80");
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable) {
        for threads in [1, 2] {
            if !wanted(&format!("{} t{threads}", isa.name()), true) {
                continue;
            }
            let kernels = &Kernels::new(threads, Some(isa)).expect("the level is available");
            if wanted("read", false) {
                plain_read(kernels, 1 << 29);
            }
            if wanted("gemv", false) {
                gemv(kernels, WeightDtype::INT8, 32);
                gemv(kernels, WeightDtype::Bf16, 16);
            }
            for m in [2, 4, 6, 8, 12, 16, 32, 64, 256] {
                gemm(kernels, WeightDtype::INT8, m, 2048, 8192);
            }
            for m in [1, 8, 32, 512] {
                gemm(kernels, WeightDtype::INT8, m, 896, 9728);
                gemm(kernels, WeightDtype::INT8, m, 4864, 896);
            }
            gemm(kernels, WeightDtype::F32, 256, 2048, 8192);
            gemm(kernels, WeightDtype::Bf16, 256, 2048, 8192);
            for heads in [(32, 8, 64), (32, 8, 128)] {
                dynamic(kernels, heads);
            }
            for heads in [(14, 2, 64), (32, 8, 64), (32, 8, 128)] {
                for dtype in [KvDtype::Bf16, KvDtype::Int8(OpenDtype::Bf16)] {
                    for (query_len, context_len) in [(1, 127), (1, 2047), (1, 32767), (512, 512), (512, 2048)]
                    {
                        attention(kernels, query_len, context_len, heads, dtype);
                    }
                }
            }
        }
    }
}

/// Whether the words on the command line ask for `label`; without words everything is.
fn wanted(label: &str, level: bool) -> bool {
    let levels = ["avx2", "avx512", "amx", "t1", "t2"];
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut words = words.iter().filter(|word| levels.contains(&word.as_str()) == level).peekable();
    if level {
        return words.all(|word| label.split(' ').any(|part| part == word));
    }
    words.peek().is_none() || words.any(|word| label.contains(word.as_str()))
}
