//! Alternatives that exclude each other, which makes `oneOf` the same as `anyOf`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::structured::pointers::target;

/// Most references that are followed from one alternative.
const MAX_STEPS: usize = 8;

/// Whether no value is valid under two of `ways`.
pub(super) fn exclusive(root: &Value, ways: &[Value]) -> bool {
    let ways: Option<Vec<&Map<String, Value>>> = ways.iter().map(|way| resolved(root, way)).collect();
    let Some(ways) = ways else { return false };
    // Pairs are many: a union of this size has a tag, or is held as it is.
    ways.len() <= 64
        && ways.iter().enumerate().all(|(i, a)| ways[i + 1..].iter().all(|b| disjoint(root, a, b)))
}

fn resolved<'a>(root: &'a Value, way: &'a Value) -> Option<&'a Map<String, Value>> {
    let mut here = way.as_object()?;
    for _ in 0..MAX_STEPS {
        match here.get("$ref").and_then(Value::as_str) {
            Some(reference) => here = target(root, reference)?.as_object()?,
            None => return Some(here),
        }
    }
    None
}

fn disjoint(root: &Value, a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    if let (Some(a), Some(b)) = (types(a), types(b))
        && a.is_disjoint(&b)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (values(a), values(b)) {
        return !a.iter().any(|value| b.contains(value));
    }
    required(a).intersection(&required(b)).any(|name| {
        let tags = (tag(root, a, name), tag(root, b, name));
        matches!(tags, (Some(a), Some(b)) if !a.iter().any(|value| b.contains(value)))
    })
}

/// The only values of a property.
fn tag<'a>(root: &'a Value, way: &'a Map<String, Value>, name: &str) -> Option<Vec<&'a Value>> {
    let schema = way.get("properties")?.get(name)?;
    resolved(root, schema).and_then(values)
}

fn required(way: &Map<String, Value>) -> BTreeSet<&str> {
    // Only where nothing but an object is valid does a missing property exclude.
    if way.get("type").and_then(Value::as_str) != Some("object") {
        return BTreeSet::new();
    }
    let names = way.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The only values that are valid; texts and booleans alone, because numbers have several spellings.
fn values(way: &Map<String, Value>) -> Option<Vec<&Value>> {
    let found = match (way.get("const"), way.get("enum")) {
        (Some(value), _) => vec![value],
        (None, Some(Value::Array(values))) => values.iter().collect(),
        _ => return None,
    };
    found.iter().all(|value| value.is_string() || value.is_boolean()).then_some(found)
}

fn types(way: &Map<String, Value>) -> Option<BTreeSet<&str>> {
    let found: BTreeSet<&str> = match (way.get("type"), values(way)) {
        (Some(Value::String(one)), _) => [one.as_str()].into(),
        (Some(Value::Array(many)), _) => many.iter().map(Value::as_str).collect::<Option<_>>()?,
        (_, Some(values)) => {
            values.iter().map(|value| if value.is_string() { "string" } else { "boolean" }).collect()
        }
        _ => return None,
    };
    Some(found.into_iter().map(|one| if one == "integer" { "number" } else { one }).collect())
}
