//! Paged attention against a naive f64 softmax, and bit by bit across chunks, batches, threads and instruction sets.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, assert_close, bits, every_context, int8, kernels};
use octavo_kernels::{
    AttentionParams, AttentionReport, BLOCK_SIZE, DynamicParams, Isa, Kernels, KvDtype, KvLayer, OpenDtype,
    SealedBlock, Selection, SeqView, bf16, paged_attention, seal_blocks, write_kv,
};

on_each_isa!(
    matches_f64,
    masked_tokens_are_never_read,
    copied_blocks_read_alike,
    extreme_scores_stay_finite,
    faulty_blocks_read_as_nan,
    infinite_values_reach_their_readers_only,
);

const DTYPES: [KvDtype; 4] =
    [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8(OpenDtype::F32), KvDtype::Int8(OpenDtype::Bf16)];

fn is_int8(dtype: KvDtype) -> bool {
    matches!(dtype, KvDtype::Int8(_))
}

/// One sequence's tokens: q `[len, heads, head_dim]`, k and v `[len, kv_heads, head_dim]`.
struct Sequence {
    len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    blocks: Vec<u32>,
}

struct Case {
    params: AttentionParams,
    sequences: Vec<Sequence>,
    num_blocks: usize,
    /// Choice of the queries of int8 layers.
    choice: Option<DynamicParams>,
}

impl Case {
    /// Random sequences with blocks scattered over the pool.
    fn new(seed: u64, params: AttentionParams, lengths: &[usize]) -> Case {
        let mut rng = Rng(seed);
        let total: usize = lengths.iter().map(|len| len.div_ceil(BLOCK_SIZE)).sum();
        let num_blocks = total + 3;
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        let AttentionParams { heads, kv_heads, head_dim, .. } = params;
        let sequences = lengths.iter().map(|&len| Sequence {
            len,
            q: rng.floats(len * heads * head_dim).iter().map(|x| 3.0 * x).collect(),
            k: rng.floats(len * kv_heads * head_dim).iter().map(|x| 2.0 * x).collect(),
            v: rng.floats(len * kv_heads * head_dim),
            blocks: (0..len.div_ceil(BLOCK_SIZE)).map(|_| free.swap_remove(rng.below(free.len()))).collect(),
        });
        let sequences = sequences.collect();
        Case { params, sequences, num_blocks, choice: None }
    }

    fn layer(&self, dtype: KvDtype) -> KvLayer {
        let mut layer = KvLayer::new(self.num_blocks, self.params.kv_heads, self.params.head_dim, dtype);
        // Here the open block of a block has the block's number.
        layer.grow_open_blocks(self.num_blocks);
        layer
    }

    fn width(&self) -> usize {
        self.params.heads * self.params.head_dim
    }

