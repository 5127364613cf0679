//! The static walk: what has the same meaning in other words is rewritten, what no grammar holds is reported.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value, json};

use super::equal;
use super::formats::{TextFormat, text_format};
use super::keywords::{constrains, has_applicators, is_of, says_all, says_nothing};
use super::loss::{Normalized, SchemaLoss};
use super::names::{Anchors, NULLABLE, UNHELD, type_alias};
use crate::structured::bounds;
use crate::structured::pointers::{below, pointer_of, target};

const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
/// Most bytes of schemas that are copied, each for several names.
const MAX_COPIED: usize = 256 << 10;
const NO_GRAMMAR: &str = "is held by no grammar here";

/// Rewrites `schema`; what the compiler cannot hold is left out and reported.
pub(in crate::structured) fn normalize(schema: Value) -> Normalized {
    Normalizer::new(&schema).run(schema.clone())
}

struct Normalizer<'a> {
    /// The schema as it was given.
    root: &'a Value,
    anchors: Anchors,
    losses: Vec<SchemaLoss>,
    formats: BTreeSet<String>,
    /// Pointers of schemas that were walked, and those that references lead to.
    walked: HashSet<String>,
    wanted: Vec<String>,
    /// Bytes of schemas that were copied.
    copied: usize,
}

impl<'a> Normalizer<'a> {
    pub fn new(root: &'a Value) -> Self {
        Self {
            root,
            anchors: Anchors::of(root),
            losses: Vec::new(),
            formats: BTreeSet::new(),
            walked: HashSet::new(),
            wanted: Vec::new(),
            copied: 0,
        }
    }

    pub fn run(mut self, mut schema: Value) -> Normalized {
        self.schema(&mut schema, "");
        if !self.anchors.nested
            && let Value::Object(map) = &mut schema
        {
            map.shift_remove("$id");
        }
        // References may lead to schemas in places that are no keyword's.
        while let Some(pointer) = self.wanted.pop() {
            if !self.walked.contains(&pointer)
                && let Some(part) = schema.pointer_mut(&pointer)
            {
                let mut taken = part.take();
                self.schema(&mut taken, &pointer);
                if let Some(part) = schema.pointer_mut(&pointer) {
                    *part = taken;
                }
            }
        }
        Normalized { schema, losses: self.losses, formats: self.formats }
    }

    fn lose(&mut self, at: &str, keyword: &str, why: impl Into<String>) {
        self.losses.push(SchemaLoss { pointer: at.into(), keyword: keyword.into(), why: why.into() });
    }

    /// Leaves out a keyword, if the schema has it.
    fn drop(&mut self, map: &mut Map<String, Value>, keyword: &str, at: &str, why: &str) {
        if map.shift_remove(keyword).is_some() {
            self.lose(at, keyword, why);
        }
    }

