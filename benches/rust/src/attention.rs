//! Benchmark of dynamic and dense attention: one decode step of one layer, for concentrated and diffuse heads.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use octavo_kernels::{
    AttentionParams, AttentionReport, BLOCK_SIZE, DynamicParams, Kernels, KvDtype, KvLayer, Mode, OpenDtype,
    SealedBlock, Selection, SeqView, paged_attention, seal_blocks, write_kv,
};

/// Minimum number of runs of each variant. The first run only warms up.
const MIN_RUNS: usize = 4;
const MAX_RUNS: usize = 60;
/// Tokens of one call of `write_kv`.
const CHUNK: usize = 4096;

/// Cases to measure.
#[derive(Debug, Clone)]
pub struct AttentionBenchPlan {
    /// Context lengths in tokens.
    pub contexts: Vec<usize>,
    /// Time for each context and kind of heads.
    pub time: Duration,
}

/// Speed and error of one attention variant over one cache.
#[derive(Debug, Clone)]
pub struct AttentionReading {
    /// Query heads, KV heads, head_dim.
    pub shape: [usize; 3],
    /// Context length in tokens.
    pub context: usize,
    /// Focus of the heads: "spans", "near" or "everywhere".
    pub heads: &'static str,
    /// Attention variant, such as "int8 dense".
    pub way: &'static str,
    /// Mean time of a query over the queries of one block, in seconds: p20, p50, p80.
    pub seconds: [f64; 3],
    /// Bytes of keys and values read.
    pub bytes: f64,
    /// Maximum over heads of |output - dense output| / |dense output|, L2 norms, same cache.
    pub error: f64,
    /// Report of the run; None for dense attention.
    pub report: Option<AttentionReport>,
}

/// Shapes of Llama-3.2-1B and of a model with heads of 128.
const SHAPES: [[usize; 3]; 2] = [[32, 8, 64], [32, 8, 128]];
const HEADS: [&str; 3] = ["spans", "near", "everywhere"];

/// The variants and their parameters; None: dense.
fn ways() -> Vec<(&'static str, Option<DynamicParams>)> {
    let base = DynamicParams { min_context: 0, ..DynamicParams::default() };
    let bound = |error_bound| Some(DynamicParams { error_bound, ..base });
    let estimated = |error_bound| Some(DynamicParams { mode: Mode::Estimated, error_bound, ..base });
    let budget =
        |max_blocks| Some(DynamicParams { mode: Mode::Budget, max_blocks, error_bound: 1e-6, ..base });
    vec![
        ("int8 dense", None),
        ("bf16 dense", None),
        ("certified 0.1", bound(0.1)),
        ("certified 0.01", bound(0.01)),
        ("certified 0.001", bound(0.001)),
        ("estimated 0.01", estimated(0.01)),
        ("estimated 0.001", estimated(0.001)),
        ("budget 16 blocks", budget(16)),
        ("budget 64 blocks", budget(64)),
    ]
}

/// Measures all variants in turn. Calls `each` with each reading; it may stop the run.
pub fn bench_attention(
    kernels: &Kernels,
    plan: &AttentionBenchPlan,
    each: &mut dyn FnMut(AttentionReading) -> ControlFlow<()>,
) {
    for shape in SHAPES {
        for &context in &plan.contexts {
            for heads in HEADS {
                for reading in AttentionCase::new(kernels, shape, context, heads).read(kernels, plan.time) {
                    if each(reading).is_break() {
                        return;
                    }
                }
            }
        }
    }
}

/// Pseudo-random numbers, approximately normal (mean 0, variance 1): sums of four uniform numbers.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        let mut even = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (even() + even() + even() + even()) * 3.0_f32.sqrt()
    }
}

/// A bf16 cache, an int8 cache and a query.
struct AttentionCase {
    shape: [usize; 3],
    context: usize,
    heads: &'static str,
    params: AttentionParams,
    q: Vec<f32>,
    float: KvLayer,
    int8: KvLayer,
}

impl AttentionCase {
    fn new(kernels: &Kernels, shape: [usize; 3], context: usize, heads: &'static str) -> AttentionCase {
        let [query_heads, kv_heads, head_dim] = shape;
        let mut random = Normal(context as u64);
        // Queries of a group differ by half of their norm.
        let wanted: Vec<f32> = (0..kv_heads * head_dim).map(|_| random.next()).collect();
        let group = query_heads / kv_heads;
        let q: Vec<f32> = (0..query_heads * head_dim)
            .map(|i| wanted[i / head_dim / group * head_dim + i % head_dim] + 0.5 * random.next())
            .collect();
        let blocks = context.div_ceil(BLOCK_SIZE);
        let int8 = KvDtype::Int8(OpenDtype::Bf16);
        let mut layers = [KvDtype::Bf16, int8].map(|dtype| KvLayer::new(blocks, kv_heads, head_dim, dtype));
        layers[1].grow_open_blocks(CHUNK / BLOCK_SIZE);
        let width = kv_heads * head_dim;
        for first in (0..context).step_by(CHUNK) {
            let count = CHUNK.min(context - first);
            let mut keys: Vec<f32> = (0..count * width).map(|_| random.next()).collect();
            for (t, key) in keys.chunks_mut(width).enumerate() {
                // Equal score magnitudes for every head_dim.
                let size = attraction(heads, first + t, context) * (128.0 / head_dim as f32).sqrt();
                key.iter_mut().zip(&wanted).for_each(|(k, w)| *k += size * w);
            }
            let values: Vec<f32> = (0..count * width).map(|_| random.next()).collect();
            let slots: Vec<u32> = (first as u32..(first + count) as u32).collect();
            write_kv(kernels, &mut layers[0], &keys, width, &values, width, &slots);
            let slots: Vec<u32> = (0..count as u32).collect();
            write_kv(kernels, &mut layers[1], &keys, width, &values, width, &slots);
            let filled = (0..(count / BLOCK_SIZE) as u32)
                .map(|b| SealedBlock { block: (first / BLOCK_SIZE) as u32 + b, open: b });
            seal_blocks(kernels, &mut layers[1], &filled.collect::<Vec<_>>());
        }
        let [float, int8] = layers;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params =
            AttentionParams { heads: query_heads, kv_heads, head_dim, scale, window: None, softcap: None };
        AttentionCase { shape, context, heads, params, q, float, int8 }
    }

