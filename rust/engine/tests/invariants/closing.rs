//! The engine closes, or drains, at every step of a workload: each request ends once, nobody hangs, and what was said is right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octavo_engine::{Engine, FinishReason, Health, Prompt, RequestStream};

use crate::faults::{LIMITS, assert_whole, params, prompt, submit};
use crate::gather::gather;
use crate::oracle::{Fault, Script, continuation, engine};

const STEPS: std::ops::RangeInclusive<u64> = 1..=24;
const REQUESTS: usize = 12;
const LONG: Duration = Duration::from_secs(120);

/// Submits the workload and waits until the engine stands in `step`. None: it had no such step.
fn stand_in(step: u64, script: &Arc<Script>, engine: &Engine) -> Option<Vec<RequestStream>> {
    let streams = (0..REQUESTS).map(|i| submit(engine, i)).collect();
    let begin = Instant::now();
    while script.happened.lock().expect("lock").is_empty() {
        if engine.stats().requests_finished == REQUESTS as u64 {
            return None;
        }
        assert!(begin.elapsed() < LONG, "step {step} does not come");
        std::thread::sleep(Duration::from_micros(100));
    }
    Some(streams)
}

/// Waits until another thread has told the engine to close.
fn until_closing(engine: &Engine) {
    let begin = Instant::now();
    while !engine.is_closing() {
        assert!(begin.elapsed() < LONG, "the engine is not told to close");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Every end of a request that may come when the engine closes. Returns whether it was cut off.
fn aborted(stream: &RequestStream, i: usize) -> bool {
    let out = gather(stream, params(i).n as usize);
    assert_eq!(out.error, None, "closing is the caller's wish, not a failure");
    let wanted = continuation(&prompt(i), params(i).max_tokens.expect("max") as usize);
    let mut cut = false;
    for (tokens, reasons) in out.tokens.iter().zip(&out.reasons) {
        match reasons[0] {
            FinishReason::Length => assert_eq!(*tokens, wanted, "request {i}"),
            FinishReason::Abort => {
                assert!(wanted.starts_with(tokens), "what came before the end is right");
                cut = true;
            }
            other => panic!("request {i}: {other:?}"),
        }
    }
    cut
}

/// After the end: nothing is queued, health says so, and a new request is told at once.
fn assert_closed(engine: &Engine) {
    assert_eq!(engine.queued(), 0);
    assert!(matches!(engine.health(Duration::from_secs(60)), Health::Dead(_)));
    let refused = engine.submit(Prompt::Tokens(prompt(0)), &params(0)).err().expect("closed");
    assert_eq!(refused.class_name(), "EngineDeadError");
    engine.close();
    assert!(engine.drain(LONG), "nothing is left to wait for");
}

#[test]
fn closed_at_each_step() {
    let mut cut_off = 0;
    for (step, overlaps) in STEPS.flat_map(|step| [(step, false), (step, true)]) {
        let script = Script::at(step, Fault::Stall);
        let engine = engine(Arc::clone(&script), LIMITS, step % 2 == 0, overlaps);
        let Some(streams) = stand_in(step, &script, &engine) else { continue };
        std::thread::scope(|scope| {
            // It joins the engine thread, which stands in the step.
            let closer = scope.spawn(|| engine.close());
            until_closing(&engine);
            script.release();
            closer.join().expect("closed");
        });
        let aborted = streams.iter().enumerate().filter(|(i, stream)| aborted(stream, *i)).count();
        cut_off += u32::from(aborted > 0);
        assert_closed(&engine);
    }
    assert!(cut_off >= 40, "{cut_off} of 48 runs were cut off");
}

#[test]
fn drained_at_each_step() {
    let mut drained = 0;
    for (step, overlaps) in STEPS.flat_map(|step| [(step, false), (step, true)]) {
        let script = Script::at(step, Fault::Stall);
        let engine = engine(Arc::clone(&script), LIMITS, step % 2 == 0, overlaps);
        let Some(mut streams) = stand_in(step, &script, &engine) else { continue };
        std::thread::scope(|scope| {
            let drainer = scope.spawn(|| engine.drain(LONG));
            // Requests are taken until the drain has begun: they, too, are served.
            let refused = loop {
                match engine.submit(Prompt::Tokens(prompt(streams.len())), &params(streams.len())) {
                    Ok(stream) => streams.push(stream),
                    Err(e) => break e,
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert_eq!(refused.class_name(), "EngineDeadError");
            script.release();
            assert!(drainer.join().expect("drained"), "what was taken has ended by itself");
        });
        for (i, stream) in streams.iter().enumerate() {
            let out = gather(stream, params(i).n as usize);
            // The last one may have been on its way while the drain began: then it is refused like those after it.
            if i + 1 < streams.len() || out.error != Some("EngineDeadError") {
                assert_whole(&out, i);
            }
        }
        assert_closed(&engine);
        drained += 1;
    }
    assert!(drained >= 40, "{drained} of 48 runs were drained");
}

#[test]
fn a_drain_that_takes_too_long_closes() {
    let script = Script::at(3, Fault::Stall);
    let engine = engine(Arc::clone(&script), LIMITS, true, false);
    let streams = stand_in(3, &script, &engine).expect("a third step");
    std::thread::scope(|scope| {
        let drainer = scope.spawn(|| engine.drain(Duration::from_millis(5)));
        until_closing(&engine);
        script.release();
        assert!(!drainer.join().expect("closed"), "the limit passed");
    });
    assert!(streams.iter().enumerate().any(|(i, stream)| aborted(stream, i)));
    assert_closed(&engine);
}
