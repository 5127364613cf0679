//! An adapter computes what merged weights do, and its rows have the same bits in every batch.

use std::ops::Range;
use std::path::Path;

use octavo_kernels::{Isa, Kernels, SeqView, WeightDtype};
use octavo_model::{Adapter, AdapterRows, Batch, Dtype, KvPool, Model, Scratch, open, read_family};

use crate::random::{RandomAdapter, RandomModel, Rng};

const FAMILIES: [&str; 3] = ["llama", "phi3", "deepseek"];
const KINDS: [&str; 5] = ["plain", "rslora", "patterns", "dora", "bias"];

pub fn load(kernels: &Kernels, folder: &Path, dtype: WeightDtype) -> Model {
    let folder = &*open(folder).expect("folder");
    Model::load(kernels, folder, read_family(folder).expect("family"), dtype).expect("model")
}

fn attach(kernels: &Kernels, model: &Model, adapter: &RandomAdapter) -> Adapter {
    let folder = tempfile::tempdir().expect("dir");
    adapter.write(folder.path());
    let file = model.open_adapter(folder.path()).expect("adapter");
    let packed = model.pack_adapter(kernels, &file).expect("packed");
    assert_eq!(packed.bytes(), file.packed_bytes());
    assert_eq!((packed.rank(), packed.digest()), (file.rank(), file.digest()));
    packed
}

/// A sequence in the pool: its tokens, its blocks, its adapter, and how many tokens have been computed.
struct Sequence<'a> {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    adapter: Option<&'a Adapter>,
    done: usize,
}

/// One step over `(sequence, number of tokens)`. Returns the logits of the rows of each.
fn step(
    kernels: &Kernels,
    model: &Model,
    kv: &mut KvPool,
    sequences: &mut [Sequence<'_>],
    chunks: &[(usize, usize)],
) -> Vec<Vec<u32>> {
    let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for &(i, count) in chunks {
        let s = &sequences[i];
        ranges.push(tokens.len()..tokens.len() + count);
        for place in s.done..s.done + count {
            tokens.push(s.tokens[place]);
            positions.push(place as u32);
            slots.push(s.blocks[place / 32] * 32 + place as u32 % 32);
        }
    }
    chunks.iter().for_each(|&(i, count)| sequences[i].done += count);
    let views = chunks.iter().zip(&ranges).map(|(&(i, count), range)| SeqView {
        query_start: range.start,
        query_len: count,
        context_len: sequences[i].done,
        block_table: &sequences[i].blocks,
        open_blocks: &[],
    });
    let views = views.collect::<Vec<_>>();
    let adapters = chunks.iter().zip(&ranges).filter_map(|(&(i, _), rows)| {
        sequences[i].adapter.map(|adapter| AdapterRows { adapter, rows: rows.clone() })
    });
    let adapters = adapters.collect::<Vec<_>>();
    let batch = Batch { adapters: &adapters, ..Batch::new(&tokens, &positions, &slots, &views) };
    let mut scratch = Scratch::default();
    model.forward(kernels, kv, &batch, &mut scratch);
    let rows = (0..tokens.len() as u32).collect::<Vec<_>>();
    let mut logits = vec![0.0; rows.len() * model.spec().vocab];
    model.logits(kernels, &rows, &mut scratch, &mut logits);
    let vocab = model.spec().vocab;
    let bits = |range: &Range<usize>| {
        logits[range.start * vocab..range.end * vocab].iter().map(|x| x.to_bits()).collect()
    };
    ranges.iter().map(bits).collect()
}

/// The logits of all tokens of a sequence in one step.
fn alone(kernels: &Kernels, model: &Model, tokens: &[u32], adapter: Option<&Adapter>) -> Vec<u32> {
    let mut kv = KvPool::new(model.spec(), 4, Dtype::Float32.into()).expect("pool");
    let blocks = (0..4).collect();
    let mut sequences = [Sequence { tokens: tokens.to_vec(), blocks, adapter, done: 0 }];
    step(kernels, model, &mut kv, &mut sequences, &[(0, tokens.len())]).remove(0)
}

fn tokens(rng: &mut Rng, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.below(61) as u32).collect()
}

