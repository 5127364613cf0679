//! From the text of a schema, expression or grammar to a constraint; bounded in time, in memory and in number.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::Sender;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::Structure;
use super::attempts::{Attempt, Attempts};
use super::budget::{Budget, Structured};
use super::build::{Compiled, build};
use super::constraint::Constraint;
use super::preflight::{self, Checked};
use super::schema::{SchemaLoss, fit_schema};
use super::vocabulary::{Current, Vocabulary};
use super::worker::{self, Job};
use crate::EngineError;
use crate::tokenizer::Tokenizer;

/// How long a compilation may take.
const DEADLINE: Duration = Duration::from_millis(250);
/// Compiled grammars that are kept.
const MAX_CACHED: usize = 64;
/// Bytes of text of those that are kept.
const MAX_CACHED_BYTES: usize = 1 << 20;
/// Whitespace between the tokens of JSON: a space, or a new line and its indentation, as programs write it. With any
/// whitespace a weak model may write nothing else.
pub const JSON_WHITESPACE: &str = r"( |\n[ \t]{0,32})?";

/// Compiles for one tokenizer.
pub(crate) struct Compiler {
    vocabulary: Vocabulary,
    jobs: OnceLock<Result<Sender<Job>, EngineError>>,
    /// Most recently used last.
    cache: Mutex<VecDeque<(Structure, Arc<Mutex<Compiled>>)>>,
    attempts: Attempts,
}

impl Compiler {
    /// A compiler for a model with `vocab` tokens of which `eos` end an output.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: usize, eos: &[u32]) -> Self {
        Self {
            vocabulary: Vocabulary::new(tokenizer, vocab, eos),
            jobs: OnceLock::new(),
            cache: Mutex::new(VecDeque::new()),
            attempts: Attempts::default(),
        }
    }

    /// Compiles, unless that is done: what follows is quick.
    ///
    /// # Errors
    /// `InvalidRequest` for what is not valid, cannot be enforced, or takes too long; `QueueFull` while too many others
    /// take too long; `UnsupportedModel` for a tokenizer whose tokens have no bytes.
    pub fn check(&self, structured: &Structured) -> Result<(), EngineError> {
        match structured {
            Structured::Whole(structure) => self.compiled(structure).map(|_| ()),
            Structured::Budgeted(b) => {
                self.compiled(&b.output)?;
                self.compiled(&b.answer).map(|_| ())
            }
        }
    }

    /// A constraint at the beginning of an output of at most `max_tokens`.
    ///
    /// # Errors
    /// As `check`.
    pub fn constraint(&self, structured: &Structured, max_tokens: u32) -> Result<Constraint, EngineError> {
        match structured {
            Structured::Whole(structure) => self.begin(structure),
            Structured::Budgeted(b) => {
                let answer = self.compiled(&b.answer)?;
                let answer = answer.lock().unwrap_or_else(|e| e.into_inner()).matcher.deep_clone();
                Ok(self.begin(&b.output)?.limited(Budget::new(b, max_tokens), Box::new(answer)))
            }
        }
    }

    fn begin(&self, structure: &Structure) -> Result<Constraint, EngineError> {
        let jobs = self.jobs.get_or_init(|| {
            worker::start().map_err(|e| EngineError::EngineDead(format!("no thread for masks: {e}")))
        });
        let jobs = jobs.clone()?;
        let compiled = self.compiled(structure)?;
        let compiled = compiled.lock().unwrap_or_else(|e| e.into_inner());
        Ok(Constraint::new(Box::new(compiled.matcher.deep_clone()), compiled.first.clone(), jobs))
    }

    fn compiled(&self, structure: &Structure) -> Result<Arc<Mutex<Compiled>>, EngineError> {
        self.cached(structure).map_or_else(|| self.compile(structure), Ok)
    }

    fn cached(&self, structure: &Structure) -> Option<Arc<Mutex<Compiled>>> {
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        let place = cache.iter().position(|(key, _)| key == structure)?;
        let entry = cache.remove(place)?;
        let found = Arc::clone(&entry.1);
        let sliced = found.lock().unwrap_or_else(|e| e.into_inner()).sliced;
        if !sliced && self.vocabulary.is_sliced() {
            // Compiled again, its masks are cheaper.
            return None;
        }
        cache.push_back(entry);
        Some(found)
    }

    fn keep(&self, structure: &Structure, compiled: &Arc<Mutex<Compiled>>) {
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        cache.push_back((structure.clone(), Arc::clone(compiled)));
        let mut bytes: usize = cache.iter().map(|(key, _)| key.text().len()).sum();
        while cache.len() > MAX_CACHED || (bytes > MAX_CACHED_BYTES && cache.len() > 1) {
            let Some((key, _)) = cache.pop_front() else { break };
            bytes -= key.text().len();
        }
    }

    fn compile(&self, structure: &Structure) -> Result<Arc<Mutex<Compiled>>, EngineError> {
        let checked = preflight::check(structure)?;
        let Current { factory, sliced } = self.vocabulary.current()?;
        let (kind, grammar) = (structure.kind(), grammar(structure, checked));
        let refuse =
            |what: String| Err(EngineError::InvalidRequest(format!("structured: the {kind} {what}")));
        match self.attempts.run(DEADLINE, move || build(&factory, sliced, grammar))? {
            Attempt::Done(Ok(compiled)) => {
                let compiled = Arc::new(Mutex::new(compiled));
                self.keep(structure, &compiled);
                Ok(compiled)
            }
            Attempt::Done(Err(why)) => match fault(structure) {
                Some(loss) => refuse(format!("cannot be used: {loss}")),
                None => refuse(format!("cannot be used: {why}")),
            },
            Attempt::TooLong => {
                refuse(format!("takes more than {} ms to compile: simplify it", DEADLINE.as_millis()))
            }
            Attempt::Broken => refuse("broke the compiler".into()),
        }
    }
}

/// The part of a schema that does not compile.
fn fault(structure: &Structure) -> Option<SchemaLoss> {
    let Structure::JsonSchema { text, closed } = structure else { return None };
    fit_schema(text, *closed).ok()?.losses.into_iter().next()
}

fn grammar(structure: &Structure, checked: Checked) -> TopLevelGrammar {
    match (structure, checked) {
        (_, Checked::Schema(schema)) => TopLevelGrammar::from_json_schema(spaced(schema)),
        (Structure::Regex(text), _) => TopLevelGrammar::from_regex(text),
        (_, Checked::Grammar(text)) => TopLevelGrammar::from_lark(text),
        (other, Checked::Pattern) => TopLevelGrammar::from_lark(other.text().into()),
    }
}

/// A schema with the white space that its documents may have.
fn spaced(schema: Value) -> Value {
    let space = json!({"whitespace_pattern": JSON_WHITESPACE});
    match schema {
        Value::Object(mut map) => {
            map.insert("x-guidance".into(), space);
            Value::Object(map)
        }
        // true: anything; false: nothing.
        other => json!({"allOf": [other], "x-guidance": space}),
    }
}
