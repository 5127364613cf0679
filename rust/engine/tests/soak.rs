//! A thousand mixed requests from several threads, with faults in between: random lengths, samples, cancels, readers who walk
//! away, priorities, deadlines, stop strings, salts. Each ends once, what completes is right, nothing stays held, and a second
//! and third thousand take no more memory than the first.
//!
//! Alone in its file, so that the process's memory is its own. `OCTAVO_SOAK_RESULT=<file>` (from this crate's folder) writes
//! what was reached as JSON, with the date that `OCTAVO_SOAK_DATE` gives.

#[path = "invariants/folder.rs"]
#[allow(dead_code)]
mod folder;
#[path = "invariants/gather.rs"]
#[allow(dead_code)]
mod gather;
#[path = "invariants/oracle.rs"]
#[allow(dead_code)]
mod oracle;
#[path = "invariants/random.rs"]
#[allow(dead_code)]
mod random;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use octavo_engine::{
    Engine, EngineError, EngineStats, FinishReason, Limits, Prompt, RequestStream, SamplingParams,
};
use serde_json::json;

use gather::{Gathered, settled};
use oracle::{Fault, Script, continuation};
use random::Random;

const THREADS: u64 = 4;
const REQUESTS: u64 = 1000;
const LIMITS: Limits = Limits {
    max_model_len: 128,
    max_num_seqs: 12,
    max_num_batched_tokens: 48,
    max_queue: 12,
    block_size: 4,
    num_blocks: 90,
    max_loras: 8,
    max_lora_rank: 256,
    max_lora_memory: 1 << 20,
};

/// How the caller treats a request.
#[derive(Clone, Copy, Debug)]
enum Manner {
    ReadsToTheEnd,
    CancelsAfter(u64),
    DropsAfter(u64),
}

/// What became of the requests of all threads.
#[derive(Default, Debug)]
struct Tally {
    submitted: AtomicU64,
    whole: AtomicU64,
    stopped: AtomicU64,
    aborted: AtomicU64,
    timed_out: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// True once in `n` times.
fn one_in(random: &mut Random, n: u64) -> bool {
    random.below(n) == 0
}

fn request(random: &mut Random) -> (Vec<u32>, SamplingParams, Manner) {
    let len = 1 + random.below(60);
    let mut prompt: Vec<u32> = (0..len).map(|_| 97 + random.below(26) as u32).collect();
    if one_in(random, 2) {
        // A shared prefix of up to ten blocks.
        let shared = len.min(40);
        prompt[..shared as usize].iter_mut().enumerate().for_each(|(i, t)| *t = 97 + i as u32 % 7);
    }
    let params = SamplingParams {
        n: 1 + random.below(3) as u32,
        temperature: Some(0.0),
        max_tokens: Some(1 + random.below(40) as u32),
        ignore_eos: true,
        priority: random.below(3) as i32,
        timeout: one_in(random, 6).then(|| 0.0005 + random.below(20) as f64 / 1000.0),
        stop: if one_in(random, 4) { vec!["q".into(), "xy".into()] } else { vec![] },
        include_stop_str_in_output: one_in(random, 2),
        cache_salt: one_in(random, 3).then(|| "salt".into()),
        logprobs: one_in(random, 4).then_some(2),
        prompt_logprobs: one_in(random, 8).then_some(1),
        ..SamplingParams::default()
    };
    let manner = match random.below(6) {
        0 => Manner::CancelsAfter(random.below(6)),
        1 => Manner::DropsAfter(random.below(6)),
        _ => Manner::ReadsToTheEnd,
    };
    (prompt, params, manner)
}

/// Reads until the last delta; None if the caller walked away before it.
fn read(stream: RequestStream, manner: Manner) -> Option<Gathered> {
    let mut out = Gathered::default();
    for seen in 0.. {
        match manner {
            Manner::CancelsAfter(k) if k == seen => stream.cancel(),
            Manner::DropsAfter(k) if k == seen => return None,
            _ => {}
        }
        let delta = stream.next(Duration::from_secs(60)).expect("the request hangs");
        out.add(&delta);
        if delta.finished {
            assert!(stream.next(Duration::ZERO).is_none(), "news after the last delta");
            return Some(out);
        }
    }
    None
}

fn judge(out: &Gathered, prompt: &[u32], params: &SamplingParams, manner: Manner, tally: &Tally) -> bool {
    let wanted = continuation(prompt, params.max_tokens.expect("max") as usize);
    assert_eq!(out.reasons.len(), params.n as usize, "samples heard of");
    assert!(out.reasons.iter().all(|r| r.len() == 1), "one end each: {:?}", out.reasons);
    assert!(out.tokens.iter().all(|t| wanted.starts_with(t)), "wrong tokens");
    match out.error {
        Some("RequestTimeoutError") => {
            assert!(params.timeout.is_some());
            count(&tally.timed_out);
        }
        Some("ExecutionError") => {
            count(&tally.failed);
            return true;
        }
        Some(class) => panic!("{class}"),
        None => {
            for (reasons, tokens) in out.reasons.iter().zip(&out.tokens) {
                judge_sample(reasons[0], tokens, &wanted, manner);
            }
            count(if out.any_ended(FinishReason::Abort) {
                &tally.aborted
            } else if out.any_ended(FinishReason::Stop) {
                &tally.stopped
            } else {
                &tally.whole
            });
        }
    }
    false
}

/// A cancellation may come when one sample has ended and another has not, so each has a reason of its own.
fn judge_sample(reason: FinishReason, tokens: &[u32], wanted: &[u32], manner: Manner) {
    match reason {
        FinishReason::Abort => assert!(matches!(manner, Manner::CancelsAfter(_))),
        FinishReason::Length => assert_eq!(tokens, wanted, "cut off"),
        FinishReason::Stop => {
            let text: String = wanted.iter().filter_map(|t| char::from_u32(*t)).collect();
            let ends = ["q", "xy"].iter().filter_map(|s| text.find(s).map(|at| at + s.len())).min();
            assert_eq!(Some(tokens.len()), ends, "stops at the stop string");
        }
        FinishReason::Error => panic!("an error without its cause"),
    }
}

/// One caller's share of the requests, up to eight at a time.
fn caller(engine: &Engine, seed: u64, tally: &Tally) -> Vec<u64> {
    let mut random = Random(seed);
    let mut failed = Vec::new();
    let mut done = 0;
    while done < REQUESTS / THREADS {
        let mut open = Vec::new();
        for _ in 0..1 + random.below(8) {
            let (prompt, params, manner) = request(&mut random);
            match engine.submit(Prompt::Tokens(prompt.clone()), &params) {
                Ok(stream) => {
                    count(&tally.submitted);
                    done += 1;
                    open.push((stream, prompt, params, manner));
                }
                Err(EngineError::QueueFull(_)) => count(&tally.refused),
                Err(e) => panic!("{e}"),
            }
        }
        for (stream, prompt, params, manner) in open {
            let id = stream.id();
            match read(stream, manner) {
                Some(out) if judge(&out, &prompt, &params, manner, tally) => failed.push(id),
                Some(_) => {}
                None => count(&tally.dropped),
            }
        }
    }
    failed
}

/// Resident memory of this process in bytes.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').nth(1).expect("resident").parse::<u64>().expect("pages") * 4096
}

