//! Objects that take no properties but their own. A schema without `additionalProperties` allows any, and models then
//! invent some.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::structured::pointers::{below, pointer_of};

/// Most rounds until every schema is found that other schemas add properties to.
const MAX_ROUNDS: usize = 16;

/// Closes each object that names its properties and does not say what becomes of others.
///
/// An object stays open where several schemas hold for the same value: one would forbid the properties of the other.
pub(in crate::structured) fn close(schema: &mut Value) {
    let mut closing = Closing { joined: HashSet::new(), found: HashSet::new(), write: false };
    for _ in 0..MAX_ROUNDS {
        closing.walk(schema, "", false);
        if closing.found.is_subset(&closing.joined) {
            closing.write = true;
            closing.walk(schema, "", false);
            return;
        }
        closing.joined.extend(std::mem::take(&mut closing.found));
    }
}

struct Closing {
    /// Pointers that references from joined schemas lead to.
    joined: HashSet<String>,
    found: HashSet<String>,
    /// Whether this round closes objects.
    write: bool,
}

impl Closing {
    /// `joined`: another schema holds for the same value.
    fn walk(&mut self, value: &mut Value, at: &str, joined: bool) {
        let Value::Object(map) = value else { return };
        let joined = joined || self.joined.contains(at);
        let own = describes(map);
        let in_place: Vec<&str> =
            ["allOf", "anyOf", "oneOf", "$ref"].into_iter().filter(|key| map.contains_key(*key)).collect();
        let several = map.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        let shared = joined || own || in_place.len() > 1 || several;
        if let Some(pointer) = map.get("$ref").and_then(Value::as_str).and_then(pointer_of)
            && shared
        {
            self.found.insert(pointer);
        }
        let others = in_place.iter().any(|key| map.get(*key).is_some_and(may_describe));
        if self.write && own && !joined && !others && !map.contains_key("additionalProperties") {
            shut(map);
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            self.each(map.get_mut(key), &below(at, key), shared);
        }
        for key in ["prefixItems", "items", "additionalItems", "additionalProperties"] {
            match map.get_mut(key) {
                Some(part @ Value::Object(_)) => self.walk(part, &below(at, key), false),
                parts => self.each(parts, &below(at, key), false),
            }
        }
        for key in ["properties", "patternProperties", "$defs", "definitions"] {
            let place = below(at, key);
            for (name, part) in map.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten() {
                self.walk(part, &below(&place, name), false);
            }
        }
    }

    fn each(&mut self, parts: Option<&mut Value>, at: &str, joined: bool) {
        for (i, part) in parts.and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            self.walk(part, &below(at, &i.to_string()), joined);
        }
    }
}

/// Whether a schema names properties.
fn describes(map: &Map<String, Value>) -> bool {
    map.get("properties").is_some_and(Value::is_object)
}

/// Whether a part that holds for the same value may name properties.
fn may_describe(part: &Value) -> bool {
    match part {
        Value::Object(map) => {
            describes(map)
                || map.contains_key("patternProperties")
                || ["$ref", "allOf", "anyOf", "oneOf"]
                    .iter()
                    .any(|key| map.get(*key).is_some_and(may_describe))
        }
        Value::Array(parts) => parts.iter().any(may_describe),
        Value::String(_) => true,
        _ => false,
    }
}

/// Forbids other properties; those that are required without a schema keep one.
fn shut(map: &mut Map<String, Value>) {
    if map.contains_key("patternProperties") {
        return;
    }
    let needed: Vec<String> = map
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(String::from))
        .collect();
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        for name in needed {
            properties.entry(name).or_insert_with(|| json!(true));
        }
    }
    map.insert("additionalProperties".into(), json!(false));
}
