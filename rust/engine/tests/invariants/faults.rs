//! Faults of the executor, at every step of a workload: those who were in the step fail with a typed error, all others give
//! the tokens they would have given, and no block stays held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octavo_engine::{Engine, FinishReason, Health, Limits, Prompt, RequestStream, SamplingParams};

use crate::gather::{Gathered, gather, settled};
use crate::oracle::{Fault, Script, continuation, engine};

/// Small enough that sequences are preempted.
pub const LIMITS: Limits = Limits {
    max_model_len: 64,
    max_num_seqs: 6,
    max_num_batched_tokens: 16,
    max_queue: 64,
    block_size: 4,
    num_blocks: 20,
    max_loras: 8,
    max_lora_rank: 256,
    max_lora_memory: 1 << 20,
};

pub fn prompt(i: usize) -> Vec<u32> {
    // Some share a prefix.
    let stem = (0..(i % 3) * 6).map(|t| 1 + t as u32);
    stem.chain([200 - i as u32, 30 + i as u32]).collect()
}

pub fn params(i: usize) -> SamplingParams {
    SamplingParams {
        n: 1 + (i % 4 == 1) as u32,
        temperature: Some(0.0),
        max_tokens: Some(4 + (i % 5) as u32 * 6),
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

pub fn submit(engine: &Engine, i: usize) -> RequestStream {
    engine.submit(Prompt::Tokens(prompt(i)), &params(i)).expect("submitted")
}

pub fn assert_whole(out: &Gathered, i: usize) {
    let wanted = continuation(&prompt(i), params(i).max_tokens.expect("max") as usize);
    assert_eq!(out.error, None, "request {i}");
    for tokens in &out.tokens {
        assert_eq!(tokens, &wanted, "request {i}");
    }
    assert!(out.reasons.iter().all(|r| r == &[FinishReason::Length]), "request {i}: {:?}", out.reasons);
}

/// Runs 12 requests with one fault at `step`. Returns whether the fault happened.
fn run(step: u64, fault: Fault, prefix_caching: bool, overlaps: bool) -> bool {
    let script = Script::at(step, fault);
    let engine = engine(Arc::clone(&script), LIMITS, prefix_caching, overlaps);
    let streams: Vec<_> = (0..12).map(|i| submit(&engine, i)).collect();
    let outputs: Vec<_> = streams.iter().enumerate().map(|(i, s)| gather(s, params(i).n as usize)).collect();
    let hit = script.hit.lock().expect("lock").clone();
    for (i, out) in outputs.iter().enumerate() {
        if hit.contains(&streams[i].id()) {
            assert_eq!(out.error, Some("ExecutionError"), "request {i}, {fault:?} at step {step}");
            assert!(out.any_ended(FinishReason::Error), "request {i}");
            let wanted = continuation(&prompt(i), 40);
            assert!(out.tokens.iter().all(|t| wanted.starts_with(t)), "what came before the fault is right");
        } else {
            assert_whole(out, i);
        }
    }
    // The same engine goes on as if nothing had been.
    for i in 0..4 {
        assert_whole(&gather(&submit(&engine, i), params(i).n as usize), i);
    }
    assert_eq!(settled(&engine).requests_finished, 16, "one end for each request");
    assert_eq!(engine.health(Duration::from_secs(60)), Health::Ready);
    let happened = script.happened.lock().expect("lock");
    !happened.is_empty()
}

/// Every fault at every step of the workload.
#[test]
fn every_fault_at_every_step_stays_with_its_requests() {
    let faults = [
        Fault::Error,
        Fault::LateError,
        Fault::Panic,
        Fault::LatePanic,
        Fault::Nan,
        Fault::Infinite,
        Fault::Silent,
    ];
    // Hundreds of planted panics would drown the output of a test that fails.
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload_as_str().is_some_and(|s| s.starts_with("planted")) {
            loud(info);
        }
    }));
    for fault in faults {
        let mut happened = 0;
        for (step, overlaps) in (1..=24).flat_map(|step| [(step, false), (step, true)]) {
            happened += u32::from(run(step, fault, step % 2 == 0, overlaps));
        }
        assert!(happened >= 40, "{fault:?} happened in {happened} of 48 runs");
    }
}

#[test]
fn without_a_fault_everything_is_whole_though_sequences_are_preempted() {
    for overlaps in [false, true] {
        let engine = engine(Arc::default(), LIMITS, true, overlaps);
        let streams: Vec<_> = (0..40).map(|i| submit(&engine, i)).collect();
        for (i, stream) in streams.iter().enumerate() {
            assert_whole(&gather(stream, params(i).n as usize), i);
        }
        let stats = settled(&engine);
        assert!(stats.preemptions > 0, "the pool is small enough: {stats:?}");
        assert_eq!((stats.requests_finished, stats.failed_steps), (40, 0));
    }
}