#[test]
fn a_thousand_mixed_requests_end_once_each_and_leave_nothing() {
    for overlaps in [true, false] {
        println!("steps overlap: {overlaps}");
        soak(overlaps);
    }
}

fn soak(overlaps: bool) {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    println!("SEED={seed}");
    std::panic::set_hook(Box::new(|info| {
        if !info.payload_as_str().is_some_and(|s| s.starts_with("planted")) {
            eprintln!("{info}");
        }
    }));
    let faults =
        vec![Fault::Nan, Fault::Error, Fault::LatePanic, Fault::Infinite, Fault::Silent, Fault::LateError];
    let script = Arc::new(Script { every: Some((97, faults)), ..Script::default() });
    let engine = oracle::engine(Arc::clone(&script), LIMITS, true, overlaps);
    let tally = Tally::default();
    let mut memory = Vec::new();
    for round in 0..4 {
        let failed: Vec<u64> = std::thread::scope(|scope| {
            let callers = (0..THREADS).map(|c| {
                let (engine, tally) = (&engine, &tally);
                scope.spawn(move || caller(engine, seed * 1000 + round * THREADS + c, tally))
            });
            let callers: Vec<_> = callers.collect();
            callers.into_iter().flat_map(|c| c.join().expect("caller")).collect()
        });
        let stats = settled(&engine);
        assert_eq!(
            stats.requests_finished,
            tally.submitted.load(Ordering::SeqCst),
            "one end each: {stats:?}"
        );
        // Those that failed are those that were hit, and no other.
        let hit = script.hit.lock().expect("lock");
        assert!(failed.iter().all(|id| hit.contains(id)), "a request failed without a fault");
        memory.push(resident_bytes());
    }
    let stats = engine.stats();
    println!("{tally:?}\n{stats:?}\nresident MiB {:?}", memory.iter().map(|b| b >> 20).collect::<Vec<_>>());
    assert!(tally.submitted.load(Ordering::SeqCst) >= 4 * REQUESTS);
    for counter in
        [&tally.whole, &tally.stopped, &tally.aborted, &tally.timed_out, &tally.failed, &tally.dropped]
    {
        assert!(counter.load(Ordering::SeqCst) > 10, "each kind of end occurs: {tally:?}");
    }
    assert!(stats.preemptions > 0 && stats.evictions > 0 && stats.cached_prompt_tokens > 0, "{stats:?}");
    let grown = memory[3].saturating_sub(memory[1]);
    assert!(grown < 4 << 20, "memory grew by {grown} bytes in 2,000 requests: {memory:?}");
    if let Ok(path) = std::env::var("OCTAVO_SOAK_RESULT") {
        write_result(&path, seed, &tally, &stats, &memory);
    }
}

/// Writes a run that kept every promise, as JSON.
fn write_result(path: &str, seed: u64, tally: &Tally, stats: &EngineStats, memory: &[u64]) {
    let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let result = json!({
        "date": std::env::var("OCTAVO_SOAK_DATE").unwrap_or_default(),
        "command": "OCTAVO_SOAK_RESULT=../../benches/results/soak.json cargo test -p octavo-engine --test soak",
        "seed": seed,
        "threads": THREADS,
        "requests": of(&tally.submitted),
        "terminal_events": stats.requests_finished,
        "ends": {
            "whole": of(&tally.whole),
            "stop_string": of(&tally.stopped),
            "cancelled": of(&tally.aborted),
            "timed_out": of(&tally.timed_out),
            "failed": of(&tally.failed),
            "reader_left": of(&tally.dropped),
        },
        "refused_by_the_full_queue": of(&tally.refused),
        "steps": stats.steps,
        "failed_steps": stats.failed_steps,
        "preemptions": stats.preemptions,
        "evictions": stats.evictions,
        "cached_prompt_tokens": stats.cached_prompt_tokens,
        "blocks": {
            "total": stats.blocks_total,
            "free": stats.blocks_free,
            "cached_and_unreferenced": stats.blocks_cached,
            "live": stats.blocks_live,
        },
        "resident_bytes_after_each_round": memory,
    });
    let text = serde_json::to_string_pretty(&result).expect("json") + "\n";
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
}
