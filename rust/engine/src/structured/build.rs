//! From a grammar to its first mask.

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use super::worker::{self, Mask};
use crate::error::panic_text;

/// A compiled grammar at its beginning.
pub(super) struct Compiled {
    pub matcher: Box<Matcher>,
    pub first: Mask,
    /// Its vocabulary had slices.
    pub sliced: bool,
}

/// Bounds of what one request may hold.
pub(super) fn limit(factory: &mut ParserFactory) {
    *factory.quiet().limits_mut() = ParserLimits {
        // A state takes 1 to 2 kB.
        max_lexer_states: 30_000,
        initial_lexer_fuel: 500_000,
        verbose_errors: false,
        ..ParserLimits::default()
    };
}

/// Whether `schema` compiles; else why not.
pub(super) fn try_schema(factory: &ParserFactory, schema: Value) -> Result<(), String> {
    build(factory, false, TopLevelGrammar::from_json_schema(schema)).map(|_| ())
}

pub(super) fn build(
    factory: &ParserFactory,
    sliced: bool,
    grammar: TopLevelGrammar,
) -> Result<Compiled, String> {
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut matcher = Box::new(Matcher::new(factory.create_parser(grammar)));
        if let Some(why) = matcher.get_error() {
            return Err(short(&why));
        }
        let first = worker::mask(&mut matcher)?;
        if first.iter().all(|word| *word == 0) {
            return Err("no output could be valid".into());
        }
        Ok(Compiled { matcher, first, sliced })
    }));
    made.unwrap_or_else(|p| Err(panic_text(p)))
}

/// The first lines of a message, without a dump of the grammar.
fn short(text: &str) -> String {
    let lines: Vec<&str> = text.lines().take(3).map(str::trim).collect();
    lines.join(" ").chars().take(400).collect()
}
