//! Constraints over a byte-level tokenizer: token id = byte, 256 ends.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::EngineError;
use crate::tokenizer::tests::byte_level;

const EOS: u32 = 256;

fn compiler() -> Compiler {
    Compiler::new(Arc::new(byte_level()), 257, &[EOS])
}

fn allowed(mask: &[u32]) -> Vec<u32> {
    (0..257).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// The tokens that may come next.
fn tokens(constraint: &mut Constraint) -> Vec<u32> {
    constraint.wait();
    allowed(constraint.mask().expect("a mask"))
}

/// Draws any valid output: `choose` picks among the allowed tokens.
fn draw(
    compiler: &Compiler,
    structure: &Structure,
    mut choose: impl FnMut(&[u32]) -> u32,
) -> Option<Vec<u8>> {
    let mut constraint = compiler.constraint(&structure.clone().into(), 2000).expect("compiles");
    let mut out = Vec::new();
    for _ in 0..2000 {
        let token = choose(&tokens(&mut constraint));
        if token == EOS {
            return Some(out);
        }
        out.push(token as u8);
        if constraint.push(token).expect("allowed") == Progress::Complete {
            return Some(out);
        }
    }
    None
}

fn refused(structure: Structure) -> String {
    match compiler().constraint(&structure.clone().into(), 100) {
        Ok(_) => panic!("{structure:?} was taken"),
        Err(e) => {
            assert!(matches!(e, EngineError::InvalidRequest(_)), "{e}");
            e.to_string()
        }
    }
}

#[test]
fn a_regex_leaves_one_way_and_then_the_end() {
    let out = draw(&compiler(), &Structure::Regex("(yes|no)!".into()), |allowed| allowed[allowed.len() - 1]);
    assert_eq!(out.expect("ends"), b"yes!");
}

/// The grammar that the server makes for tools which the model may call or not.
#[test]
fn free_text_becomes_a_call_at_its_mark_and_only_there() {
    let grammar = r#"start: (lead "\n" body "\n</c>")* TAIL?
body: %json {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false,
             "x-guidance": {"whitespace_flexible": false}}
lead[lazy]: /(.|\n)*<c>/
TAIL: /(.|\n)*/ & ~/(.|\n)*<c>(.|\n)*/
"#;
    let compiler = compiler();
    let mut constraint = compiler.constraint(&Structure::Lark(grammar.into()).into(), 100).expect("compiles");
    for &(text, next) in
        &[("hi <c", None), (">", Some(b'\n')), ("\n", Some(b'{')), ("{\"a\":1}\n</c>", None), ("x", None)]
    {
        for byte in text.bytes() {
            let may = tokens(&mut constraint);
            assert!(may.contains(&u32::from(byte)), "{:?} in {text:?}", char::from(byte));
            assert_eq!(constraint.push(byte.into()).expect("allowed"), Progress::Open);
        }
        let may = tokens(&mut constraint);
        match next {
            Some(only) => assert_eq!(may, [u32::from(only)], "after {text:?}"),
            None => assert!(may.len() > 150, "after {text:?} all is free: {}", may.len()),
        }
    }
    assert!(tokens(&mut constraint).contains(&EOS));
}

#[test]
fn forks_go_their_own_ways() {
    let compiler = compiler();
    let mut a = compiler.constraint(&Structure::Regex("a|b".into()).into(), 100).expect("compiles");
    let mut b = a.fork();
    assert_eq!(tokens(&mut a), [97, 98]);
    assert_eq!(a.push(97).expect("a"), Progress::Complete);
    assert_eq!(tokens(&mut b), [97, 98]);
    assert_eq!(b.push(98).expect("b"), Progress::Complete);
    assert!(b.push(98).is_err(), "complete is complete");
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let json = |text: &str| Structure::JsonSchema { text: text.into(), closed: false };
    assert!(refused(json(r#"{"type": "array", "uniqueItems": true}"#)).contains("uniqueItems"));
    assert!(refused(json(r#"{"$ref": "https://example.com/a"}"#)).contains("structured"));
    assert!(refused(json("false")).contains("structured"));
    assert!(refused(Structure::Regex("(".into())).contains("regex"));
    assert!(refused(Structure::Lark("start: missing".into())).contains("missing"));
}

#[test]
fn bombs_end_within_the_deadline() {
    let compiler = compiler();
    let json = |text: &str| Structure::JsonSchema { text: text.into(), closed: true };
    let nested = (0..60).fold(String::from("{}"), |inner, _| format!(r#"{{"items": {inner}}}"#));
    let wide = format!("({})*", (0..400).map(|i| format!("a{{0,{}}}", i % 7)).collect::<Vec<_>>().join("|"));
    for structure in [
        json(r##"{"$ref": "#"}"##),
        json(
            r##"{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}"##,
        ),
        json(&nested),
        json(r#"{"type": "string", "minLength": 10000, "maxLength": 10000}"#),
        json(r#"{"type": "array", "items": {"type": "integer", "multipleOf": 9973}, "minItems": 10000}"#),
        Structure::Regex("(((a{100}){10}){10}b?){10}".into()),
        Structure::Regex(wide),
        Structure::Regex("(a|aa|aaa)*(a|aa|aaa)*(a|aa|aaa)*b".into()),
        Structure::Regex("(?s).*.{5000}x".into()),
        Structure::Lark("start: a\na: a a a | \"x\" a | b\nb: a | b b |".into()),
    ] {
        let begin = Instant::now();
        if let Ok(mut constraint) = compiler.constraint(&structure.clone().into(), 100) {
            for _ in 0..50 {
                constraint.wait();
                let Ok(mask) = constraint.mask() else { break };
                let token = allowed(mask)[0];
                if !matches!(constraint.push(token), Ok(Progress::Open)) {
                    break;
                }
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        // A limit for hangs, not a measurement: without bounds these structures take minutes to forever.
        assert!(seconds < 60.0, "{structure:?}: {seconds} s");
    }
}

#[test]
fn the_cache_is_bounded_and_gives_what_it_got() {
    let compiler = compiler();
    for i in 0..200 {
        let regex = format!("x{i}");
        let out = draw(&compiler, &Structure::Regex(regex.clone()), |allowed| allowed[0]);
        assert_eq!(out.expect("ends"), regex.as_bytes());
    }
    assert_eq!(
        draw(&compiler, &Structure::Regex("x199".into()), |allowed| allowed[0]).expect("again"),
        b"x199"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever is drawn under an object's schema reads as that object.
    #[test]
    fn drawn_documents_are_valid(seed: u64) {
        let schema = r#"{"type": "object", "additionalProperties": false, "required": ["a", "b"],
            "properties": {"a": {"type": "integer", "minimum": -5, "maximum": 120}, "b": {"enum": ["x", null, 3]},
                           "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}}"#;
        let mut state = seed;
        let out = draw(&compiler(), &Structure::JsonSchema { text: schema.into(), closed: false }, |allowed| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            allowed[(state >> 33) as usize % allowed.len()]
        });
        let value: Value = serde_json::from_slice(&out.expect("ends")).expect("JSON");
        let a = value["a"].as_f64().expect("a number");
        prop_assert!(a.fract() == 0.0 && (-5.0..=120.0).contains(&a), "{a}");
        prop_assert!([Value::from("x"), Value::Null, Value::from(3)].contains(&value["b"]));
    }
}
