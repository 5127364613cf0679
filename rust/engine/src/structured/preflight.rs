//! What is refused before it is compiled: sizes, and keywords whose cost the compiler does not bound itself.

use serde_json::{Map, Value};

use super::Structure;
use crate::EngineError;
use crate::strict_json::{JsonLimits, parse_strict};

/// Longest texts, in bytes.
const MAX_SCHEMA_BYTES: usize = 64 << 10;
const MAX_REGEX_BYTES: usize = 4 << 10;
const MAX_GRAMMAR_BYTES: usize = 320 << 10;
/// Bounds of a schema as a document.
const JSON: JsonLimits = JsonLimits { depth: 64, values: 20_000 };
/// `multipleOf` becomes an automaton with a state per remainder: the least common multiple along a path, and the sum of
/// all, are bounded. Where `allOf` or `$ref` may bring any two together, that of the whole schema is.
const MAX_MULTIPLE: u64 = 10_000;
const MAX_MULTIPLE_SUM: u64 = 20_000;
/// Largest count that a keyword may name: items, lengths, properties.
const MAX_COUNT: u64 = 10_000;
/// The product of counts along a path: each multiplies what is inside it.
const MAX_COUNT_PRODUCT: u64 = 100_000;

const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

fn refuse<T>(kind: &str, what: &str) -> Result<T, EngineError> {
    Err(EngineError::InvalidRequest(format!("structured: the {kind} {what}")))
}

/// Checks `structure`, and gives a schema as a value.
///
/// # Errors
/// `InvalidRequest` says which bound is passed.
pub fn check(structure: &Structure) -> Result<Option<Value>, EngineError> {
    let most = match structure {
        Structure::JsonSchema(_) => MAX_SCHEMA_BYTES,
        Structure::Regex(_) => MAX_REGEX_BYTES,
        Structure::Lark(_) => MAX_GRAMMAR_BYTES,
    };
    let (kind, text) = (structure.kind(), structure.text());
    if text.len() > most {
        return refuse(kind, &format!("has {} bytes: at most {most} are taken", text.len()));
    }
    match structure {
        Structure::JsonSchema(_) => schema(kind, text.as_bytes()).map(Some),
        Structure::Lark(_) => lark(kind, text).map(|()| None),
        Structure::Regex(_) => counted_repeats(kind, text).map(|()| None),
    }
}

fn schema(kind: &str, text: &[u8]) -> Result<Value, EngineError> {
    let value = parse_strict(text, JSON).or_else(|e| refuse(kind, &format!("is {e}")))?;
    if !value.is_object() && !value.is_boolean() {
        return refuse(kind, "is no object");
    }
    bounded(kind, &value)?;
    let mut value = value;
    whole_counts(&mut value);
    Ok(value)
}

/// In a schema 2.0 is the integer 2; the compiler wants it written so.
fn whole_counts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in COUNTS {
                if let Some(count) = map.get_mut(key)
                    && let Some(whole) = count.as_f64().filter(|c| c.fract() == 0.0 && *c >= 0.0)
                {
                    *count = Value::from(whole as u64);
                }
            }
            map.values_mut().for_each(whole_counts);
        }
        Value::Array(items) => items.iter_mut().for_each(whole_counts),
        _ => {}
    }
}

fn bounded(kind: &str, value: &Value) -> Result<(), EngineError> {
    let mut bounds = Bounds { kind, joined: has_joins(value), period: 1, sum: 0 };
    bounds.walk(value, 1, 1)
}

fn has_joins(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            map.contains_key("allOf") || map.contains_key("$ref") || map.values().any(has_joins)
        }
        Value::Array(items) => items.iter().any(has_joins),
        _ => false,
    }
}

/// What the keywords of a schema add up to.
struct Bounds<'a> {
    kind: &'a str,
    /// Any two parts of the schema may hold for the same value.
    joined: bool,
    /// Least common multiple of all, for a joined schema.
    period: u64,
    sum: u64,
}

