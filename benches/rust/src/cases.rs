//! The measured cases: each kernel on the shapes of two models, with its data, bytes and operations.

use std::hint::black_box;

use octavo_kernels::{
    Activation, AttentionParams, BLOCK_SIZE, Kernels, KvDtype, KvLayer, Linear, QuantizedRows, RmsNorm,
    Rotation, SeqView, WeightDtype, WeightRows, Weighting, activate_and_mul, add_assign, block_peaks,
    paged_attention, peak, rms_norm, weight_sums, write_kv,
};

use super::model_shapes::{MODEL_SHAPES, ModelShape};

/// Bytes of data of one run: more than caches hold. Hence data comes from memory.
const MIN_BYTES: usize = 160 << 20;
/// Rows of a matrix product.
const BATCH_ROWS: [usize; 5] = [1, 8, 32, 256, 512];
/// Maximum number of rows of logits of one step.
const MAX_LOGIT_ROWS: usize = 32;
/// Rows of elementwise ops.
const VALUE_ROWS: usize = 256;

/// Limit of computation that a case is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ComputeLimit {
    Int8,
    F32,
    /// Memory only.
    Memory,
}

/// A case without its data.
pub(super) struct KernelCase {
    pub kernel: &'static str,
    pub dtype: &'static str,
    pub shape: &'static str,
    pub sizes: String,
    pub limit: ComputeLimit,
    pub prepare: Box<dyn FnOnce(&Kernels) -> Work>,
}

/// One run of a case, with its bytes and operations.
pub(super) struct Work {
    pub bytes: f64,
    pub operations: f64,
    pub run: Box<dyn FnMut(&Kernels)>,
}

/// All cases in the order of measurement.
pub(super) fn all() -> impl Iterator<Item = KernelCase> {
    MODEL_SHAPES.iter().flat_map(|shape| matmuls(shape).chain(attentions(shape)).chain(values(shape)))
}

/// Numbers of both signs.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn matmuls(shape: &'static ModelShape) -> impl Iterator<Item = KernelCase> {
    let dtypes = [WeightDtype::INT8, WeightDtype::Bf16, WeightDtype::F32];
    let matrices = dtypes.into_iter().flat_map(|dtype| shape.matrices().map(|matrix| (dtype, matrix)));
    matrices.flat_map(move |(dtype, (name, n, k))| {
        let rows = BATCH_ROWS.into_iter().filter(move |m| name != "head" || *m <= MAX_LOGIT_ROWS);
        rows.map(move |m| KernelCase {
            kernel: "matmul",
            dtype: match dtype {
                WeightDtype::Quantized(_) => "int8",
                WeightDtype::Bf16 => "bf16",
                WeightDtype::F32 => "f32",
            },
            shape: shape.name,
            sizes: format!("{name} m={m} k={k} n={n}"),
            // bfloat16 weights are widened to float32.
            limit: if dtype == WeightDtype::INT8 { ComputeLimit::Int8 } else { ComputeLimit::F32 },
            prepare: Box::new(move |kernels| matmul(kernels, dtype, m, n, k)),
        })
    })
}

fn matmul(kernels: &Kernels, dtype: WeightDtype, m: usize, n: usize, k: usize) -> Work {
    let one = Linear::pack(kernels, &[WeightRows::F32(&numbers(n * k))], k, dtype);
    // With many rows computation is the limit: one matrix is enough.
    let copies = if m <= MAX_LOGIT_ROWS { MIN_BYTES.div_ceil(one.bytes()) } else { 1 };
    let layers = vec![one; copies];
    let (x, mut y, mut scratch) = (numbers(m * k), vec![0.0; m * n], QuantizedRows::new());
    Work {
        bytes: layers.iter().map(Linear::bytes).sum::<usize>() as f64,
        operations: 2.0 * (copies * m * n * k) as f64,
        run: Box::new(move |kernels| {
            for layer in &layers {
                layer.forward(kernels, black_box(&x), m, None, &mut y, &mut scratch);
            }
        }),
    }
}

fn attentions(shape: &'static ModelShape) -> impl Iterator<Item = KernelCase> {
    let sizes = [(1, 128), (1, 2048), (512, 512), (512, 2048)];
    sizes.into_iter().map(move |(query_len, context_len)| KernelCase {
        kernel: "attention",
        dtype: "bf16",
        shape: shape.name,
        sizes: format!("queries={query_len} context={context_len} heads={}/{}", shape.heads, shape.kv_heads),
        limit: ComputeLimit::F32,
        prepare: Box::new(move |kernels| attention(kernels, shape, query_len, context_len)),
    })
}

