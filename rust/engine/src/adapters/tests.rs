//! The life cycle of adapters over a device of tests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::adapters::mock::{NONE, answer, expected, mock_engine, with};
use crate::*;

const LONG: &str = "a prompt of some blocks";

fn submit(engine: &Engine, prompt: &str, params: &SamplingParams) -> RequestStream {
    engine.submit(Prompt::Text(prompt.into(), true), params).expect("submitted")
}

/// Waits until `done`, as the loader thread works beside the test.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} never happens");
}

#[test]
fn a_batch_of_different_adapters_gives_each_request_its_own() {
    // Two blocks a sequence are too few: sequences are preempted.
    for num_blocks in [256, 24] {
        let (engine, seen, folders) = mock_engine(|l| {
            (l.max_num_batched_tokens, l.num_blocks, l.max_model_len) = (11, num_blocks, 64);
        });
        for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
            engine.load_adapter(name, &folders.write(name, number, 100), None).expect("loaded");
        }
        let names = [("a", 1), ("", NONE), ("b", 2), ("c", 3), ("b@1", 2), ("a", 1)];
        let params = |name: &str| SamplingParams { n: 2, ..with(name, 9) };
        let streams: Vec<_> = names.iter().map(|(name, _)| submit(&engine, LONG, &params(name))).collect();
        for (stream, (name, number)) in streams.iter().zip(names) {
            let texts = answer(stream).texts;
            assert_eq!(texts, vec![expected(LONG, number, 9); 2], "{name} {num_blocks}");
        }
        assert!(seen.most.load(Ordering::SeqCst) >= 2, "adapters ran side by side");
        assert_eq!(seen.packs.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn other_weights_under_a_name_find_no_block_of_the_old_ones() {
    let (engine, _, folders) = mock_engine(|_| {});
    let first = engine.load_adapter("a", &folders.write("a", 1, 100), None).expect("loaded");
    assert_eq!((first.generation, first.rank, first.bytes), (1, 8, 100));
    let run = |name: &str| answer(&submit(&engine, LONG, &with(name, 6)));
    assert_eq!((run("a").cached, run("a").cached), (0, 20), "the cache is filled, and used");
    let second = engine.load_adapter("a", &folders.write("a", 2, 100), Some(1)).expect("loaded");
    assert_eq!(second.generation, 2);
    let after = run("a");
    assert_eq!((after.cached, &after.texts[0]), (0, &expected(LONG, 2, 6)));
    // The same bytes share their blocks, whatever the name; so do the old ones when they come back.
    engine.load_adapter("b", &folders.write("b", 2, 100), None).expect("loaded");
    assert_eq!(run("b").cached, 20);
    assert_eq!(engine.load_adapter("a", &folders.write("a", 1, 100), None).expect("loaded").generation, 3);
    let back = run("a");
    assert_eq!((back.cached, &back.texts[0]), (20, &expected(LONG, 1, 6)));
    assert_eq!(run("").cached, 0, "the base model has blocks of its own");
}

#[test]
fn names_and_generations_are_checked() {
    let (engine, _, folders) = mock_engine(|_| {});
    let folder = folders.write("a", 1, 100);
    assert_eq!(engine.load_adapter("sql", &folder, Some(0)).expect("free").generation, 1);
    assert_eq!(engine.load_adapter("sql", &folder, Some(1)).expect("the same bytes").generation, 1);
    let error = |result: Result<LoadedAdapter, EngineError>| result.expect_err("refused");
    let conflict = error(engine.load_adapter("sql", &folder, Some(0)));
    assert!(matches!(&conflict, EngineError::AdapterConflict(text) if text.contains("generation 1")));
    for bad in ["", "a@1", "a+b", "a,b", " a", "a\n", &"x".repeat(257)] {
        let refused = error(engine.load_adapter(bad, &folder, None));
        assert!(matches!(refused, EngineError::InvalidRequest(_)), "{bad}");
    }
    let big = error(engine.load_adapter("big", &folders.write("big", 2, 1001), None)).to_string();
    assert!(big.contains("1001 bytes") && big.contains("max_lora_memory is 1000"), "{big}");
    let gone = error(engine.load_adapter("gone", std::path::Path::new("/nowhere"), None));
    assert!(matches!(gone, EngineError::ModelNotFound(_)));
    let refused = |name: &str| {
        engine.submit(Prompt::Text("x".into(), true), &with(name, 1)).err().expect("refused").to_string()
    };
    assert!(refused("sqll").contains("loaded are \"sql\""));
    assert!(refused("sql@2").contains("generation 1, not 2"));
    assert!(refused("sql@x").contains("a number from 1 on"));
    engine.unload_adapter("sql").expect("unloaded");
    assert!(refused("sql").contains("none is loaded"));
    assert!(matches!(engine.unload_adapter("sql"), Err(EngineError::AdapterNotFound(_))));
    // Its generations go on.
    assert_eq!(engine.load_adapter("sql", &folders.write("a", 3, 100), Some(0)).expect("free").generation, 2);
    assert_eq!(engine.adapters().expect("alive").len(), 1);
}

#[test]
fn a_device_without_adapters_refuses_them_by_name() {
    let (engine, _, folders) = mock_engine(|l| l.max_lora_rank = 7);
    let rank = engine.load_adapter("a", &folders.write("a", 1, 100), None).expect_err("refused").to_string();
    assert!(rank.contains("rank 8 and max_lora_rank is 7"), "{rank}");
}

#[test]
fn the_least_recently_used_adapter_goes() {
    let (engine, seen, folders) = mock_engine(|_| {});
    for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
        engine.load_adapter(name, &folders.write(name, number, 400), None).expect("loaded");
    }
    assert_eq!((engine.adapter_stats().registered, engine.adapter_stats().resident), (3, 0));
    let run = |name: &str, number| {
        assert_eq!(answer(&submit(&engine, LONG, &with(name, 3))).texts[0], expected(LONG, number, 3));
        eventually("the pin ends", || engine.adapter_stats().running.is_empty());
    };
    run("a", 1);
    run("b", 2);
    run("a", 1);
    assert_eq!((seen.packs.load(Ordering::SeqCst), engine.adapter_stats().resident_bytes), (2, 800));
    run("c", 3);
    assert_eq!((seen.packs.load(Ordering::SeqCst), seen.alive.load(Ordering::SeqCst)), (3, 2));
    run("a", 1);
    assert_eq!(seen.packs.load(Ordering::SeqCst), 3, "b went, which was used before a");
    run("b", 2);
    assert_eq!(seen.packs.load(Ordering::SeqCst), 4);
}

#[test]
fn a_request_whose_adapter_does_not_fit_waits() {
    let (engine, seen, folders) = mock_engine(|l| l.max_queue = 2);
    for (name, number) in [("a", 1), ("b", 2)] {
        engine.load_adapter(name, &folders.write(name, number, 600), None).expect("loaded");
    }
    let gate = seen.step_gate.lock().expect("the gate");
    let first = submit(&engine, LONG, &with("a", 5));
    eventually("a runs", || engine.adapter_stats().running == ["a"]);
    let second = submit(&engine, LONG, &with("b", 5));
    let third = submit(&engine, LONG, &with("b", 5));
    assert_eq!(engine.adapter_stats().waiting, ["b"]);
    let full = engine.submit(Prompt::Text("x".into(), true), &with("", 1)).err().expect("two wait");
    assert!(matches!(full, EngineError::QueueFull(_)));
    third.cancel();
    drop(gate);
    assert_eq!(answer(&first).texts[0], expected(LONG, 1, 5));
    assert_eq!(answer(&second).texts[0], expected(LONG, 2, 5));
    assert_eq!(answer(&third).reason, Some(FinishReason::Abort));
    let stats = engine.adapter_stats();
    assert_eq!((stats.resident_bytes, stats.waiting), (600, vec![]));
}

#[test]
fn a_request_that_waits_for_its_adapter_ends_by_cancel_timeout_and_close() {
    let (engine, seen, folders) = mock_engine(|_| {});
    engine.load_adapter("a", &folders.write("a", 1, 600), None).expect("loaded");
    let gate = seen.pack_gate.lock().expect("the gate");
    let cancelled = submit(&engine, LONG, &with("a", 5));
    cancelled.cancel();
    assert_eq!(answer(&cancelled).reason, Some(FinishReason::Abort));
    let late = submit(&engine, LONG, &SamplingParams { timeout: Some(0.01), ..with("a", 5) });
    assert!(matches!(answer(&late).error, Some(EngineError::Timeout(_))));
    // Others run meanwhile.
    assert_eq!(answer(&submit(&engine, LONG, &with("", 5))).texts[0], expected(LONG, NONE, 5));
    let waits = submit(&engine, LONG, &with("a", 5));
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| engine.close());
        assert_eq!(answer(&waits).reason, Some(FinishReason::Abort));
        drop(gate);
        closing.join().expect("closed");
    });
    assert_eq!(seen.alive.load(Ordering::SeqCst), 0, "closing frees the adapters");
}