    fn schema(&mut self, value: &mut Value, at: &str) {
        self.walked.insert(at.into());
        match value {
            Value::Bool(_) => {}
            Value::Object(map) => {
                if map.get("not").is_some_and(says_all) {
                    // Nothing is valid.
                    *value = Value::Bool(false);
                } else {
                    self.object(map, at);
                }
            }
            _ => {
                self.lose(at, "", "is no schema");
                *value = Value::Bool(true);
            }
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, at: &str) {
        map.retain(|key, value| !(value.is_null() && NULLABLE.contains(&key.as_str())));
        if !self.anchors.nested {
            map.shift_remove("$anchor");
        }
        self.types(map, at);
        self.numbers(map, at);
        self.texts(map, at);
        self.lists(map, at);
        self.unheld(map, at);
        self.reference(map, at);
        self.children(map, at);
        if let Some(Value::Array(ways)) = map.get("oneOf")
            && !map.contains_key("anyOf")
            && equal::exclusive(self.root, ways)
            && let Some(ways) = map.shift_remove("oneOf")
        {
            map.insert("anyOf".into(), ways);
        }
    }

    fn types(&mut self, map: &mut Map<String, Value>, at: &str) {
        let Some(kinds) = map.get_mut("type") else { return };
        let mut names: Vec<&mut Value> = match kinds {
            Value::Array(many) => many.iter_mut().collect(),
            one => vec![one],
        };
        let mut odd = None;
        for name in &mut names {
            let known =
                name.as_str().and_then(|text| type_alias(text).map(|alias| (text.to_string(), alias)));
            match known {
                Some((text, alias)) if text == alias => {}
                Some((_, alias)) if !alias.is_empty() => {
                    odd = odd.or(Some(format!("is {name}, read as {alias:?}")));
                    **name = Value::from(alias);
                }
                _ => {
                    self.drop(map, "type", at, "is no type of JSON");
                    return;
                }
            }
        }
        if names.is_empty() {
            self.drop(map, "type", at, "names no type");
        } else if let Some(why) = odd {
            self.lose(at, "type", why);
        }
    }

    fn numbers(&mut self, map: &mut Map<String, Value>, at: &str) {
        for key in bounds::COUNTS {
            if map.get(key).is_some_and(|count| count.as_u64().is_none_or(|n| n > bounds::MAX_COUNT)) {
                let why = format!("is no count up to {}", bounds::MAX_COUNT);
                self.drop(map, key, at, &why);
            }
        }
        for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            let draft4 = key.starts_with("ex") && map.get(key).is_some_and(Value::is_boolean);
            if !draft4 && map.get(key).is_some_and(|bound| !bound.is_number()) {
                self.drop(map, key, at, "is no number");
            }
            // The compiler counts in 64 bits.
            let far = |bound: f64| bound <= -TWO_TO_63 || bound > TWO_TO_63;
            if map.get("type").is_some_and(|kind| kind == "integer")
                && map.get(key).and_then(Value::as_f64).is_some_and(far)
            {
                self.drop(map, key, at, "is beyond the integers of 64 bits");
            }
        }
        let step = map.get("multipleOf").map(|step| step.as_f64().unwrap_or(0.0));
        if step.is_some_and(|step| step <= 0.0 || bounds::states(step) > bounds::MAX_MULTIPLE) {
            self.drop(map, "multipleOf", at, "takes too large an automaton");
        }
    }

    fn texts(&mut self, map: &mut Map<String, Value>, at: &str) {
        match map.get("pattern") {
            Some(Value::String(pattern)) if bounds::pattern_text("schema", pattern).is_ok() => {}
            Some(Value::String(_)) => self.drop(map, "pattern", at, "is too long or repeats too often"),
            Some(_) => self.drop(map, "pattern", at, "is no text"),
            None => {}
        }
        let Some(format) = map.get("format") else { return };
        let Some(name) = format.as_str() else { return self.drop(map, "format", at, "is no text") };
        match text_format(name) {
            TextFormat::Compiler => {}
            TextFormat::Annotation => {
                self.formats.insert(name.chars().take(64).collect());
                map.shift_remove("format");
            }
            TextFormat::Pattern(pattern) => {
                map.shift_remove("format");
                if map.contains_key("pattern") {
                    let all = map.entry("allOf").or_insert_with(|| json!([]));
                    if let Some(all) = all.as_array_mut() {
                        all.push(json!({"pattern": pattern}));
                    }
                } else {
                    map.insert("pattern".into(), pattern.into());
                }
            }
        }
    }

    fn lists(&mut self, map: &mut Map<String, Value>, at: &str) {
        if let Some(Value::Array(names)) = map.get_mut("required") {
            let before = names.len();
            names.retain(Value::is_string);
            if names.len() < before {
                self.lose(at, "required", "has entries that are no names");
            }
        } else {
            self.drop(map, "required", at, "is no list of names");
        }
        if map.get("enum").is_some_and(|few| few.as_array().is_none_or(Vec::is_empty)) {
            self.drop(map, "enum", at, "lists no values");
        }
        if let (Some(kind), Some(few)) = (map.get("type"), map.get("enum").and_then(Value::as_array))
            && !few.iter().any(|value| is_of(value, kind))
        {
            self.drop(map, "enum", at, "has no value of its type");
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            if map.get(key).is_some_and(|ways| ways.as_array().is_none_or(Vec::is_empty)) {
                self.drop(map, key, at, "lists no schemas");
            }
        }
        if map.get("prefixItems").is_some_and(|items| !items.is_array()) {
            self.drop(map, "prefixItems", at, "is no list of schemas");
        }
        for key in ["properties", "patternProperties", "$defs", "definitions"] {
            if map.get(key).is_some_and(|parts| !parts.is_object()) {
                self.drop(map, key, at, "is no object of schemas");
            }
        }
        if let Some(Value::Object(patterns)) = map.get("patternProperties")
            && patterns.keys().any(|pattern| bounds::pattern_text("schema", pattern).is_err())
        {
            self.drop(map, "patternProperties", at, "has a pattern that is too long or repeats too often");
        }
    }