fn attention(kernels: &Kernels, shape: &ModelShape, query_len: usize, context_len: usize) -> Work {
    let ModelShape { heads, kv_heads, head_dim, .. } = *shape;
    let (blocks, width) = (context_len / BLOCK_SIZE, kv_heads * head_dim);
    let (rows, slots) = (numbers(context_len * width), (0..context_len as u32).collect::<Vec<_>>());
    let one_bytes = blocks * KvLayer::bytes_per_block(kv_heads, head_dim, KvDtype::Bf16);
    let copies = if query_len == 1 { MIN_BYTES / one_bytes } else { 1 };
    let bytes = (copies * one_bytes) as f64;
    let layers: Vec<KvLayer> = (0..copies)
        .map(|_| {
            let mut layer = KvLayer::new(blocks, kv_heads, head_dim, KvDtype::Bf16);
            write_kv(kernels, &mut layer, &rows, width, &rows, width, &slots);
            layer
        })
        .collect();
    let block_table: Vec<u32> = (0..blocks as u32).collect();
    let params = AttentionParams { heads, kv_heads, head_dim, scale: 0.125, window: None, softcap: None };
    let width = heads * head_dim;
    let (q, mut out) = (numbers(query_len * width), vec![0.0; query_len * width]);
    let keys: usize = (0..query_len).map(|i| context_len - i).sum();
    Work {
        bytes,
        operations: 4.0 * (copies * keys * width) as f64,
        run: Box::new(move |kernels| {
            let seq = SeqView {
                query_start: 0,
                query_len,
                context_len,
                block_table: &block_table,
                open_blocks: &[],
            };
            for layer in &layers {
                paged_attention(kernels, layer, black_box(&q), width, &[seq], &params, None, &mut out);
            }
        }),
    }
}

/// An elementwise op over a block of rows.
type PerValue = fn(&Kernels, &mut ValueBuffers);

/// Buffers of such an op.
struct ValueBuffers {
    width: usize,
    x: Vec<f32>,
    out: Vec<f32>,
    weight: Vec<f32>,
    rows: QuantizedRows,
}

/// Kernel, values of a row, rows of a block, bytes of memory for each value of x.
type ValueOp = (&'static str, usize, usize, f64, PerValue);

fn value_ops(shape: &ModelShape) -> [ValueOp; 7] {
    let ModelShape { hidden, intermediate, vocab, .. } = *shape;
    [
        ("rms_norm", hidden, VALUE_ROWS, 8.0, |kernels, b| {
            rms_norm(kernels, &b.x, RmsNorm { weight: &b.weight, eps: 1e-6, offset: 0.0 }, &mut b.out);
        }),
        ("quantize", hidden, VALUE_ROWS, 5.0, |kernels, b| {
            b.rows.quantize(kernels, &b.x, b.width, Rotation::Hadamard)
        }),
        ("silu_and_mul", 2 * intermediate, VALUE_ROWS, 6.0, |kernels, b| {
            let half = b.x.len() / 2;
            activate_and_mul(kernels, Activation::Silu, &b.x, b.width / 2, &mut b.out[..half]);
        }),
        ("add", hidden, VALUE_ROWS, 12.0, |kernels, b| add_assign(kernels, &mut b.out, &b.x)),
        ("peak", vocab, 32, 4.0, |kernels, b| {
            let rows: Vec<&[f32]> = b.x.chunks(b.width).collect();
            kernels.pool().run(rows.len(), &|i| {
                black_box(peak(kernels, rows[i]));
            });
        }),
        ("top_k", vocab, 32, 4.0, |kernels, b| {
            let rows: Vec<&[f32]> = b.x.chunks(b.width).collect();
            kernels.pool().run(rows.len(), &|i| {
                let mut peaks = Vec::new();
                block_peaks(kernels, rows[i], &mut peaks);
                black_box(peaks);
            });
        }),
        ("softmax_sum", vocab, 32, 4.0, |kernels, b| {
            let rows: Vec<&[f32]> = b.x.chunks(b.width).collect();
            let weighting = Weighting { largest: 1.0, temperature: 0.7, limit: f32::MIN };
            kernels.pool().run(rows.len(), &|i| {
                let mut sums = Vec::new();
                weight_sums(kernels, rows[i], weighting, &mut sums);
                black_box(sums);
            });
        }),
    ]
}

fn values(shape: &'static ModelShape) -> impl Iterator<Item = KernelCase> {
    value_ops(shape).into_iter().map(move |(kernel, width, rows, bytes, op)| KernelCase {
        kernel,
        dtype: "f32",
        shape: shape.name,
        sizes: format!("rows={rows} width={width}"),
        limit: ComputeLimit::Memory,
        prepare: Box::new(move |_| {
            let len = rows * width;
            let block = || ValueBuffers {
                width,
                x: numbers(len),
                out: vec![0.0; len],
                weight: numbers(width),
                rows: QuantizedRows::new(),
            };
            let mut blocks: Vec<ValueBuffers> =
                (0..(MIN_BYTES / (4 * len)).max(1)).map(|_| block()).collect();
            Work {
                bytes: bytes * (blocks.len() * len) as f64,
                operations: 0.0,
                run: Box::new(move |kernels| blocks.iter_mut().for_each(|block| op(kernels, block))),
            }
        }),
    })
}
