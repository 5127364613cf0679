//! Outputs that are valid by construction. A JSON schema, a regular expression or a Lark grammar decides which tokens may
//! come next. llguidance parses: an Earley parser over a lazily derived lexer.
//!
//! `Compiler` checks and compiles in the caller's thread, against the clock, and keeps what it compiled. `Constraint` is
//! the state of one sample; the mask for its next token is computed on a worker thread while the model's step runs.

mod attempts;
mod bounds;
mod budget;
mod build;
mod compiler;
mod constraint;
mod pointers;
mod preflight;
mod schema;
mod vocabulary;
mod worker;

pub use budget::{Budgeted, Structured};
pub(crate) use compiler::Compiler;
pub use compiler::JSON_WHITESPACE;
pub(crate) use constraint::{Constraint, Progress};
pub use schema::{FittedSchema, SchemaLoss, fit_schema};

/// What an output must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "(String, String)")]
pub enum Structure {
    /// A JSON schema, draft 2020-12. What it cannot enforce is refused, not skipped.
    JsonSchema {
        /// The schema's text.
        text: String,
        /// Objects that name their properties take no others, unless `additionalProperties` says so.
        closed: bool,
    },
    /// A regular expression (of Rust's regex crate) that the whole output matches.
    Regex(String),
    /// A grammar in llguidance's form of Lark, which may hold `%json` schemas.
    Lark(String),
}

impl Structure {
    /// The name of the kind, as in the Python API.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema { .. } => "json_schema",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "grammar",
        }
    }

    fn text(&self) -> &str {
        let (Self::JsonSchema { text, .. } | Self::Regex(text) | Self::Lark(text)) = self;
        text
    }
}

impl TryFrom<(String, String)> for Structure {
    type Error = &'static str;

    /// From a kind's name and its text.
    fn try_from((kind, text): (String, String)) -> Result<Self, Self::Error> {
        match kind.as_str() {
            "json_schema" => Ok(Self::JsonSchema { text, closed: true }),
            "open_json_schema" => Ok(Self::JsonSchema { text, closed: false }),
            "regex" => Ok(Self::Regex(text)),
            "grammar" => Ok(Self::Lark(text)),
            _ => Err("expected JsonSchema, Regex or Grammar"),
        }
    }
}

#[cfg(test)]
mod tests;