    /// Runs one step: tokens `from .. to` of each listed sequence, in one batch of rows [q | k | v].
    fn step(
        &self,
        kernels: &Kernels,
        layer: &mut KvLayer,
        shares: &[(usize, usize, usize)],
    ) -> Vec<Vec<f32>> {
        let (width, kv_width) = (self.width(), self.params.kv_heads * self.params.head_dim);
        let stride = width + 2 * kv_width;
        let (mut rows, mut slots, mut seqs, mut sealed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let int8 = is_int8(layer.dtype());
        for &(index, from, to) in shares {
            let seq = &self.sequences[index];
            let query_start = slots.len();
            for t in from..to {
                rows.extend(&seq.q[t * width..(t + 1) * width]);
                rows.extend(&seq.k[t * kv_width..(t + 1) * kv_width]);
                rows.extend(&seq.v[t * kv_width..(t + 1) * kv_width]);
                slots.push(seq.blocks[t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32);
            }
            let (query_len, context_len) = (to - from, to);
            let open_blocks = if int8 { &seq.blocks[from / BLOCK_SIZE..] } else { &[] };
            seqs.push(SeqView { query_start, query_len, context_len, block_table: &seq.blocks, open_blocks });
            let full = &seq.blocks[from / BLOCK_SIZE..to / BLOCK_SIZE];
            sealed.extend(full.iter().map(|&block| SealedBlock { block, open: block }));
        }
        write_kv(kernels, layer, &rows[width..], stride, &rows[width + kv_width..], stride, &slots);
        if int8 {
            seal_blocks(kernels, layer, &sealed);
        }
        let mut out = vec![f32::NAN; slots.len() * width];
        let choices = self.choice.filter(|_| int8).map(|choice| vec![choice; seqs.len()]);
        let mut reports = vec![AttentionReport::default(); seqs.len()];
        let selection = choices.as_ref().map(|choices| Selection { choices, reports: &mut reports });
        paged_attention(kernels, layer, &rows, stride, &seqs, &self.params, selection, &mut out);
        seqs.iter()
            .map(|s| out[s.query_start * width..(s.query_start + s.query_len) * width].to_vec())
            .collect()
    }

    /// All sequences whole, each in a step of its own.
    fn whole(&self, kernels: &Kernels, dtype: KvDtype) -> Vec<Vec<f32>> {
        let mut layer = self.layer(dtype);
        (0..self.sequences.len())
            .map(|index| self.step(kernels, &mut layer, &[(index, 0, self.sequences[index].len)]).remove(0))
            .collect()
    }

    /// Keys and values of sequence `index` as floats of the cache hold them, `[len, kv_heads, head_dim]` each.
    fn stored(&self, index: usize, dtype: KvDtype) -> (Vec<f32>, Vec<f32>) {
        let narrow = |x: &f32| match dtype {
            KvDtype::Bf16 | KvDtype::Int8(OpenDtype::Bf16) => bf16::from_f32(*x).to_f32(),
            _ => *x,
        };
        let seq = &self.sequences[index];
        (seq.k.iter().map(narrow).collect(), seq.v.iter().map(narrow).collect())
    }

    fn reference(&self, index: usize, dtype: KvDtype) -> Vec<f64> {
        let AttentionParams { heads, kv_heads, head_dim, scale, window, softcap } = self.params;
        let seq = &self.sequences[index];
        let (k, v) = self.stored(index, dtype);
        let (past_k, past_v) = if is_int8(dtype) {
            (int8::keys(&k, kv_heads * head_dim), int8::values(&v, head_dim))
        } else {
            (k.clone(), v.clone())
        };
        let mut out = Vec::new();
        for p in 0..seq.len {
            let first = window.map_or(0, |w| (p + 1).saturating_sub(w as usize));
            let own = p / BLOCK_SIZE * BLOCK_SIZE;
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let q = &seq.q[(p * heads + head) * head_dim..][..head_dim];
                let at = |t: usize| (t * kv_heads + kv_head) * head_dim;
                let scores: Vec<f64> = (first..=p)
                    .map(|t| {
                        let k = &(if t < own { &past_k } else { &k })[at(t)..][..head_dim];
                        // Against keys in bf16, queries are rounded alike.
                        let scaled = |x: f32| match dtype {
                            KvDtype::Bf16 => f64::from(bf16::from_f32(x * scale).to_f32()),
                            _ => f64::from(x) * f64::from(scale),
                        };
                        let score: f64 = q.iter().zip(k).map(|(&a, &b)| scaled(a) * f64::from(b)).sum();
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for d in 0..head_dim {
                    let weighted = scores.iter().enumerate().map(|(i, s)| {
                        let v = if first + i < own { &past_v } else { &v };
                        (s - top).exp() * f64::from(v[at(first + i) + d])
                    });
                    out.push(weighted.sum::<f64>() / sum);
                }
            }
        }
        out
    }
}

fn params(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionParams {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionParams { heads, kv_heads, head_dim, scale, window: None, softcap: None }
}

/// Head dimensions with and without a partial vector, 1 to 7 query heads a KV head, windows within and across blocks.
fn cases() -> Vec<Case> {
    vec![
        Case::new(1, params(4, 4, 64), &[1, 31, 70]),
        Case::new(2, params(7, 1, 30), &[32, 33]),
        Case::new(3, params(6, 2, 48), &[97]),
        Case::new(4, params(2, 2, 1), &[40]),
        Case::new(5, params(3, 1, 100), &[65, 5]),
        Case::new(6, AttentionParams { window: Some(1), ..params(4, 2, 16) }, &[50]),
        Case::new(7, AttentionParams { window: Some(20), ..params(4, 2, 32) }, &[90, 12]),
        Case::new(8, AttentionParams { window: Some(64), ..params(5, 1, 24) }, &[130]),
        Case::new(9, AttentionParams { softcap: Some(5.0), ..params(4, 1, 64) }, &[80]),
        Case::new(10, AttentionParams { softcap: Some(2.0), window: Some(33), ..params(2, 1, 80) }, &[100]),
    ]
}

fn matches_f64(isa: Isa) {
    let kernels = kernels(isa, 2);
    for (number, case) in cases().into_iter().enumerate() {
        for dtype in DTYPES {
            for (index, got) in case.whole(&kernels, dtype).iter().enumerate() {
                let what = format!("case {number} sequence {index} {dtype:?}");
                // Queries are rounded to 16 bits against int8 keys, weights to 8 bits before values in bf16.
                let tolerance = match dtype {
                    KvDtype::Int8(_) => 1e-4,
                    KvDtype::Bf16 => 8e-3,
                    _ => 3e-6,
                };
                assert_close(&what, got, &case.reference(index, dtype), tolerance);
            }
        }
    }
}

/// The slot of a future token may hold NaN from another request: the output does not change.
fn masked_tokens_are_never_read(isa: Isa) {
    let kernels = kernels(isa, 1);
    for dtype in DTYPES {
        let case = Case::new(20, AttentionParams { window: Some(40), ..params(4, 2, 24) }, &[75]);
        let want = case.whole(&kernels, dtype);
        let mut layer = case.layer(dtype);
        let slots: Vec<u32> = (0..(case.num_blocks * BLOCK_SIZE) as u32).collect();
        // Of an int8 layer this fills the open blocks, from which full blocks are sealed again.
        let poison = vec![f32::NAN; slots.len() * 48];
        write_kv(&kernels, &mut layer, &poison, 48, &poison, 48, &slots);
        let got = case.step(&kernels, &mut layer, &[(0, 0, 75)]);
        assert_eq!(bits(&got[0]), bits(&want[0]), "{dtype:?}");
    }
}

fn copied_blocks_read_alike(isa: Isa) {
    let kernels = kernels(isa, 2);
    for dtype in DTYPES {
        let mut case = Case::new(21, params(4, 2, 40), &[70]);
        let mut layer = case.layer(dtype);
        let before = case.step(&kernels, &mut layer, &[(0, 0, 70)]).remove(0);
        let used = case.sequences[0].blocks.clone();
        let free = (0..case.num_blocks as u32).find(|block| !used.contains(block)).unwrap();
        layer.copy_block(used[1] as usize, free as usize);
        let last = used[2];
        if is_int8(dtype) {
            // The last block is partly sealed: its content is in the open block.
            let [last, other] = [last as usize, used[1] as usize];
            layer.copy_open_block(last, other);
            layer.copy_open_block(other, last);
        }
        case.sequences[0].blocks[1] = free;
        // The last token once more, now reading the copy.
        let after = case.step(&kernels, &mut layer, &[(0, 69, 70)]).remove(0);
        assert_eq!(bits(&after), bits(&before[69 * case.width()..]), "{dtype:?}");
        let open_blocks = layer.num_open_blocks() * KvLayer::bytes_per_open_block(2, 40, dtype);
        assert_eq!(layer.bytes(), layer.num_blocks() * KvLayer::bytes_per_block(2, 40, dtype) + open_blocks);
    }
}

fn extreme_scores_stay_finite(isa: Isa) {
    let kernels = kernels(isa, 1);
    let mut case = Case::new(22, params(2, 1, 16), &[70]);
    case.sequences[0].q.iter_mut().for_each(|x| *x *= 1e4);
    let out = case.whole(&kernels, KvDtype::F32).remove(0);
    assert_close("large scores", &out, &case.reference(0, KvDtype::F32), 1e-4);
}

/// A block with a number that is not finite reads as such, and harms no other.
fn faulty_blocks_read_as_nan(isa: Isa) {
    let kernels = kernels(isa, 1);
    let mut case = Case::new(23, params(2, 1, 16), &[70]);
    let width = case.width();
    let want = case.whole(&kernels, DTYPES[3]).remove(0);
    case.sequences[0].k[40 * 16 + 3] = f32::INFINITY;
    let got = case.whole(&kernels, DTYPES[3]).remove(0);
    assert_eq!(bits(&got[..32 * width]), bits(&want[..32 * width]), "positions before the fault");
    assert!(got[64 * width..].iter().all(|x| x.is_nan()), "positions in blocks behind the fault");
}

/// An infinite value reaches the queries that see its token and no other query of the batch.
fn infinite_values_reach_their_readers_only(isa: Isa) {
    let kernels = kernels(isa, 1);
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut case = Case::new(24, params(4, 1, 32), &[70]);
        let width = case.width();
        let want = case.whole(&kernels, dtype).remove(0);
        case.sequences[0].v[50 * 32 + 3] = f32::INFINITY;
        let got = case.whole(&kernels, dtype).remove(0);
        assert_eq!(
            bits(&got[..50 * width]),
            bits(&want[..50 * width]),
            "{dtype:?}: positions before the fault"
        );
        let faulty = got[50 * width..].chunks(32).all(|head| !head[3].is_finite() && head[2].is_finite());
        assert!(faulty, "{dtype:?}: positions from the fault on");
    }
}

/// Any split into chunks, any batch, any threads, any instruction set: the same bits.
#[test]
fn bits_depend_on_positions_only() {
    let contexts = every_context();
    // Concentrated enough for blocks to be left out, with few blocks always read.
    let choice = DynamicParams {
        error_bound: 0.05,
        min_context: 40,
        sink_blocks: 0,
        local_blocks: 0,
        ..DynamicParams::default()
    };
    let chosen = [[150, 40], [97, 260]].map(|lengths| {
        let mut case = Case::new(lengths[0] as u64, params(6, 2, 48), &lengths);
        case.choice = Some(choice);
        case
    });
    for (number, case) in cases().into_iter().chain(chosen).enumerate() {
        for dtype in DTYPES {
            let want: Vec<Vec<u32>> = case.whole(&contexts[0], dtype).iter().map(|x| bits(x)).collect();
            for (seed, kernels) in contexts.iter().enumerate() {
                let mut rng = Rng((100 * number + seed) as u64);
                let mut layer = case.layer(dtype);
                let mut done = vec![0; case.sequences.len()];
                let mut got = vec![Vec::new(); case.sequences.len()];
                while done.iter().zip(&case.sequences).any(|(&d, s)| d < s.len) {
                    let shares: Vec<_> = (0..done.len())
                        .map(|index| {
                            // Nothing, one token, some, or more than a block.
                            let longest = [0, 1, 5, 100][rng.below(4)];
                            let to = case.sequences[index]
                                .len
                                .min(done[index] + longest - rng.below(longest.max(1)));
                            (index, done[index], to)
                        })
                        .filter(|&(_, from, to)| from < to)
                        .collect();
                    if shares.is_empty() {
                        continue;
                    }
                    for (&(index, _, to), out) in shares.iter().zip(case.step(kernels, &mut layer, &shares)) {
                        got[index].extend(bits(&out));
                        done[index] = to;
                    }
                }
                let (isa, threads) = (kernels.isa(), kernels.threads());
                assert!(got == want, "case {number} {dtype:?} {isa} threads {threads}: bits differ");
            }
        }
    }
}