    fn read(&self, kernels: &Kernels, time: Duration) -> Vec<AttentionReading> {
        let ways = ways();
        let mut times = vec![Vec::new(); ways.len()];
        let mut found = vec![None; ways.len()];
        let start = Instant::now();
        while times[0].len() < MIN_RUNS || (start.elapsed() < time && times[0].len() < MAX_RUNS) {
            for (way, (name, choice)) in ways.iter().enumerate() {
                let timed = |context| {
                    let begin = Instant::now();
                    let result = self.run(kernels, *name == "bf16 dense", *choice, context);
                    (begin.elapsed().as_secs_f64(), result)
                };
                // The first token of a block probes whether selection is faster; the other tokens of the block inherit the decision.
                let first = (self.context - 1) / BLOCK_SIZE * BLOCK_SIZE + 1;
                let share = 1.0 / BLOCK_SIZE as f64;
                let tried = if choice.is_some() { timed(first).0 } else { 0.0 };
                let (seconds, result) = timed(self.context);
                times[way].push(if choice.is_some() {
                    share * tried + (1.0 - share) * seconds
                } else {
                    seconds
                });
                found[way] = Some(result);
            }
        }
        let answers: Vec<_> = found.into_iter().flatten().collect();
        let readings = ways.iter().zip(&mut times).zip(&answers).map(|(((way, _), times), (out, report))| {
            times.remove(0);
            times.sort_by(f64::total_cmp);
            let at = |tenths: usize| times[(times.len() - 1) * tenths / 10];
            let [_, kv_heads, head_dim] = self.shape;
            let dtype = if *way == "bf16 dense" { KvDtype::Bf16 } else { self.int8.dtype() };
            let all = self.context.div_ceil(BLOCK_SIZE) * KvLayer::bytes_per_block(kv_heads, head_dim, dtype);
            AttentionReading {
                shape: self.shape,
                context: self.context,
                heads: self.heads,
                way,
                seconds: [at(2), at(5), at(8)],
                bytes: report.map_or(all as f64, |r| all as f64 * r.bytes_read as f64 / r.bytes_dense as f64),
                error: largest_error(out, &answers[0].0, head_dim),
                report: *report,
            }
        });
        readings.collect()
    }

    fn run(
        &self,
        kernels: &Kernels,
        float: bool,
        choice: Option<DynamicParams>,
        context: usize,
    ) -> (Vec<f32>, Option<AttentionReport>) {
        let blocks: Vec<u32> = (0..context.div_ceil(BLOCK_SIZE) as u32).collect();
        let own = (blocks.len() - 1) % (CHUNK / BLOCK_SIZE);
        let open_blocks = [own as u32];
        let seq = SeqView {
            query_start: 0,
            query_len: 1,
            context_len: context,
            block_table: &blocks,
            open_blocks: if float { &[] } else { &open_blocks },
        };
        let mut out = vec![0.0; self.q.len()];
        let layer = if float { &self.float } else { &self.int8 };
        let (q, width, params) = (&self.q, self.q.len(), &self.params);
        let mut reports = [AttentionReport::default()];
        let selection = choice
            .as_ref()
            .map(|choice| Selection { choices: std::slice::from_ref(choice), reports: &mut reports });
        paged_attention(kernels, layer, q, width, &[seq], params, selection, &mut out);
        (out, choice.map(|_| reports[0]))
    }
}

/// Component of the query direction in the key of token `t`.
fn attraction(heads: &str, t: usize, context: usize) -> f32 {
    match heads {
        // The beginning, and three spans of four tokens.
        "spans"
            if t < 4 || [3, 5, 7].iter().any(|&i| (context * i / 10..context * i / 10 + 4).contains(&t)) =>
        {
            1.6
        }
        // Decays over a few hundred tokens.
        "near" => 1.5 * (-((context - 1 - t) as f32) / 300.0).exp(),
        _ => 0.0,
    }
}

/// Maximum over heads of |out - exact| / |exact|, L2 norms.
fn largest_error(out: &[f32], exact: &[f32], head_dim: usize) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let relative = |(out, exact): (&[f32], &[f32])| {
        let apart = norm(&mut out.iter().zip(exact).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        apart / norm(&mut exact.iter().map(|&x| f64::from(x)))
    };
    out.chunks(head_dim).zip(exact.chunks(head_dim)).map(relative).fold(0.0, f64::max)
}