#[test]
fn a_stalled_step_turns_health_red_and_back() {
    let script = Script::at(3, Fault::Stall);
    let engine = engine(Arc::clone(&script), LIMITS, true, false);
    let limit = Duration::from_millis(100);
    std::thread::sleep(2 * limit);
    assert_eq!(engine.health(limit), Health::Ready, "idle for long is not stalled");
    let stream = submit(&engine, 0);
    let begin = Instant::now();
    let seconds = loop {
        match engine.health(limit) {
            Health::Stalled { seconds } => break seconds,
            Health::Ready => std::thread::sleep(Duration::from_millis(5)),
            Health::Dead(cause) => panic!("{cause}"),
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "the stall is not seen");
    };
    assert!(seconds > 0.1, "{seconds}");
    // While it stalls, callers are not blocked: they queue, cancel and ask.
    let other = submit(&engine, 1);
    other.cancel();
    assert!(engine.stats().steps >= 2 && stream.poll().is_some());
    script.release();
    assert!(gather(&other, 2).reasons.iter().all(|r| r == &[FinishReason::Abort]));
    let rest = continuation(&prompt(0), 4);
    let out = gather(&stream, 1);
    assert!(rest.ends_with(&out.tokens[0]) && out.error.is_none());
    settled(&engine);
    std::thread::sleep(2 * limit);
    assert_eq!(engine.health(limit), Health::Ready, "idle again is not stalled");
}

/// A step that hangs for a while, at each moment of the workload: who cancels meanwhile is out, all others are whole.
#[test]
fn a_stall_at_any_step_changes_no_answer() {
    let mut stalled = 0;
    for (step, overlaps) in (1..=24).flat_map(|step| [(step, false), (step, true)]) {
        let script = Script::at(step, Fault::Stall);
        let engine = engine(Arc::clone(&script), LIMITS, step % 2 == 0, overlaps);
        let streams: Vec<_> = (0..12).map(|i| submit(&engine, i)).collect();
        let begin = Instant::now();
        let done = || engine.stats().requests_finished == 12;
        while script.happened.lock().expect("lock").is_empty() && !done() {
            assert!(begin.elapsed() < Duration::from_secs(120), "step {step} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
        stalled += u32::from(!done());
        let cancelled = step as usize % 12;
        streams[cancelled].cancel();
        script.release();
        for (i, stream) in streams.iter().enumerate() {
            let out = gather(stream, params(i).n as usize);
            // Of two samples one may have ended before.
            if i == cancelled && out.any_ended(FinishReason::Abort) {
                let wanted = continuation(&prompt(i), 40);
                assert!(out.error.is_none() && out.tokens.iter().all(|t| wanted.starts_with(t)));
            } else {
                assert_whole(&out, i);
            }
        }
        assert_eq!(settled(&engine).requests_finished, 12, "one end for each request");
    }
    assert!(stalled >= 40, "{stalled} of 48 runs stalled");
}

#[test]
fn a_dead_executor_ends_every_request_and_health_says_so() {
    for (step, overlaps) in (1..12).flat_map(|step| [(step, false), (step, true)]) {
        let script = Script::at(step, Fault::Dead);
        let engine = engine(script, LIMITS, true, overlaps);
        let mut streams = Vec::new();
        for i in 0..12 {
            // Requests after the death are refused.
            match engine.submit(Prompt::Tokens(prompt(i)), &params(i)) {
                Ok(stream) => streams.push((i, stream)),
                Err(e) => assert_eq!(e.class_name(), "EngineDeadError"),
            }
        }
        let mut failed = 0;
        for (i, stream) in &streams {
            let mut out = Gathered::default();
            while let Some(delta) = stream.next(Duration::from_secs(120)) {
                out.add(&delta);
            }
            assert!(stream.is_done(), "request {i} hangs");
            match out.error {
                None => assert_whole(&out, *i),
                Some(class) => {
                    assert!(["ExecutionError", "EngineDeadError"].contains(&class), "{class}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0);
        assert!(matches!(engine.health(Duration::from_secs(60)), Health::Dead(_)));
        assert_eq!(engine.queued(), 0);
    }
}

#[test]
fn closing_while_others_submit_ends_each_request_once() {
    for round in 0..20 {
        let engine = Arc::new(engine(Arc::default(), LIMITS, true, round % 2 == 0));
        let callers: Vec<_> = (0..3)
            .map(|c| {
                let engine = Arc::clone(&engine);
                std::thread::spawn(move || {
                    for i in (c..40).cycle() {
                        match engine.submit(Prompt::Tokens(prompt(i)), &params(i)) {
                            Ok(stream) => {
                                while stream.next(Duration::from_secs(120)).is_some() {}
                                assert!(stream.is_done(), "a request hangs over the close");
                            }
                            Err(e) if e.class_name() == "QueueFullError" => {}
                            Err(e) => {
                                assert_eq!(e.class_name(), "EngineDeadError");
                                return;
                            }
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(round % 5));
        engine.close();
        for caller in callers {
            caller.join().expect("caller");
        }
        assert_eq!(engine.queued(), 0);
    }
}
