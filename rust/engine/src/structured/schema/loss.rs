//! What a rewritten schema leaves out.

use std::collections::BTreeSet;

use serde_json::Value;

/// A part of a schema that no grammar holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaLoss {
    /// JSON pointer to the schema that has the keyword.
    pub pointer: String,
    /// Empty: the whole part.
    pub keyword: String,
    /// What the compiler says.
    pub why: String,
}

impl std::fmt::Display for SchemaLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.pointer.is_empty() { "its top" } else { &self.pointer };
        if self.keyword.is_empty() {
            write!(f, "the schema at {place} {}", self.why)
        } else {
            write!(f, "{:?} at {place} {}", self.keyword, self.why)
        }
    }
}

/// A schema in the compiler's words.
pub(in crate::structured) struct Normalized {
    pub schema: Value,
    pub losses: Vec<SchemaLoss>,
    /// Names of formats that are annotations here: they hold nothing.
    pub formats: BTreeSet<String>,
}
