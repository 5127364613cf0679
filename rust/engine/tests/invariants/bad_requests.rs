//! Each wrong request is refused at once by its own typed error while others run, and costs them nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octavo_engine::{ChatTemplate, Limits, Prompt, SamplingParams, Tokenizer};
use serde_json::{Map, json};

use crate::folder::tokenizer_json;
use crate::gather::{gather, settled};
use crate::oracle::{Fault, Script, continuation, engine};

const LIMITS: Limits = Limits {
    max_model_len: 64,
    max_num_seqs: 4,
    max_num_batched_tokens: 16,
    max_queue: 3,
    block_size: 4,
    num_blocks: 40,
    max_loras: 8,
    max_lora_rank: 256,
    max_lora_memory: 1 << 20,
};

fn params() -> SamplingParams {
    SamplingParams {
        temperature: Some(0.0),
        max_tokens: Some(20),
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

#[test]
fn wrong_requests_are_refused_at_once_while_another_runs() {
    let script = Script::at(3, Fault::Stall);
    let engine = engine(Arc::clone(&script), LIMITS, true, false);
    let running = engine.submit(Prompt::Tokens(vec![1, 2, 3]), &params()).expect("submitted");
    let text = |t: &str| Prompt::Text(t.into(), true);
    let p = params;
    let nan = f32::NAN;
    let cases: Vec<(&str, Prompt, SamplingParams, &str)> = vec![
        ("empty text", text(""), p(), "InvalidRequestError"),
        ("no ids", Prompt::Tokens(vec![]), p(), "InvalidRequestError"),
        ("an id that is none", Prompt::Tokens(vec![1, 260]), p(), "InvalidRequestError"),
        ("the largest id", Prompt::Tokens(vec![u32::MAX]), p(), "InvalidRequestError"),
        ("longer than the context", text(&"a".repeat(65)), p(), "ContextLengthError"),
        ("a very long text", text(&"a".repeat(1 << 20)), p(), "ContextLengthError"),
        ("max_tokens", text("a"), SamplingParams { max_tokens: Some(0), ..p() }, "InvalidRequestError"),
        ("min_tokens", text("a"), SamplingParams { min_tokens: 21, ..p() }, "InvalidRequestError"),
        ("temperature", text("a"), SamplingParams { temperature: Some(nan), ..p() }, "InvalidRequestError"),
        ("temperature", text("a"), SamplingParams { temperature: Some(-1.0), ..p() }, "InvalidRequestError"),
        ("top_p", text("a"), SamplingParams { top_p: Some(nan), ..p() }, "InvalidRequestError"),
        ("min_p", text("a"), SamplingParams { min_p: Some(f32::INFINITY), ..p() }, "InvalidRequestError"),
        (
            "repetition",
            text("a"),
            SamplingParams { repetition_penalty: Some(nan), ..p() },
            "InvalidRequestError",
        ),
        ("presence", text("a"), SamplingParams { presence_penalty: nan, ..p() }, "InvalidRequestError"),
        (
            "stop",
            text("a"),
            SamplingParams { stop: vec!["x".into(), "".into()], ..p() },
            "InvalidRequestError",
        ),
        ("bad_words", text("a"), SamplingParams { bad_words: vec!["".into()], ..p() }, "InvalidRequestError"),
        ("stop ids", text("a"), SamplingParams { stop_token_ids: vec![260], ..p() }, "InvalidRequestError"),
        ("bias", text("a"), SamplingParams { logit_bias: vec![(1, nan)], ..p() }, "InvalidRequestError"),
        ("bias id", text("a"), SamplingParams { logit_bias: vec![(999, 1.0)], ..p() }, "InvalidRequestError"),
        (
            "allowed ids",
            text("a"),
            SamplingParams { allowed_token_ids: Some(vec![1, 999]), ..p() },
            "InvalidRequestError",
        ),
        (
            "no allowed ids",
            text("a"),
            SamplingParams { allowed_token_ids: Some(vec![]), ..p() },
            "InvalidRequestError",
        ),
        ("timeout", text("a"), SamplingParams { timeout: Some(f64::NAN), ..p() }, "InvalidRequestError"),
        ("timeout", text("a"), SamplingParams { timeout: Some(-1.0), ..p() }, "InvalidRequestError"),
        ("n", text("a"), SamplingParams { n: 0, ..p() }, "InvalidRequestError"),
        ("n beyond max_num_seqs", text("a"), SamplingParams { n: 5, ..p() }, "InvalidRequestError"),
    ];
    let begin = Instant::now();
    for (what, prompt, params, class) in cases {
        let error = engine.submit(prompt, &params).err().unwrap_or_else(|| panic!("{what} is taken"));
        assert_eq!(error.class_name(), class, "{what}: {error}");
    }
    // The engine is in a step that does not end, so none of this waited for it.
    assert!(begin.elapsed() < Duration::from_secs(120));
    script.release();
    assert_eq!(gather(&running, 1).tokens[0], continuation(&[1, 2, 3], 20));
    settled(&engine);
}

#[test]
fn samples_that_the_pool_cannot_hold_are_refused() {
    // Each of the four samples needs 16 blocks of its own at the end, and there are 40.
    let engine = engine(Arc::default(), LIMITS, true, false);
    let params = SamplingParams { n: 4, max_tokens: Some(60), ..params() };
    let error = engine.submit(Prompt::Tokens(vec![1, 2, 3]), &params).err().expect("refused");
    assert_eq!(error.class_name(), "InvalidRequestError");
    assert!(error.to_string().contains("64 KV blocks"), "what it needs is named: {error}");
    // Two of them fit, and run as asked.
    let two = SamplingParams { n: 2, ..params };
    let stream = engine.submit(Prompt::Tokens(vec![1, 2, 3]), &two).expect("submitted");
    let wanted = continuation(&[1, 2, 3], 60);
    assert!(gather(&stream, 2).tokens.iter().all(|tokens| *tokens == wanted));
    settled(&engine);
}

#[test]
fn a_full_queue_refuses_and_what_was_taken_is_served() {
    let script = Script::at(1, Fault::Stall);
    let engine = engine(Arc::clone(&script), LIMITS, true, false);
    let mut taken = vec![engine.submit(Prompt::Tokens(vec![9]), &params()).expect("submitted")];
    let begin = Instant::now();
    while engine.queued() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    let full = loop {
        match engine.submit(Prompt::Tokens(vec![9]), &params()) {
            Ok(stream) => taken.push(stream),
            Err(e) => break e,
        }
    };
    assert_eq!((full.class_name(), taken.len()), ("QueueFullError", 1 + LIMITS.max_queue as usize));
    assert!(full.to_string().contains("max_queue is 3"), "{full}");
    script.release();
    for stream in &taken {
        assert_eq!(gather(stream, 1).tokens[0], continuation(&[9], 20));
    }
    settled(&engine);
    engine.close();
    let closed = engine.submit(Prompt::Tokens(vec![9]), &params()).err().expect("closed");
    assert_eq!(closed.class_name(), "EngineDeadError");
    assert!(closed.to_string().contains("closed"));
}

/// Templates come with a model from anywhere: whatever they do ends soon, in a text or a typed error.
#[test]
fn hostile_templates_end_soon() {
    let tokenizer = Tokenizer::parse(tokenizer_json().to_string().as_bytes(), Map::new()).expect("tokenizer");
    let request = json!({"messages": [{"role": "user", "content": "hi"}]});
    let request = &request.to_string();
    let loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let hostile: Vec<(&str, String)> = vec![
        ("endless loops", loops.into()),
        ("endless recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into()),
        ("much output", "{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}".into()),
        ("a long text", "x".repeat(2 << 20)),
        ("many nots", format!("{{{{ {}1 }}}}", "not ".repeat(20_000))),
        ("many signs", format!("{{{{ {}1 }}}}", "-".repeat(50_000))),
        ("many fields", format!("{{{{ a{} }}}}", ".b".repeat(50_000))),
        ("many brackets", format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000))),
        ("a deep value", "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into()),
        ("a wide format", "{{ '{:>100000000000}'.format(1) }}".into()),
        ("its own error", "{{ raise_exception('this model wants a system message') }}".into()),
    ];
    for (what, text) in hostile {
        let begin = Instant::now();
        let result = ChatTemplate::new(&text, &tokenizer).and_then(|t| t.render(request));
        assert!(begin.elapsed() < Duration::from_secs(120), "{what} took {:?}", begin.elapsed());
        match result {
            Err(e) => assert_eq!(e.class_name(), "InvalidRequestError", "{what}"),
            Ok(text) => assert!(text.len() <= 16 << 20, "{what}: {} bytes", text.len()),
        }
    }
    let error = ChatTemplate::new(loops, &tokenizer).and_then(|t| t.render(request)).expect_err("refused");
    assert!(error.to_string().contains("steps"), "{error}");
}