#[test]
fn what_cannot_be_packed_fails_its_requests_alone() {
    let (engine, _, folders) = mock_engine(|_| {});
    engine.load_adapter("panics", &folders.write("panics", 13, 100), None).expect("loaded");
    engine.load_adapter("changes", &folders.write("changes", 4, 100), None).expect("loaded");
    folders.write("changes", 5, 100);
    let error = |name: &str| answer(&submit(&engine, LONG, &with(name, 2))).error.expect("fails");
    let panic = error("panics");
    assert!(
        matches!(&panic, EngineError::Execution(text) if text.contains("\"panics\"") && text.contains("planted"))
    );
    let changed = error("changes");
    assert!(
        matches!(&changed, EngineError::CorruptModel(text) if text.contains("changes changed after")),
        "{changed}"
    );
    assert_eq!(engine.adapter_stats().resident_bytes, 0);
    engine.load_adapter("changes", &folders.write("changes", 5, 100), None).expect("loaded again");
    assert_eq!(answer(&submit(&engine, LONG, &with("changes", 2))).texts[0], expected(LONG, 5, 2));
}

#[test]
fn running_requests_keep_an_adapter_that_is_replaced_or_unloaded() {
    let (engine, seen, folders) = mock_engine(|_| {});
    engine.load_adapter("a", &folders.write("a", 1, 100), None).expect("loaded");
    let gate = seen.step_gate.lock().expect("the gate");
    let old = submit(&engine, LONG, &with("a", 20));
    eventually("it runs", || engine.adapter_stats().running == ["a"]);
    engine.load_adapter("a", &folders.write("a", 2, 100), None).expect("loaded");
    let new = submit(&engine, LONG, &with("a", 20));
    engine.unload_adapter("a").expect("unloaded");
    drop(gate);
    assert_eq!(answer(&old).texts[0], expected(LONG, 1, 20));
    assert_eq!(answer(&new).texts[0], expected(LONG, 2, 20));
    eventually("the memory goes", || seen.alive.load(Ordering::SeqCst) == 0);
    assert_eq!(engine.adapter_stats().resident_bytes, 0);
}