#[test]
fn adapters_compute_what_merged_weights_do() {
    let kernels = Kernels::new(1, None).expect("kernels");
    let prompt = tokens(&mut Rng(3), 21);
    for family in FAMILIES {
        let base = RandomModel::new(family);
        let (folder, merged) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        base.write(folder.path());
        let model = load(&kernels, folder.path(), WeightDtype::F32);
        for (seed, kind) in KINDS.iter().enumerate().filter(|(_, kind)| family == "llama" || **kind != "bias")
        {
            let adapter = RandomAdapter::new(&base, kind, seed as u64);
            base.merged(&adapter).write(merged.path());
            let want = alone(&kernels, &load(&kernels, merged.path(), WeightDtype::F32), &prompt, None);
            let packed = attach(&kernels, &model, &adapter);
            let got = alone(&kernels, &model, &prompt, Some(&packed));
            let without = alone(&kernels, &model, &prompt, None);
            let distance = |a: &[u32], b: &[u32]| {
                let value = |bits: &u32| f32::from_bits(*bits);
                a.iter().zip(b).map(|(a, b)| (value(a) - value(b)).abs()).fold(0.0, f32::max)
            };
            let (error, effect) = (distance(&got, &want), distance(&without, &want));
            assert!(error < 5e-5, "{family} {kind}: {error} beside an effect of {effect}");
            assert!(effect > 0.05, "{family} {kind}: the adapter changes {effect}");
        }
    }
}

/// Sequences with two adapters and without one, in random chunks and batches: the bits of each alone.
#[test]
fn bits_do_not_depend_on_the_batch() {
    for (number, family) in FAMILIES.into_iter().enumerate() {
        let base = RandomModel::new(family);
        let folder = tempfile::tempdir().expect("dir");
        base.write(folder.path());
        let adapters = [RandomAdapter::new(&base, "patterns", 1), RandomAdapter::new(&base, "dora", 2)];
        let mut rng = Rng(number as u64);
        let prompts: Vec<Vec<u32>> = [70, 3, 40, 33, 9, 64].map(|n| tokens(&mut rng, n)).to_vec();
        for dtype in [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::INT8] {
            let mut want: Option<Vec<Vec<u32>>> = None;
            for isa in Isa::available() {
                let kernels = Kernels::new(2, Some(isa)).expect("kernels");
                let model = load(&kernels, folder.path(), dtype);
                let packed = adapters.each_ref().map(|a| attach(&kernels, &model, a));
                let of = |i: usize| packed.get(i % 3);
                let want = want.get_or_insert_with(|| {
                    let alone = |(i, p): (usize, &Vec<u32>)| alone(&kernels, &model, p, of(i));
                    prompts.iter().enumerate().map(alone).collect()
                });
                let mut kv = KvPool::new(model.spec(), 24, Dtype::Float32.into()).expect("pool");
                let mut sequences = Vec::new();
                for (i, tokens) in prompts.iter().enumerate() {
                    let blocks = (4 * i as u32..4 * i as u32 + 4).collect();
                    sequences.push(Sequence { tokens: tokens.clone(), blocks, adapter: of(i), done: 0 });
                }
                let mut got = vec![Vec::new(); prompts.len()];
                while got.iter().zip(&prompts).any(|(got, p)| got.len() < p.len() * model.spec().vocab) {
                    let mut chunks = Vec::new();
                    for (i, s) in sequences.iter().enumerate() {
                        let left = s.tokens.len() - s.done;
                        if left > 0 && rng.below(3) > 0 {
                            chunks.push((i, 1 + rng.below(left.min(40))));
                        }
                    }
                    if chunks.is_empty() {
                        continue;
                    }
                    let logits = step(&kernels, &model, &mut kv, &mut sequences, &chunks);
                    chunks.iter().zip(logits).for_each(|(&(i, _), logits)| got[i].extend(logits));
                }
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    assert_eq!(got, want, "{family} {dtype} on {isa}: sequence {i}");
                }
            }
        }
    }
}
