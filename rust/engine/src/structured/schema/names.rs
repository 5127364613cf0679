//! Names in schemas: keywords, types, and where `$id` and `$anchor` lead.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::structured::pointers::below;

/// Keywords that no grammar holds.
pub(super) const UNHELD: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "propertyNames",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
];
/// Keywords whose null says nothing.
pub(super) const NULLABLE: [&str; 27] = [
    "title",
    "description",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "properties",
    "patternProperties",
    "additionalProperties",
    "items",
    "prefixItems",
    "uniqueItems",
    "anyOf",
    "oneOf",
    "allOf",
    "$defs",
    "definitions",
];

/// A type that other languages and APIs write in another way; "": any type.
pub(super) fn type_alias(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().as_str() {
        "string" | "str" | "text" => "string",
        "number" | "float" | "double" | "decimal" => "number",
        "integer" | "int" | "long" => "integer",
        "boolean" | "bool" => "boolean",
        "object" | "dict" | "map" => "object",
        "array" | "list" | "tuple" | "set" => "array",
        "null" | "none" | "nonetype" => "null",
        "any" => "",
        _ => return None,
    })
}

/// What the references of a schema may name besides JSON pointers.
#[derive(Default)]
pub(super) struct Anchors {
    /// The `$id` of the whole schema.
    id: Option<String>,
    /// From an anchor to its pointer.
    places: BTreeMap<String, String>,
    /// Parts have an `$id` too, which changes what references mean: nothing is rewritten.
    pub nested: bool,
}

impl Anchors {
    pub fn of(root: &Value) -> Self {
        let mut found = Self::default();
        found.collect(root, "");
        found
    }

    fn collect(&mut self, value: &Value, at: &str) {
        match value {
            Value::Object(map) => {
                if let Some(id) = map.get("$id").and_then(Value::as_str) {
                    if at.is_empty() {
                        self.id = Some(id.trim_end_matches('#').to_string());
                    } else {
                        self.nested = true;
                    }
                }
                for key in ["$anchor", "$dynamicAnchor"] {
                    if let Some(name) = map.get(key).and_then(Value::as_str) {
                        self.places.insert(name.to_string(), at.to_string());
                    }
                }
                map.iter().for_each(|(key, value)| self.collect(value, &below(at, key)));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, v)| self.collect(v, &below(at, &i.to_string())));
            }
            _ => {}
        }
    }

    /// `reference` as a pointer into the schema: `#/...`; None if it leads elsewhere.
    pub fn local(&self, reference: &str) -> Option<String> {
        let inner = match &self.id {
            Some(id) if !id.is_empty() && reference.starts_with(id.as_str()) => &reference[id.len()..],
            _ => reference,
        };
        if inner.is_empty() || inner == "#" {
            return Some("#".into());
        }
        let name = inner.strip_prefix('#')?;
        if name.starts_with('/') {
            return Some(inner.to_string());
        }
        self.places.get(name).map(|place| format!("#{place}"))
    }
}