#[test]
fn at_most_max_loras_adapters_run_at_once() {
    let (engine, seen, folders) = mock_engine(|l| l.max_loras = 2);
    let names: Vec<String> = (1..=5).map(|i| format!("a{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        engine.load_adapter(name, &folders.write(name, i as u64 + 1, 100), None).expect("loaded");
    }
    let all = names.iter().cycle().take(15);
    let streams: Vec<_> = all.map(|name| submit(&engine, LONG, &with(name, 4))).collect();
    for (i, stream) in streams.iter().enumerate() {
        assert_eq!(answer(stream).texts[0], expected(LONG, (i % 5) as u64 + 1, 4));
    }
    assert_eq!(seen.most.load(Ordering::SeqCst), 2);
}

#[test]
fn an_embedding_takes_an_adapter() {
    let (engine, _, folders) = mock_engine(|_| {});
    engine.load_adapter("a", &folders.write("a", 7, 100), None).expect("loaded");
    let params = |lora: Option<&str>| PoolingParams {
        pooling: Pooling::Last,
        lora: lora.map(Into::into),
        ..PoolingParams::default()
    };
    let embed = |lora| {
        let stream = engine.embed(Prompt::Text(LONG.into(), true), &params(lora)).expect("submitted");
        answer(&stream).embedding.expect("an embedding")
    };
    assert_eq!((embed(Some("a"))[1], embed(None)[1]), (7.0, 0.0));
    let unknown = engine.embed(Prompt::Text(LONG.into(), true), &params(Some("b"))).err();
    assert!(matches!(unknown, Some(EngineError::AdapterNotFound(_))));
}
