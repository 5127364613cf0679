//! What is refused before it is compiled: sizes, and parts of schemas that no grammar holds.

use serde_json::Value;

use super::Structure;
use super::bounds::{
    JSON, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES, bounded, counted_repeats, parsed, refuse,
};
use super::schema::{close, normalize};
use crate::EngineError;
use crate::strict_json::parse_strict;

/// What the checks leave to compile.
#[derive(Debug)]
pub(super) enum Checked {
    Schema(Value),
    /// A grammar whose schemas are in the compiler's words.
    Grammar(String),
    Pattern,
}

/// Checks `structure`, and puts its schemas into the compiler's words.
///
/// # Errors
/// `InvalidRequest` says which bound is passed, or which part no grammar holds.
pub(super) fn check(structure: &Structure) -> Result<Checked, EngineError> {
    let most = match structure {
        Structure::JsonSchema { .. } => MAX_SCHEMA_BYTES,
        Structure::Regex(_) => MAX_REGEX_BYTES,
        Structure::Lark(_) => MAX_GRAMMAR_BYTES,
    };
    let (kind, text) = (structure.kind(), structure.text());
    if text.len() > most {
        return refuse(kind, &format!("has {} bytes: at most {most} are taken", text.len()));
    }
    match structure {
        Structure::JsonSchema { closed, .. } => {
            let value = parsed(kind, text)?;
            bounded(kind, &value)?;
            let mut schema = exact(kind, value)?;
            if *closed {
                close(&mut schema);
            }
            Ok(Checked::Schema(schema))
        }
        Structure::Lark(_) => lark(kind, text).map(Checked::Grammar),
        Structure::Regex(_) => counted_repeats(kind, text).map(|()| Checked::Pattern),
    }
}

/// A schema in the compiler's words, all of which it holds.
fn exact(kind: &str, schema: Value) -> Result<Value, EngineError> {
    let read = normalize(schema);
    match read.losses.first() {
        Some(loss) => refuse(kind, &format!("cannot be held: {loss}")),
        None => Ok(read.schema),
    }
}

/// A Lark grammar: the schemas inside it are checked as others are. Gives the grammar with them in the compiler's words.
fn lark(kind: &str, text: &str) -> Result<String, EngineError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("%json") {
        let (before, after) = rest.split_at(at + "%json".len());
        out.push_str(before);
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                // Once more, strictly: with the bounds, and without duplicate keys.
                parse_strict(after[..end].trim().as_bytes(), JSON)
                    .or_else(|e| refuse(kind, &format!("has a %json that is {e}")))?;
                bounded(kind, &value)?;
                out.push_str(&format!(" {}", exact(kind, value)?));
                rest = &after[end..];
            }
            _ => return refuse(kind, "has a %json that no JSON follows"),
        }
    }
    out.push_str(rest);
    counted_repeats(kind, &without_json(&out))?;
    Ok(out)
}

/// The grammar without its schemas, whose braces are no repetitions.
fn without_json(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("%json") {
        out.push_str(&rest[..at]);
        rest = &rest[at + "%json".len()..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
        if values.next().is_some_and(|v| v.is_ok()) {
            rest = &rest[values.byte_offset()..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structured::bounds::states;

    fn fault(structure: Structure) -> String {
        check(&structure).expect_err("refused").to_string()
    }

    fn json(text: &str) -> Structure {
        Structure::JsonSchema { text: text.into(), closed: false }
    }

    #[test]
    fn bombs_are_refused_by_name() {
        assert!(fault(json(r#"{"type": "integer", "multipleOf": 1000003}"#)).contains("multipleOf 1000003"));
        let path = r#"{"allOf": [{"multipleOf": 101}, {"multipleOf": 103}], "multipleOf": 97}"#;
        assert!(fault(json(path)).contains("period of"));
        assert!(fault(json(r#"{"maxLength": 1e9}"#)).contains("maxLength"));
        let nested = r#"{"maxItems": 1000, "items": {"maxItems": 1000, "items": {"maxLength": 1000}}}"#;
        assert!(fault(json(nested)).contains("nests counts"));
        assert!(fault(json(r#"{"a": 1, "a": 2}"#)).contains("twice"));
        assert!(fault(json(&"[".repeat(70))).contains("deeper"));
        assert!(fault(json(&format!("\"{}\"", "x".repeat(70_000)))).contains("bytes"));
        assert!(fault(json("3")).contains("no object"));
        assert!(fault(Structure::Regex("((a{1000}){1000}){1000}".into())).contains("repeats"));
        assert!(fault(Structure::Regex("a{1000000000}".into())).contains("repeats"));
        let hidden = r#"start: %json {"type": "integer", "multipl\u0065Of": 1000003}"#;
        assert!(fault(Structure::Lark(hidden.into())).contains("multipleOf"));
        assert!(fault(Structure::Lark("start: %json nothing".into())).contains("%json"));
    }

    #[test]
    fn whole_numbers_may_be_written_as_decimals() {
        let Ok(Checked::Schema(checked)) = check(&json(r#"{"items": {"maxLength": 2.0}}"#)) else {
            panic!("refused")
        };
        assert_eq!(checked, serde_json::json!({"items": {"maxLength": 2}}));
    }

    #[test]
    fn decimals_count_as_their_whole_number() {
        assert_eq!([states(0.25), states(0.01), states(5.0), states(1e20)], [25, 1, 5, u64::MAX]);
        assert!(check(&json(r#"{"multipleOf": 0.01}"#)).is_ok());
    }
}
