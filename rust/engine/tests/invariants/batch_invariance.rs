//! On the real CPU executor, a request's tokens and the bits of its logprobs depend on nothing but the request: not on its
//! company, the chunks of its prefill, the prefix cache, preemption, the number of threads or the instruction set.

use std::path::Path;

use octavo_engine::{
    AttentionConfig, CacheSize, Engine, EngineConfig, Prompt, RequestStream, SamplingParams,
};
use octavo_kernels::Isa;

use crate::folder::{self, TestModel};
use crate::gather::{Gathered, gather, settled};
use crate::random::Random;

/// Prompt lengths around the block size of 32, and one of several blocks.
const LENGTHS: [usize; 6] = [1, 31, 32, 33, 70, 130];

/// Tokens of a probe's output: enough to enter one block more, or two.
const MAX_TOKENS: u32 = 32;

/// Requests whose output is compared: greedy and sampled ones.
fn probes() -> Vec<(Vec<u32>, SamplingParams)> {
    let mut random = Random(11);
    let mut probe = |i: usize, len: usize| {
        let prompt = (0..len).map(|_| random.below(256) as u32).collect();
        let params = SamplingParams {
            temperature: Some(if i.is_multiple_of(2) { 0.0 } else { 0.9 }),
            top_p: (i % 4 == 1).then_some(0.95),
            repetition_penalty: (i % 3 == 2).then_some(1.2),
            n: if i == 3 { 2 } else { 1 },
            seed: Some(i as u64),
            max_tokens: Some(MAX_TOKENS),
            logprobs: Some(4),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        (prompt, params)
    };
    LENGTHS.iter().enumerate().map(|(i, len)| probe(i, *len)).collect()
}

/// 32 requests that only keep it company; some share the probes' prefixes.
fn company(probes: &[(Vec<u32>, SamplingParams)]) -> Vec<(Vec<u32>, SamplingParams)> {
    let mut random = Random(13);
    let mut one = |i: usize| {
        let mut prompt: Vec<u32> = (0..1 + random.below(60)).map(|_| random.below(256) as u32).collect();
        if i.is_multiple_of(4) {
            prompt.splice(0..0, probes[4 + i % 2].0[..64].iter().copied());
        }
        let max_tokens = Some(1 + random.below(40) as u32);
        (prompt, SamplingParams { max_tokens, seed: Some(1), ignore_eos: true, ..SamplingParams::default() })
    };
    (0..32).map(&mut one).collect()
}

fn submit(engine: &Engine, request: &(Vec<u32>, SamplingParams)) -> RequestStream {
    engine.submit(Prompt::Tokens(request.0.clone()), &request.1).expect("submitted")
}

/// What must not change: tokens and the bits of every candidate's logprob, by sample.
type Bits = (Vec<Vec<u32>>, Vec<Vec<(u32, u32)>>);

fn bits(stream: &RequestStream, params: &SamplingParams) -> (Bits, Gathered) {
    let out = gather(stream, params.n as usize);
    assert_eq!(out.error, None);
    assert!(out.logprobs.iter().all(|l| l.len() >= MAX_TOKENS as usize * 4), "logprobs of every token");
    ((out.tokens.clone(), out.logprobs.clone()), out)
}

/// dtype, quantization, kv_cache_dtype.
#[derive(Clone, Copy, Debug)]
struct Formats(&'static str, &'static str, &'static str);
/// As a cache of int8 values of which queries choose, from two blocks on.
const DYNAMIC: Formats = Formats("bfloat16", "int8", "dynamic");
const F32: Formats = Formats("float32", "none", "auto");
const BF16: Formats = Formats("bfloat16", "none", "auto");
const INT8: Formats = Formats("bfloat16", "int8", "auto");
const INT8_KV: Formats = Formats("bfloat16", "int8", "int8");
const INT8_KV_OF_F32: Formats = Formats("float32", "none", "int8");

fn options(formats: Formats) -> EngineConfig {
    EngineConfig {
        dtype: formats.0.into(),
        quantization: formats.1.into(),
        kv_cache_dtype: if formats.2 == "dynamic" { "auto" } else { formats.2 }.into(),
        attention: (formats.2 == "dynamic").then_some(AttentionConfig {
            error_bound: 0.2,
            min_context: 64,
            sink_blocks: 0,
            local_blocks: 0,
            ..AttentionConfig::default()
        }),
        kv_cache_memory: Some(CacheSize::Bytes(4 << 20)),
        isa: Some("portable".into()),
        threads: Some(1),
        enable_prefix_caching: false,
        ..EngineConfig::default()
    }
}

/// Each probe alone in an engine without prefix cache, one thread, plain Rust: what all others must equal.
fn reference(folder: &Path, formats: Formats) -> Vec<Bits> {
    let engine = Engine::load(folder, &options(formats)).expect("engine");
    let alone = |probe| bits(&submit(&engine, probe), &probe.1).0;
    let all: Vec<Bits> = probes().iter().map(alone).collect();
    assert!(all[0].0[0] != all[2].0[0] && all[3].0[0] != all[3].0[1], "the model says different things");
    all
}

/// Runs the probes alone and then among the company, and compares. Returns preemptions and cached prompt tokens.
fn compare(folder: &Path, options: &EngineConfig, wanted: &[Bits]) -> (u64, u64) {
    let engine = Engine::load(folder, options).expect("engine");
    let (probes, mut cached) = (probes(), 0);
    let company = company(&probes);
    for round in ["alone", "in company", "in company, backwards"] {
        let mut requests: Vec<&_> = match round {
            "alone" => vec![],
            _ => company.iter().collect(),
        };
        // Probes stand in different places of the batch.
        for (i, probe) in probes.iter().enumerate() {
            requests.insert(if round == "alone" { i } else { requests.len() / (i + 1) }, probe);
        }
        if round.ends_with("backwards") {
            requests.reverse();
        }
        let mut streams: Vec<Option<RequestStream>> = Vec::new();
        for request in &requests {
            let stream = submit(&engine, request);
            if round == "alone" {
                // The next one begins when this one has ended.
                let which = streams.len();
                let (found, out) = bits(&stream, &request.1);
                assert_eq!(found, wanted[which], "probe {which} {round}, {options:?}");
                cached += out.cached;
                streams.push(None);
            } else {
                streams.push(Some(stream));
            }
        }
        for (request, stream) in requests.iter().zip(&streams) {
            let Some(stream) = stream else { continue };
            let Some(which) = probes.iter().position(|p| std::ptr::eq(p, *request)) else { continue };
            let (found, out) = bits(stream, &request.1);
            assert_eq!(found, wanted[which], "probe {which} {round}, {options:?}");
            cached += out.cached;
        }
    }
    let stats = settled(&engine);
    // A tiny cache holds few at once.
    let at_least = if stats.blocks_total < 100 { 3 } else { 16 };
    assert!(stats.max_batch > at_least, "requests kept company: {stats:?}");
    (stats.preemptions, cached)
}

fn in_folder(model: &TestModel, body: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().expect("dir");
    model.write(dir.path());
    body(dir.path());
}

/// Threads, prefill chunk, prefix cache.
type Setting = (usize, Option<usize>, bool);

/// Every chunk with and without the cache, on one thread and on two.
const ALL: [Setting; 7] = [
    (1, None, true),
    (1, Some(7), false),
    (1, Some(64), true),
    (2, None, false),
    (2, Some(1), true),
    (2, Some(7), true),
    (2, Some(64), false),
];

/// Every chunk once.
const SOME: [Setting; 4] = [(1, None, true), (1, Some(7), false), (2, Some(1), true), (2, Some(64), false)];

/// Every chunk size, with and without prefix cache, on every instruction set with one and two threads.
fn chunks_caches_threads_and_levels(model: &TestModel, formats: Formats, settings: &[Setting]) {
    in_folder(model, |folder| {
        let wanted = reference(folder, formats);
        let levels = Isa::available();
        println!("levels on this machine: {levels:?}");
        for isa in levels {
            for &(threads, chunk, cache) in settings {
                let options = EngineConfig {
                    isa: Some(isa.name().into()),
                    threads: Some(threads),
                    prefill_chunk: chunk,
                    enable_prefix_caching: cache,
                    ..options(formats)
                };
                let (_, cached) = compare(folder, &options, &wanted);
                assert_eq!(cached > 0, cache, "prefix hits, {options:?}");
            }
        }
    });
}

/// A cache that holds a few of the requests, on every instruction set: sequences lose their blocks and compute them again.
fn preemption(model: &TestModel, formats: Formats) {
    in_folder(model, |folder| {
        let wanted = reference(folder, formats);
        let kv = EngineConfig { max_model_len: Some(192), ..options(formats) };
        let roomy = Engine::load(folder, &kv).expect("engine");
        let block_bytes = (4 << 20) / roomy.info()["limits"]["num_blocks"].as_u64().expect("blocks");
        for isa in Isa::available() {
            for (cache, budget, threads) in [(false, 512, 1), (true, 40, 2)] {
                let options = EngineConfig {
                    kv_cache_memory: Some(CacheSize::Bytes(12 * block_bytes)),
                    enable_prefix_caching: cache,
                    max_num_batched_tokens: Some(budget),
                    threads: Some(threads),
                    isa: Some(isa.name().into()),
                    ..kv.clone()
                };
                let (preemptions, _) = compare(folder, &options, &wanted);
                assert!(preemptions > 0, "nothing was preempted, {options:?}");
            }
        }
    });
}

macro_rules! for_each_dtype {
    ($($name:ident: $model:ident, $formats:ident, $settings:ident;)*) => {
        $(mod $name {
            #[test]
            fn chunks_caches_threads_and_levels() {
                let model = super::folder::$model();
                super::chunks_caches_threads_and_levels(&model, super::$formats, &super::$settings);
            }

            #[test]
            fn preemption() {
                super::preemption(&super::folder::$model(), super::$formats);
            }
        })*
    };
}

for_each_dtype! {
    qwen3_f32: qwen3, F32, ALL;
    qwen3_bf16: qwen3, BF16, ALL;
    qwen3_int8: qwen3, INT8, ALL;
    qwen3_int8_kv: qwen3, INT8_KV, ALL;
    qwen3_int8_kv_of_f32: qwen3, INT8_KV_OF_F32, SOME;
    qwen3_dynamic: qwen3, DYNAMIC, ALL;
    mistral_f32: mistral, F32, SOME;
    mistral_bf16: mistral, BF16, SOME;
    mistral_int8: mistral, INT8, SOME;
    mistral_int8_kv: mistral, INT8_KV, SOME;
}
