//! What keywords say about values.

use serde_json::{Map, Value};

use super::names::UNHELD;
use crate::structured::bounds;

/// Whether `value` is of a type, or of one of several.
pub(super) fn is_of(value: &Value, kind: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| is_of(value, kind)),
        Value::String(name) => match name.as_str() {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            "string" => value.is_string(),
            "array" => value.is_array(),
            _ => value.is_object(),
        },
        _ => true,
    }
}

/// A schema under which everything is valid.
pub(super) fn says_all(value: &Value) -> bool {
    match value {
        Value::Bool(all) => *all,
        Value::Object(map) => !map.keys().any(|key| constrains(key)),
        _ => false,
    }
}

pub(super) fn has_applicators(map: &Map<String, Value>) -> bool {
    ["allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "$dynamicRef", "patternProperties"]
        .iter()
        .any(|key| map.contains_key(*key))
}

pub(super) fn says_nothing(key: &str, value: &Value, map: &Map<String, Value>) -> bool {
    let empty = value.as_object().is_some_and(Map::is_empty);
    match key {
        "not" | "uniqueItems" => value == &Value::Bool(false),
        "if" => !map.contains_key("then") && !map.contains_key("else"),
        "then" | "else" => !map.contains_key("if"),
        "dependentRequired" | "dependentSchemas" | "dependencies" => empty,
        "minContains" | "maxContains" => !map.contains_key("contains"),
        "unevaluatedItems" | "unevaluatedProperties" => says_all(value),
        "propertyNames" => {
            let names = value.as_object();
            says_all(value)
                || names.is_some_and(|names| {
                    names.get("type").is_none_or(|kind| kind == "string")
                        && !names.keys().any(|key| key != "type" && constrains(key))
                })
        }
        "$dynamicAnchor" | "$recursiveAnchor" => true,
        _ => false,
    }
}

/// Whether a keyword may make a value invalid.
pub(super) fn constrains(key: &str) -> bool {
    let words =
        ["type", "enum", "const", "pattern", "format", "required", "items", "prefixItems", "additionalItems"];
    let parts =
        ["properties", "patternProperties", "additionalProperties", "allOf", "anyOf", "oneOf", "$ref"];
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
    words.contains(&key)
        || parts.contains(&key)
        || bounds.contains(&key)
        || bounds::COUNTS.contains(&key)
        || UNHELD.contains(&key)
}
