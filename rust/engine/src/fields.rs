//! Structs from JSON objects of callers, with errors that name the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::EngineError;

/// A field that has the wrong type or is not defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Name of the field.
    pub name: String,
    /// The expected value, as a sentence.
    pub expected: String,
}

impl FieldError {
    /// The error for the caller; `shown` is the value as the caller wrote it.
    pub fn with_value(&self, shown: &str) -> EngineError {
        let mut shown = shown.to_string();
        if shown.chars().count() > 80 {
            shown = shown.chars().take(77).chain("...".chars()).collect();
        }
        EngineError::InvalidRequest(format!("{} is {shown}: {}", self.name, self.expected))
    }
}

/// Reads a struct whose fields all have defaults. A null takes the default.
///
/// # Errors
/// Names the first field that `T` does not accept.
pub fn read_fields<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, FieldError> {
    let read = |map: Map<String, Value>| serde_json::from_value::<T>(Value::Object(map));
    let given = fields.iter().filter(|(_, value)| !value.is_null()).map(|(n, v)| (n.clone(), v.clone()));
    let error = match read(given.clone().collect()) {
        Ok(all) => return Ok(all),
        Err(error) => error,
    };
    for (name, value) in given {
        if let Err(e) = read(Map::from_iter([(name.clone(), value)])) {
            return Err(FieldError { name, expected: expectation(&e.to_string()) });
        }
    }
    Err(FieldError { name: String::new(), expected: error.to_string() })
}

/// serde's message as a sentence for a user: its part behind "expected", in words of Python.
fn expectation(message: &str) -> String {
    if let Some((_, known)) =
        message.strip_prefix("unknown field ").and_then(|m| m.split_once(", expected one of "))
    {
        return format!("there is no such field. Known are: {}", known.replace('`', ""));
    }
    let Some((_, kind)) = message.rsplit_once("expected ") else { return message.to_string() };
    let words = match kind {
        // Of a negative number; a limit above 0 is the limit's own check.
        "u32" | "usize" | "u64" if message.starts_with("invalid value") => "an integer from 0 on",
        "u32" | "usize" | "u64" => "an integer",
        "i32" => "an integer of 32 bits",
        "i64" => "an integer of 64 bits",
        "i128" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "True or False",
        "a sequence" => "a list",
        "a map" => "a dict",
        other => other,
    };
    format!("{words} is expected")
}