impl Bounds<'_> {
    /// Goes through all of a schema, keyword or not: a `$ref` may lead anywhere.
    fn walk(&mut self, value: &Value, multiple: u64, product: u64) -> Result<(), EngineError> {
        match value {
            Value::Object(map) => {
                let multiple = self.multiple(map, multiple)?;
                let product = self.counts(map, product)?;
                if let Some(pattern) = map.get("pattern").and_then(Value::as_str) {
                    pattern_text(self.kind, pattern)?;
                }
                if let Some(patterns) = map.get("patternProperties").and_then(Value::as_object) {
                    patterns.keys().try_for_each(|pattern| pattern_text(self.kind, pattern))?;
                }
                map.values().try_for_each(|v| self.walk(v, multiple, product))
            }
            Value::Array(items) => items.iter().try_for_each(|v| self.walk(v, multiple, product)),
            _ => Ok(()),
        }
    }

    fn multiple(&mut self, map: &Map<String, Value>, above: u64) -> Result<u64, EngineError> {
        let Some(step) = map.get("multipleOf").and_then(Value::as_f64) else { return Ok(above) };
        let multiple = lcm(above, states(step));
        self.period = lcm(self.period, multiple);
        self.sum = self.sum.saturating_add(multiple);
        let period = if self.joined { self.period } else { multiple };
        if period <= MAX_MULTIPLE && self.sum <= MAX_MULTIPLE_SUM {
            return Ok(multiple);
        }
        let what = format!(
            "has multipleOf {step}, with others that may hold for the same number a period of {period}: at most \
             {MAX_MULTIPLE}, and {MAX_MULTIPLE_SUM} in sum, are taken"
        );
        refuse(self.kind, &what)
    }

    fn counts(&self, map: &Map<String, Value>, above: u64) -> Result<u64, EngineError> {
        let mut product = above;
        for key in COUNTS {
            let Some(count) = map.get(key).and_then(Value::as_f64) else { continue };
            if count > MAX_COUNT as f64 {
                return refuse(self.kind, &format!("has {key} {count}: at most {MAX_COUNT} is taken"));
            }
            if count > 1.0 && key.starts_with("max") {
                product = product.saturating_mul(count as u64);
            }
        }
        if product > MAX_COUNT_PRODUCT {
            let what =
                format!("nests counts to {product} repetitions: at most {MAX_COUNT_PRODUCT} are taken");
            return refuse(self.kind, &what);
        }
        Ok(product)
    }
}

fn pattern_text(kind: &str, pattern: &str) -> Result<(), EngineError> {
    if pattern.len() > MAX_REGEX_BYTES {
        return refuse(kind, &format!("has a pattern of {} bytes: at most {MAX_REGEX_BYTES}", pattern.len()));
    }
    counted_repeats(kind, pattern)
}

/// Number of states of an automaton for multiples of `step`: one for each remainder.
fn states(step: f64) -> u64 {
    if !(step.is_finite() && step > 0.0) {
        return 1;
    }
    // Decimals: 0.25 is 25 hundredths.
    let mut scaled = step;
    for _ in 0..9 {
        if scaled.fract() == 0.0 {
            break;
        }
        scaled = (scaled * 10.0 * 1e6).round() / 1e6;
    }
    if scaled >= 1e15 { u64::MAX } else { (scaled as u64).max(1) }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}

/// `{n}`, `{n,}`, `{n,m}` in a regular expression: each count, and the product of nested ones.
fn counted_repeats(kind: &str, text: &str) -> Result<(), EngineError> {
    let mut product = 1u64;
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        rest = &rest[open + 1..];
        let Some(close) = rest.find('}') else { break };
        let inside = &rest[..close];
        if inside.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b' ') {
            let counts = inside.split(',').map(str::trim).filter(|n| !n.is_empty());
            let largest = counts.map(|n| n.parse::<u64>().unwrap_or(u64::MAX)).max().unwrap_or(1);
            product = product.saturating_mul(largest.max(1));
            if largest > MAX_COUNT || product > MAX_COUNT_PRODUCT {
                let what = format!(
                    "repeats {{{inside}}}: at most {MAX_COUNT} times, and {MAX_COUNT_PRODUCT} with all counts together"
                );
                return refuse(kind, &what);
            }
        }
    }
    Ok(())
}

/// A Lark grammar: the schemas inside it are checked as others are.
fn lark(kind: &str, text: &str) -> Result<(), EngineError> {
    let mut rest = text;
    while let Some(at) = rest.find("%json") {
        rest = &rest[at + "%json".len()..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                // Once more, strictly: with the bounds, and without duplicate keys.
                parse_strict(rest[..end].trim().as_bytes(), JSON)
                    .or_else(|e| refuse(kind, &format!("has a %json that is {e}")))?;
                bounded(kind, &value)?;
                rest = &rest[end..];
            }
            _ => return refuse(kind, "has a %json that no JSON follows"),
        }
    }
    counted_repeats(kind, &without_json(text))
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

    fn fault(structure: Structure) -> String {
        check(&structure).expect_err("refused").to_string()
    }

    fn json(text: &str) -> Structure {
        Structure::JsonSchema(text.into())
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
        let checked = check(&json(r#"{"items": {"maxLength": 2.0}}"#)).expect("taken").expect("a schema");
        assert_eq!(checked, serde_json::json!({"items": {"maxLength": 2}}));
    }

    #[test]
    fn decimals_count_as_their_whole_number() {
        assert_eq!([states(0.25), states(0.01), states(5.0), states(1e20)], [25, 1, 5, u64::MAX]);
        assert!(check(&json(r#"{"multipleOf": 0.01}"#)).is_ok());
    }
}
