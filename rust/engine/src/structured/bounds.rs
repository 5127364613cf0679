//! Sizes of texts and schemas, and keywords whose cost the compiler does not bound itself.

use serde_json::{Map, Value};

use super::pointers::below;
use crate::EngineError;
use crate::strict_json::{JsonLimits, parse_strict};

/// Longest texts, in bytes.
pub(super) const MAX_SCHEMA_BYTES: usize = 64 << 10;
pub(super) const MAX_REGEX_BYTES: usize = 4 << 10;
pub(super) const MAX_GRAMMAR_BYTES: usize = 1 << 20;
/// Bounds of a schema as a document.
pub(super) const JSON: JsonLimits = JsonLimits { depth: 64, values: 20_000 };
/// `multipleOf` becomes an automaton with a state per remainder: the least common multiple along a path, and the sum of
/// all, are bounded. Where `allOf` or `$ref` may bring any two together, that of the whole schema is.
pub(super) const MAX_MULTIPLE: u64 = 10_000;
const MAX_MULTIPLE_SUM: u64 = 20_000;
/// Largest count that a keyword may name: items, lengths, properties.
pub(super) const MAX_COUNT: u64 = 10_000;
/// The product of counts along a path: each multiplies what is inside it.
const MAX_COUNT_PRODUCT: u64 = 100_000;

pub(super) const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

pub(super) fn refuse<T>(kind: &str, what: &str) -> Result<T, EngineError> {
    Err(EngineError::InvalidRequest(format!("structured: the {kind} {what}")))
}

/// Reads a schema that parts may be left out of.
///
/// # Errors
/// `InvalidRequest` for a text that is no schema.
pub(super) fn read_schema(text: &str) -> Result<Value, EngineError> {
    if text.len() > MAX_GRAMMAR_BYTES {
        let what = format!("has {} bytes: at most {MAX_GRAMMAR_BYTES} are taken", text.len());
        return refuse("json_schema", &what);
    }
    parsed("json_schema", text)
}

pub(super) fn parsed(kind: &str, text: &str) -> Result<Value, EngineError> {
    let mut value = parse_strict(text.as_bytes(), JSON).or_else(|e| refuse(kind, &format!("is {e}")))?;
    if !value.is_object() && !value.is_boolean() {
        return refuse(kind, "is no object");
    }
    whole_counts(&mut value);
    Ok(value)
}

/// Leaves out what `bounded` counts. Gives the pointers of the schemas, and the keywords, that were left out.
pub(super) fn uncounted(value: &mut Value) -> Vec<(String, String)> {
    let steps = has_key(value, "multipleOf");
    let mut found = Vec::new();
    remove_all(value, if steps { &["multipleOf"] } else { &COUNTS }, "", &mut found);
    found
}

fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get(key).is_some_and(Value::is_number) || map.values().any(|v| has_key(v, key))
        }
        Value::Array(items) => items.iter().any(|v| has_key(v, key)),
        _ => false,
    }
}

fn remove_all(value: &mut Value, keys: &[&str], at: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for key in keys {
                if map.get(*key).is_some_and(Value::is_number) {
                    map.shift_remove(*key);
                    found.push((at.to_string(), (*key).to_string()));
                }
            }
            map.iter_mut().for_each(|(key, v)| remove_all(v, keys, &below(at, key), found));
        }
        Value::Array(items) => {
            let places = items.iter_mut().enumerate();
            places.for_each(|(i, v)| remove_all(v, keys, &below(at, &i.to_string()), found));
        }
        _ => {}
    }
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

pub(super) fn bounded(kind: &str, value: &Value) -> Result<(), EngineError> {
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

pub(super) fn pattern_text(kind: &str, pattern: &str) -> Result<(), EngineError> {
    if pattern.len() > MAX_REGEX_BYTES {
        return refuse(kind, &format!("has a pattern of {} bytes: at most {MAX_REGEX_BYTES}", pattern.len()));
    }
    counted_repeats(kind, pattern)
}

/// Number of states of an automaton for multiples of `step`: one for each remainder.
pub(super) fn states(step: f64) -> u64 {
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
pub(super) fn counted_repeats(kind: &str, text: &str) -> Result<(), EngineError> {
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
