//! Loosening: the parts of a schema that the compiler does not take become wider, until it takes the whole.

use std::collections::{BTreeSet, HashSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use llguidance::ParserFactory;
use llguidance::toktrie::ApproximateTokEnv;
use serde_json::{Map, Value, json};

use super::closing::close;
use super::loss::SchemaLoss;
use super::normal::normalize;
use crate::EngineError;
use crate::structured::attempts::{Attempt, Attempts};
use crate::structured::pointers::{below, pointer_of};
use crate::structured::{bounds, build};

/// Longest search for what the compiler does not take, and most questions to it.
const PATIENCE: Duration = Duration::from_millis(400);
const MAX_QUESTIONS: usize = 300;
/// How long the last question may take.
const GRACE: Duration = Duration::from_millis(250);
/// What may be left out, in this order, until the rest is taken.
const DISPENSABLE: [&str; 26] = [
    "pattern",
    "format",
    "multipleOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "patternProperties",
    "enum",
    "const",
    "allOf",
    "oneOf",
    "anyOf",
    "$ref",
    "required",
    "additionalProperties",
    "additionalItems",
    "prefixItems",
    "items",
    "properties",
];
const ANNOTATIONS: [&str; 2] = ["title", "description"];

/// A schema that the compiler takes.
pub struct FittedSchema {
    /// The schema.
    pub schema: Value,
    /// What the grammar does not hold: it is wider there than the schema.
    pub losses: Vec<SchemaLoss>,
    /// Formats that hold nothing, because they are annotations.
    pub formats: BTreeSet<String>,
}

/// The nearest schema to the JSON text `text` that the compiler takes.
///
/// # Errors
/// `InvalidRequest` for a text that is no schema, or too large to try.
pub fn fit_schema(text: &str, closed: bool) -> Result<FittedSchema, EngineError> {
    let mut given = bounds::read_schema(text)?;
    without_ids(&mut given, true);
    let mut read = normalize(given);
    loop {
        match bounds::bounded("schema", &read.schema) {
            Ok(()) => break,
            Err(_) => {
                let found = bounds::uncounted(&mut read.schema);
                read.losses.extend(found.into_iter().map(|(pointer, keyword)| {
                    let why = "takes too large an automaton with others".into();
                    SchemaLoss { pointer, keyword, why }
                }));
            }
        }
    }
    if closed {
        close(&mut read.schema);
    }
    let schema = read.schema.clone();
    let (schema, losses) = match attempts().run(PATIENCE + GRACE, move || Loosener::new(schema).run())? {
        Attempt::Done(found) => found,
        // The compiler was lost in one question.
        Attempt::TooLong | Attempt::Broken => {
            let why = "takes too long to compile".to_string();
            (
                json!({"type": "object"}),
                vec![SchemaLoss { pointer: String::new(), keyword: String::new(), why }],
            )
        }
    };
    read.losses.extend(losses);
    Ok(FittedSchema { schema, losses: read.losses, formats: read.formats })
}

/// Where the working schema stands: any part of it can then be compiled alone.
const PLACE: &str = "/$defs/whole";

struct Loosener {
    /// `{"$defs": {"whole": ...}}`, with references into it.
    document: Value,
    losses: Vec<SchemaLoss>,
    tried: HashSet<String>,
    questions: usize,
    until: Instant,
}

impl Loosener {
    fn new(mut schema: Value) -> Self {
        move_references(&mut schema, |reference| {
            pointer_of(reference).map(|_| format!("#{PLACE}{}", reference.trim_start_matches('#')))
        });
        Self {
            document: json!({"$defs": {"whole": schema}}),
            losses: Vec::new(),
            tried: HashSet::new(),
            questions: 0,
            until: Instant::now() + PATIENCE,
        }
    }

    /// The schema that fits, and what it leaves out.
    fn run(mut self) -> (Value, Vec<SchemaLoss>) {
        if self.fits("").is_err() {
            self.each_alone();
        }
        if self.fits("").is_err() {
            self.part("");
        }
        let mut schema = self.document.pointer_mut(PLACE).map(Value::take).unwrap_or(Value::Bool(true));
        move_references(&mut schema, |reference| {
            reference.strip_prefix(&format!("#{PLACE}")).map(|rest| format!("#{rest}"))
        });
        (schema, self.losses)
    }

    fn node(&self, at: &str) -> Option<&Value> {
        self.document.pointer(&format!("{PLACE}{at}"))
    }

    fn node_mut(&mut self, at: &str) -> Option<&mut Value> {
        self.document.pointer_mut(&format!("{PLACE}{at}"))
    }

    /// Whether the compiler takes the part at `at`; else why not.
    fn fits(&mut self, at: &str) -> Result<(), String> {
        let mut document = self.document.clone();
        if let Value::Object(map) = &mut document {
            map.insert("$ref".into(), format!("#{PLACE}{}", escaped(at)).into());
        }
        self.takes(document)
    }

    /// Whether the compiler takes `schema`; else why not.
    fn takes(&mut self, schema: Value) -> Result<(), String> {
        self.questions += 1;
        if self.questions > MAX_QUESTIONS || Instant::now() > self.until {
            return Err("takes too long to compile".into());
        }
        let taken = build::try_schema(byte_factory()?, schema);
        taken.map_err(|why| format!("is not held: {}", reason(&why)))
    }

    /// Loosens every part that does not fit even without the schemas inside it.
    fn each_alone(&mut self) {
        let mut seen = HashSet::from([String::new()]);
        let mut open = vec![String::new()];
        while let Some(at) = open.pop() {
            let within = self.children(&at).into_iter().filter(|child| seen.insert(child.clone()));
            open.extend(within.collect::<Vec<_>>());
            let Some(Value::Object(whole)) = self.node(&at).cloned() else { continue };
            let own = alone(&whole);
            let Err(why) = self.takes(Value::Object(own.clone())) else { continue };
            let least = DISPENSABLE.into_iter().find(|key| {
                let mut rest = own.clone();
                rest.shift_remove(*key).is_some() && self.takes(Value::Object(rest)).is_ok()
            });
            // What no single keyword explains is left to the search through whole parts.
            if let Some(key) = least
                && let Some(Value::Object(map)) = self.node_mut(&at)
            {
                map.shift_remove(key);
                self.lose(&at, key, &why);
            }
        }
    }

    fn lose(&mut self, at: &str, keyword: &str, why: &str) {
        let loss = SchemaLoss { pointer: at.into(), keyword: keyword.into(), why: why.into() };
        self.losses.push(loss);
    }

    /// Loosens the part at `at`, which does not fit.
    fn part(&mut self, at: &str) {
        if !self.tried.insert(at.into()) {
            return;
        }
        for child in self.children(at) {
            if self.node(&child).is_some() && self.fits(&child).is_err() {
                self.part(&child);
            }
        }
        let Err(why) = self.fits(at) else { return };
        if self.one_of(at) || self.without_a_keyword(at, &why) {
            return;
        }
        let kind = self.node(at).and_then(|node| node.get("type")).cloned();
        let Some(node) = self.node_mut(at) else { return };
        let mut wide = Map::new();
        for key in ANNOTATIONS {
            wide.extend(node.get(key).cloned().map(|text| (key.to_string(), text)));
        }
        if let Some(kind) = kind {
            wide.insert("type".into(), kind);
        } else if at.is_empty() {
            wide.insert("type".into(), "object".into());
        }
        let defs: Vec<(String, Value)> = ["$defs", "definitions"]
            .iter()
            .filter_map(|key| node.get(*key).cloned().map(|parts| ((*key).to_string(), parts)))
            .collect();
        wide.extend(defs);
        *node = Value::Object(wide);
        self.lose(at, "", &why);
    }

    /// Alternatives that may overlap are held as `anyOf`.
    fn one_of(&mut self, at: &str) -> bool {
        let Some(Value::Object(map)) = self.node_mut(at) else { return false };
        if map.contains_key("anyOf") {
            return false;
        }
        let Some(ways) = map.shift_remove("oneOf") else { return false };
        map.insert("anyOf".into(), ways);
        if self.fits(at).is_ok() {
            self.lose(at, "oneOf", "has alternatives that may overlap, and is held as anyOf");
            return true;
        }
        if let Some(Value::Object(map)) = self.node_mut(at)
            && let Some(ways) = map.shift_remove("anyOf")
        {
            map.insert("oneOf".into(), ways);
        }
        false
    }

    fn without_a_keyword(&mut self, at: &str, why: &str) -> bool {
        let Some(Value::Object(whole)) = self.node(at).cloned() else { return false };
        for key in DISPENSABLE {
            if !whole.contains_key(key) || (key == "properties" && whole.len() < 3) {
                continue;
            }
            let mut rest = whole.clone();
            rest.shift_remove(key);
            if let Some(node) = self.node_mut(at) {
                *node = Value::Object(rest);
            }
            if self.fits(at).is_ok() {
                self.lose(at, key, why);
                return true;
            }
        }
        if let Some(node) = self.node_mut(at) {
            *node = Value::Object(whole);
        }
        false
    }

    /// Pointers of the schemas that are parts of the one at `at`.
    fn children(&self, at: &str) -> Vec<String> {
        let Some(Value::Object(map)) = self.node(at) else { return Vec::new() };
        let mut found = Vec::new();
        if let Some(reference) = map.get("$ref").and_then(Value::as_str)
            && let Some(pointer) = pointer_of(reference)
            && let Some(rest) = pointer.strip_prefix(PLACE)
        {
            found.push(rest.to_string());
        }
        for key in ["properties", "patternProperties"] {
            let parts = map.get(key).and_then(Value::as_object);
            found.extend(parts.into_iter().flat_map(|p| p.keys()).map(|name| below(&below(at, key), name)));
        }
        for key in
            ["items", "additionalItems", "additionalProperties", "prefixItems", "allOf", "anyOf", "oneOf"]
        {
            match map.get(key) {
                Some(Value::Array(parts)) => {
                    found.extend((0..parts.len()).map(|i| below(&below(at, key), &i.to_string())));
                }
                Some(Value::Object(_)) => found.push(below(at, key)),
                _ => {}
            }
        }
        found
    }
}

/// A schema without the schemas inside it.
fn alone(map: &Map<String, Value>) -> Map<String, Value> {
    let mut own = map.clone();
    for key in
        ["$ref", "allOf", "anyOf", "oneOf", "items", "additionalItems", "prefixItems", "$defs", "definitions"]
    {
        own.shift_remove(key);
    }
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(parts)) = own.get_mut(key) {
            parts.values_mut().for_each(|part| *part = Value::Bool(true));
        }
    }
    if own.get("additionalProperties").is_some_and(Value::is_object) {
        own.insert("additionalProperties".into(), Value::Bool(true));
    }
    own
}