    fn unheld(&mut self, map: &mut Map<String, Value>, at: &str) {
        self.property_names(map);
        if map.get("unevaluatedProperties") == Some(&Value::Bool(false)) && !has_applicators(map) {
            map.shift_remove("unevaluatedProperties");
            map.entry("additionalProperties").or_insert(Value::Bool(false));
        }
        let nothing: Vec<&str> = UNHELD
            .into_iter()
            .filter(|key| map.get(*key).is_some_and(|v| says_nothing(key, v, map)))
            .collect();
        for key in nothing {
            map.shift_remove(key);
        }
        for key in UNHELD {
            self.drop(map, key, at, NO_GRAMMAR);
        }
    }

    /// Names from a list, or under a pattern: the same as properties of those names.
    fn property_names(&mut self, map: &mut Map<String, Value>) {
        if map.contains_key("properties") || map.contains_key("patternProperties") {
            return;
        }
        let Some(Value::Object(names)) = map.get("propertyNames") else { return };
        let names = match names.get("$ref").and_then(Value::as_str) {
            Some(reference) if names.len() == 1 => match target(self.root, reference) {
                Some(Value::Object(names)) => names,
                _ => return,
            },
            _ => names,
        };
        let held = |key: &str| matches!(key, "enum" | "const" | "pattern" | "type") || !constrains(key);
        if names.get("type").is_some_and(|kind| kind != "string") || !names.keys().all(|key| held(key)) {
            return;
        }
        let value = map.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        let few = names.get("const").map(|one| vec![one.clone()]);
        let few = few.or_else(|| names.get("enum").and_then(Value::as_array).cloned());
        self.copied += few.as_ref().map_or(0, |few| few.len() * value.to_string().len());
        if self.copied > MAX_COPIED {
            return;
        }
        let (key, parts): (&str, Map<String, Value>) =
            match (few, names.get("pattern").and_then(Value::as_str)) {
                (Some(few), None) => {
                    let texts = few.iter().filter_map(Value::as_str);
                    ("properties", texts.map(|name| (name.to_string(), value.clone())).collect())
                }
                (None, Some(pattern)) => {
                    ("patternProperties", [(pattern.to_string(), value)].into_iter().collect())
                }
                _ => return,
            };
        map.shift_remove("propertyNames");
        map.insert(key.into(), Value::Object(parts));
        map.insert("additionalProperties".into(), Value::Bool(false));
    }

    fn reference(&mut self, map: &mut Map<String, Value>, at: &str) {
        let Some(reference) = map.get("$ref") else { return };
        if self.anchors.nested {
            return;
        }
        let local = reference.as_str().and_then(|text| self.anchors.local(text));
        let pointer = local.as_deref().and_then(pointer_of).filter(|p| self.root.pointer(p).is_some());
        match (local, pointer) {
            (Some(local), Some(pointer)) => {
                map.insert("$ref".into(), local.into());
                self.wanted.push(pointer);
            }
            _ => self.drop(map, "$ref", at, "leads to no part of the schema"),
        }
    }

    fn children(&mut self, map: &mut Map<String, Value>, at: &str) {
        for key in ["properties", "patternProperties", "$defs", "definitions"] {
            let place = below(at, key);
            for (name, part) in map.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten() {
                self.schema(part, &below(&place, name));
            }
        }
        for key in
            ["items", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf", "prefixItems"]
        {
            let place = below(at, key);
            match map.get_mut(key) {
                Some(Value::Array(parts)) => {
                    for (i, part) in parts.iter_mut().enumerate() {
                        self.schema(part, &below(&place, &i.to_string()));
                    }
                }
                Some(part) => self.schema(part, &place),
                None => {}
            }
        }
    }
}
