//! Typed access to config.json: every getter names the key, the value and what is allowed.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::file_words;
use crate::json::parse_json;

/// Largest config.json that is read, in bytes. Real ones stay under 100 KB.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// A JSON object with the path that led to it, for messages.
#[derive(Clone, Copy)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
    /// Name of the file, for messages.
    file: &'a str,
}

/// Reads a JSON object from `path`, refusing oversize files.
pub fn read_json(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let meta = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
    let bad = |what: String| ModelError::corrupt(path.display().to_string(), what);
    if meta.len() > MAX_CONFIG_BYTES {
        return Err(bad(format!("{} bytes of JSON, at most {MAX_CONFIG_BYTES} are read", meta.len())));
    }
    let text = std::fs::read(path).map_err(|e| ModelError::io(path, e))?;
    if let Some(what) = file_words::pointer(&text) {
        return Err(ModelError::NotFound { path: path.to_path_buf(), what });
    }
    parse_json(&text).map_err(bad)
}

impl<'a> Config<'a> {
    /// Wraps the top level of a config.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self::of_file(map, "config.json")
    }

    /// Wraps the top level of another file of the folder.
    pub fn of_file(map: &'a Map<String, Value>, file: &'a str) -> Self {
        Self { map, path: "", file }
    }

    /// All keys.
    pub(crate) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The raw value, with null treated as absent.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True if the key is there, be it null.
    pub fn names(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// True if the key is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A nested object; `path` is its name in messages.
    pub fn object(&self, key: &'a str) -> Result<Option<Config<'a>>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config { map, path: key, file: self.file })),
            Some(v) => Err(self.bad(key, v, "an object is expected")),
        }
    }

    /// An integer of `range`; None if absent.
    pub fn int(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<usize>, ModelError> {
        let Some(v) = self.value(key) else { return Ok(None) };
        let whole =
            v.as_u64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match whole {
            Some(n) if range.contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.bad(
                key,
                v,
                format!("an integer from {} to {} is expected", range.start(), range.end()),
            )),
        }
    }

    /// An integer that must be there.
    pub fn need_int(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<usize, ModelError> {
        self.int(key, range)?.ok_or_else(|| self.bad(key, &Value::Null, "this key is required"))
    }

    /// A finite number in `(low, high]`; None if absent.
    pub fn float(&self, key: &str, low: f64, high: f64) -> Result<Option<f64>, ModelError> {
        let Some(v) = self.value(key) else { return Ok(None) };
        match v.as_f64() {
            Some(f) if f > low && f <= high => Ok(Some(f)),
            _ => Err(self.bad(key, v, format!("a number above {low} and at most {high} is expected"))),
        }
    }

    /// A number that must be there.
    pub fn need_float(&self, key: &str, low: f64, high: f64) -> Result<f64, ModelError> {
        self.float(key, low, high)?.ok_or_else(|| self.bad(key, &Value::Null, "this key is required"))
    }

    /// A boolean, or `default` if absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(self.bad(key, v, "true or false is expected")),
        }
    }

    /// A string; None if absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(self.bad(key, v, "a string is expected")),
        }
    }

    /// A list of strings; None if absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(v) = self.value(key) else { return Ok(None) };
        let list = v.as_array().and_then(|a| a.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.bad(key, v, "a list of strings is expected"))
    }

    /// An error about `key`, with its value shortened.
    pub fn bad(&self, key: &str, value: &Value, expected: impl Into<String>) -> ModelError {
        let mut shown = value.to_string();
        if shown.chars().count() > 80 {
            shown = shown.chars().take(77).chain("...".chars()).collect();
        }
        let key = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
        ModelError::BadConfig { file: self.file.to_string(), key, value: shown, expected: expected.into() }
    }
}