/// The first words of the compiler.
fn reason(why: &str) -> String {
    let end = why.find(" while processing").unwrap_or(why.len());
    let end = why.find(" <backtrace>").unwrap_or(end).min(end);
    why[..end].chars().take(120).collect()
}

/// Leaves out the `$id` of each part: references then lead from the top, and those that do not are reported.
fn without_ids(value: &mut Value, top: bool) {
    match value {
        Value::Object(map) => {
            if !top && map.get("$id").is_some_and(Value::is_string) {
                map.shift_remove("$id");
            }
            map.values_mut().for_each(|part| without_ids(part, false));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| without_ids(part, false)),
        _ => {}
    }
}

/// A pointer as a part of a reference.
fn escaped(pointer: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/~-_.$".contains(&b);
    pointer.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn move_references(value: &mut Value, to: impl Fn(&str) -> Option<String> + Copy) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(moved) = to(reference)
            {
                *reference = moved;
            }
            map.values_mut().for_each(|part| move_references(part, to));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| move_references(part, to)),
        _ => {}
    }
}

/// The compiler for a tokenizer of single bytes: whether a schema compiles does not depend on the tokens.
fn byte_factory() -> Result<&'static ParserFactory, String> {
    static FACTORY: OnceLock<Result<ParserFactory, String>> = OnceLock::new();
    let made = FACTORY.get_or_init(|| {
        let mut factory =
            ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).map_err(|e| e.to_string())?;
        build::limit(&mut factory);
        Ok(factory)
    });
    made.as_ref().map_err(Clone::clone)
}

fn attempts() -> &'static Attempts {
    static ATTEMPTS: OnceLock<Attempts> = OnceLock::new();
    ATTEMPTS.get_or_init(Attempts::default)
}
