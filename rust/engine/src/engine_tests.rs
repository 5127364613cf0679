//! The engine over a scripted executor: outputs, faults, cancellation, deadlines, the queue, the end.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::executor::ROWS_PER_READ;
use crate::test_engine::{VOCAB, engine_over, executor_info};
use crate::*;

/// What the executor does wrong, and at which step (counted from 1).
#[derive(Clone, Copy)]
enum Fault {
    None,
    Error(u64),
    Panic(u64),
    Dead(u64),
    /// NaN logits for the sequence whose chunk ends with this token.
    NanAfter(u32),
}

/// The next token of every sequence is its last one plus 1: "a" continues "bcd...".
struct Alphabet {
    fault: Fault,
    step: u64,
    pause: Duration,
    steps_seen: Arc<AtomicU64>,
    /// Logits of the rows of the last step that succeeded.
    rows: Vec<Vec<f32>>,
    /// A call for each sequence of that step; a fault leaves them as they are.
    reports: Vec<Report>,
}

impl Executor for Alphabet {
    fn info(&self) -> ExecutorInfo {
        executor_info()
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        self.step += 1;
        self.steps_seen.store(self.step, Ordering::SeqCst);
        std::thread::sleep(self.pause);
        match self.fault {
            Fault::Error(at) if at == self.step => return Err(StepError::Step("planted error".into())),
            Fault::Dead(at) if at == self.step => return Err(StepError::Dead("planted death".into())),
            Fault::Panic(at) if at == self.step => panic!("planted panic"),
            _ => {}
        }
        let plan = &step.plan;
        let logits = |(i, row): (usize, u32)| {
            let token = plan.tokens[(plan.seqs[i].query_start + row) as usize];
            let mut logits = vec![0.0f32; VOCAB];
            logits[(token as usize + 1) % 256] = 20.0;
            if matches!(self.fault, Fault::NanAfter(t) if t == token) {
                logits[3] = f32::NAN;
            }
            logits
        };
        self.rows = step.rows().map(logits).collect();
        self.reports = vec![Report::from_iter([("calls", 1.0)]); plan.seqs.len()];
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, StepError> {
        Ok(StepOutput { sampled: Vec::new(), reports: self.reports.clone() })
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        assert!(rows.len() <= ROWS_PER_READ, "{rows:?} at once");
        *out = self.rows[rows].concat();
        Ok(())
    }
}

fn engine_with(fault: Fault, pause_ms: u64, change: impl FnOnce(&mut Limits)) -> (Engine, Arc<AtomicU64>) {
    let steps_seen = Arc::new(AtomicU64::new(0));
    let executor = Alphabet {
        fault,
        step: 0,
        pause: Duration::from_millis(pause_ms),
        steps_seen: Arc::clone(&steps_seen),
        rows: Vec::new(),
        reports: Vec::new(),
    };
    (engine_over(executor, change), steps_seen)
}

fn engine(fault: Fault) -> Engine {
    engine_with(fault, 0, |_| {}).0
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { temperature: Some(0.0), max_tokens: Some(max_tokens), ..SamplingParams::default() }
}

fn submit(engine: &Engine, text: &str, params: &SamplingParams) -> RequestStream {
    engine.submit(Prompt::Text(text.into(), true), params).expect("submitted")
}

struct Gathered {
    text: String,
    tokens: Vec<u32>,
    reason: Option<FinishReason>,
    stop: Option<StopReason>,
    last: Delta,
}

/// Reads a stream to its end; fails if that takes too long.
fn gather(stream: &RequestStream) -> Gathered {
    let mut out = Gathered {
        text: String::new(),
        tokens: Vec::new(),
        reason: None,
        stop: None,
        last: Delta::default(),
    };
    loop {
        let delta = stream.next(Duration::from_secs(120)).expect("the request hangs");
        for news in &delta.outputs {
            out.text.push_str(&news.text);
            out.tokens.extend(&news.token_ids);
            out.reason = news.finish_reason.or(out.reason);
            out.stop = news.stop_reason.clone().or(out.stop);
        }
        if delta.finished {
            out.last = delta;
            return out;
        }
    }
}

/// Waits until every block is free or cached and nothing runs.
fn settled(engine: &Engine) -> EngineStats {
    let begin = Instant::now();
    loop {
        let s = engine.stats();
        if s.requests_running + s.requests_waiting + s.blocks_live == 0 && engine.queued() == 0 {
            assert_eq!(s.blocks_free + s.blocks_cached, s.blocks_total);
            return s;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "blocks leak: {s:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn error_class(out: &Gathered) -> &'static str {
    out.last.error.as_ref().map_or("none", EngineError::class_name)
}

#[test]
fn text_streams_and_ends_by_length_stop_string_stop_token_and_eos() {
    let engine = engine(Fault::None);
    let out = gather(&submit(&engine, "a", &greedy(3)));
    assert_eq!((out.text.as_str(), out.reason), ("bcd", Some(FinishReason::Length)));
    let metrics = out.last.metrics.expect("metrics");
    assert_eq!((metrics.prompt_tokens, metrics.generated_tokens), (1, 3));

    let stop = SamplingParams { stop: vec!["fg".into()], ..greedy(50) };
    let out = gather(&submit(&engine, "a", &stop));
    assert_eq!((out.text.as_str(), out.reason), ("bcde", Some(FinishReason::Stop)));
    assert_eq!(out.stop, Some(StopReason::Text("fg".into())));

    let stop = SamplingParams { stop_token_ids: vec![u32::from(b'e')], ..greedy(50) };
    let out = gather(&submit(&engine, "a", &stop));
    assert_eq!((out.text.as_str(), out.tokens.len()), ("bcd", 4));
    assert_eq!(out.stop, Some(StopReason::Token(u32::from(b'e'))));

    let eos = SamplingParams { logit_bias: vec![(256, 100.0)], ..greedy(50) };
    let out = gather(&submit(&engine, "a", &eos));
    assert_eq!((out.text.as_str(), out.reason, out.stop), ("", Some(FinishReason::Stop), None));
    let late = SamplingParams { min_tokens: 4, ..eos };
    assert_eq!(gather(&submit(&engine, "a", &late)).text, "bcde");
    settled(&engine);
}

#[test]
fn samples_of_one_prompt_share_it_and_logprobs_add_up() {
    let engine = engine(Fault::None);
    let params = SamplingParams { n: 3, logprobs: Some(2), prompt_logprobs: Some(1), ..greedy(5) };
    let stream = submit(&engine, "hello", &params);
    let (mut texts, mut prompt_rows, mut sums) = (vec![String::new(); 3], None, vec![0.0; 3]);
    loop {
        let delta = stream.next(Duration::from_secs(120)).expect("delta");
        prompt_rows = delta.prompt_logprobs.clone().or(prompt_rows);
        for o in &delta.outputs {
            texts[o.index as usize].push_str(&o.text);
            for row in o.logprobs.iter().flatten() {
                assert_eq!((row.len(), row[0].rank, row[0].token_id), (3, 1, row[1].token_id));
                sums[o.index as usize] += f64::from(row[0].logprob);
            }
            if let Some(sum) = o.cumulative_logprob {
                assert!((sum - sums[o.index as usize]).abs() < 1e-5);
            }
        }
        if delta.finished {
            break;
        }
    }
    assert_eq!(texts, ["pqrst"; 3]);
    let rows = prompt_rows.expect("prompt logprobs");
    assert_eq!(rows.len(), 5);
    assert!(rows[0].is_none() && rows[1..].iter().all(|r| r.as_ref().is_some_and(|r| r.len() == 2)));
    assert_eq!(rows[1].as_ref().expect("row")[0].token.text(), "e");
    settled(&engine);
}

#[test]
fn prompt_logprobs_of_a_long_prompt_are_read_a_few_rows_at_a_time() {
    let (engine, _) = engine_with(Fault::None, 0, |limits| limits.max_num_batched_tokens = 128);
    let params = SamplingParams { prompt_logprobs: Some(1), ..greedy(1) };
    let out = gather(&submit(&engine, &"a".repeat(100), &params));
    assert_eq!((out.last.error, out.text.as_str()), (None, "b"));
}

#[test]
fn a_failed_step_ends_its_requests_and_the_engine_goes_on() {
    for fault in [Fault::Error(2), Fault::Panic(2)] {
        let engine = engine(fault);
        let out = gather(&submit(&engine, "a", &greedy(9)));
        assert_eq!((error_class(&out), out.reason), ("ExecutionError", Some(FinishReason::Error)));
        assert!(out.last.error.expect("error").to_string().contains("planted"));
        assert_eq!(gather(&submit(&engine, "x", &greedy(2))).text, "yz");
        assert_eq!(settled(&engine).failed_steps, 1);
    }
}

#[test]
fn reports_come_from_steps_that_ran_and_not_from_failed_ones() {
    for fault in [Fault::Error(3), Fault::Panic(3)] {
        let engine = engine(fault);
        let out = gather(&submit(&engine, "a", &greedy(9)));
        assert_eq!(out.tokens.len(), 2);
        let of_request = |out: &Gathered| out.last.metrics.as_ref()?.report.as_ref()?.get("calls");
        assert_eq!(of_request(&out), Some(2.0), "the third step has no report of its own");
        assert_eq!(engine.report().get("calls"), Some(2.0));
        assert_eq!(of_request(&gather(&submit(&engine, "x", &greedy(4)))), Some(4.0));
        let stats = settled(&engine);
        assert_eq!(engine.report().get("calls"), Some(6.0));
        assert_eq!((stats.steps, stats.failed_steps), (7, 1));
    }
}

#[test]
fn logits_that_are_not_numbers_end_that_request_alone() {
    let engine = engine(Fault::NanAfter(u32::from(b'm')));
    let bad = submit(&engine, "k", &greedy(9));
    let good = submit(&engine, "a", &greedy(9));
    assert_eq!(error_class(&gather(&bad)), "ExecutionError");
    assert_eq!(gather(&good).text, "bcdefghij");
    settled(&engine);
}

#[test]
fn a_dead_executor_fails_everything_at_once_and_says_so() {
    let (engine, _) = engine_with(Fault::Dead(3), 1, |_| {});
    let streams: Vec<_> = (0..12).map(|_| submit(&engine, "a", &greedy(40))).collect();
    for stream in &streams {
        let out = gather(stream);
        assert!(["ExecutionError", "EngineDeadError"].contains(&error_class(&out)), "{:?}", out.last.error);
    }
    let begin = Instant::now();
    let refused = loop {
        match engine.submit(Prompt::Tokens(vec![1]), &greedy(1)) {
            Err(e) => break e,
            Ok(stream) => assert_eq!(error_class(&gather(&stream)), "EngineDeadError"),
        }
        assert!(begin.elapsed() < Duration::from_secs(120));
    };
    assert_eq!(refused.class_name(), "EngineDeadError");
}

#[test]
fn cancelling_and_dropping_free_the_blocks() {
    let (engine, steps) = engine_with(Fault::None, 2, |_| {});
    let cancelled = submit(&engine, "a", &greedy(100));
    let dropped = submit(&engine, "b", &greedy(100));
    while steps.load(Ordering::SeqCst) < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    cancelled.cancel();
    drop(dropped);
    let out = gather(&cancelled);
    assert_eq!(out.reason, Some(FinishReason::Abort));
    assert!(out.tokens.len() < 100 && out.last.error.is_none());
    assert_eq!(settled(&engine).requests_finished, 2);
}

#[test]
fn a_deadline_ends_with_a_typed_error() {
    let (engine, _) = engine_with(Fault::None, 5, |_| {});
    let out = gather(&submit(&engine, "a", &SamplingParams { timeout: Some(0.05), ..greedy(100) }));
    assert_eq!((error_class(&out), out.reason), ("RequestTimeoutError", Some(FinishReason::Error)));
    settled(&engine);
}

#[test]
fn the_queue_is_bounded_and_refuses_at_once() {
    let (engine, _) = engine_with(Fault::None, 5, |l| {
        l.max_queue = 2;
        l.max_num_seqs = 1;
    });
    let mut streams = Vec::new();
    let full = loop {
        match engine.submit(Prompt::Text("a".into(), true), &greedy(20)) {
            Ok(stream) => streams.push(stream),
            Err(e) => break e,
        }
        assert!(streams.len() < 10, "nothing is refused");
    };
    assert_eq!(full.class_name(), "QueueFullError");
    for stream in &streams {
        assert_eq!(gather(stream).tokens.len(), 20);
    }
    settled(&engine);
}

#[test]
fn what_cannot_run_is_refused_at_submission() {
    let engine = engine(Fault::None);
    let class = |prompt, params: &SamplingParams| engine.submit(prompt, params).err().map(|e| e.class_name());
    let text = |t: &str| Prompt::Text(t.into(), true);
    let invalid = Some("InvalidRequestError");
    assert_eq!(class(text(""), &greedy(1)), invalid);
    assert_eq!(class(Prompt::Tokens(vec![257]), &greedy(1)), invalid);
    assert_eq!(class(text(&"a".repeat(128)), &greedy(1)), Some("ContextLengthError"));
    assert_eq!(class(text("a"), &SamplingParams { n: 9, ..greedy(1) }), invalid);
    assert_eq!(class(text("a"), &SamplingParams { temperature: Some(f32::NAN), ..greedy(1) }), invalid);
    assert_eq!(class(text("a"), &SamplingParams { stop: vec![String::new()], ..greedy(1) }), invalid);
    assert_eq!(class(text("a"), &SamplingParams { stop_token_ids: vec![999], ..greedy(1) }), invalid);
    assert_eq!(engine.queued(), 0, "refused requests hold no place");
}

#[test]
fn an_executor_without_hidden_states_refuses_embeddings() {
    let engine = engine(Fault::None);
    let refused = engine.embed(Prompt::Text("a".into(), true), &PoolingParams::default()).err();
    assert_eq!(refused.map(|e| e.class_name()), Some("UnsupportedModelError"));
    assert_eq!(engine.queued(), 0);
}

#[test]
fn closing_aborts_what_runs_and_later_calls_say_so() {
    let (engine, _) = engine_with(Fault::None, 5, |_| {});
    let stream = submit(&engine, "a", &greedy(100));
    engine.close();
    engine.close();
    let out = gather(&stream);
    assert_eq!((out.reason, error_class(&out)), (Some(FinishReason::Abort), "none"));
    let refused = engine.submit(Prompt::Tokens(vec![1]), &greedy(1)).err().expect("closed");
    assert_eq!(refused.class_name(), "EngineDeadError");
}

#[test]
fn many_requests_give_what_each_gives_alone() {
    let (engine, _) = engine_with(Fault::None, 0, |l| {
        l.num_blocks = 40;
        l.max_queue = 200;
    });
    let prompts: Vec<String> =
        (0..100).map(|i| "abcdefghij"[i % 7..i % 7 + 1 + i % 3].repeat(1 + i % 5)).collect();
    let params = |i: usize| SamplingParams { n: 1 + (i % 3) as u32, ..greedy(1 + (i % 17) as u32) };
    let streams: Vec<_> = prompts.iter().enumerate().map(|(i, p)| submit(&engine, p, &params(i))).collect();
    for (i, stream) in streams.iter().enumerate() {
        let last = prompts[i].bytes().last().expect("byte");
        let wanted: Vec<u32> = (1..=1 + (i % 17) as u32).map(|k| u32::from(last) + k).collect();
        let out = gather(stream);
        assert_eq!(out.tokens.len(), wanted.len() * (1 + i % 3), "request {i}");
        assert!(out.tokens.iter().all(|t| wanted.contains(t)), "request {i}: {:?}", out.tokens);
    }
    let stats = settled(&engine);
    assert_eq!(stats.requests_finished, 100);
    assert!(stats.max_batch > 1, "requests ran together");
}
