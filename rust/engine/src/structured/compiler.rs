//! From the text of a schema, expression or grammar to a constraint; bounded in time, in memory and in number.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::constraint::Constraint;
use super::vocabulary::{Current, Vocabulary};
use super::worker::{self, Job, Mask};
use super::{Structure, preflight};
use crate::EngineError;
use crate::error::panic_text;
use crate::tokenizer::Tokenizer;

/// How long a compilation may take.
const DEADLINE: Duration = Duration::from_millis(250);
/// Compilations that may still run after their deadline; more are refused until one of them has ended.
const MAX_RUNNING: usize = 4;
/// Compiled grammars that are kept.
const MAX_CACHED: usize = 64;
/// Bytes of text of those that are kept.
const MAX_CACHED_BYTES: usize = 1 << 20;
/// Whitespace between the tokens of JSON: a space, or a new line and its indentation, as programs write it. With any
/// whitespace a weak model may write nothing else.
const WHITESPACE: &str = r"( |\n[ \t]{0,32})?";

/// A compiled grammar at its beginning.
struct Compiled {
    matcher: Box<Matcher>,
    first: Mask,
    /// Its vocabulary had slices.
    sliced: bool,
}

/// Compiles for one tokenizer.
pub(crate) struct Compiler {
    vocabulary: Vocabulary,
    jobs: OnceLock<Result<Sender<Job>, EngineError>>,
    /// Most recently used last.
    cache: Mutex<VecDeque<(Structure, Arc<Mutex<Compiled>>)>>,
    running: Arc<AtomicUsize>,
}

/// Counts a running compilation, whatever becomes of it.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Compiler {
    /// A compiler for a model with `vocab` tokens of which `eos` end an output.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: usize, eos: &[u32]) -> Self {
        Self {
            vocabulary: Vocabulary::new(tokenizer, vocab, eos),
            jobs: OnceLock::new(),
            cache: Mutex::new(VecDeque::new()),
            running: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Compiles, unless that is done: what follows is quick.
    ///
    /// # Errors
    /// `InvalidRequest` for what is not valid, cannot be enforced, or takes too long; `QueueFull` while too many others
    /// take too long; `UnsupportedModel` for a tokenizer whose tokens have no bytes.
    pub fn check(&self, structure: &Structure) -> Result<(), EngineError> {
        self.compiled(structure).map(|_| ())
    }

    /// A constraint at its beginning.
    ///
    /// # Errors
    /// As `check`.
    pub fn constraint(&self, structure: &Structure) -> Result<Constraint, EngineError> {
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
        let schema = preflight::check(structure)?;
        let Current { factory, sliced } = self.vocabulary.current()?;
        if self.running.fetch_add(1, Ordering::SeqCst) >= MAX_RUNNING {
            self.running.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::QueueFull("too many grammars are being compiled: try again".into()));
        }
        let running = Running(Arc::clone(&self.running));
        let grammar = grammar(structure, schema);
        let (done, inbox) = crossbeam_channel::bounded(1);
        let work = move || {
            let _running = running;
            // The caller may have stopped waiting.
            let _ = done.send(build(&factory, sliced, grammar));
        };
        let thread = std::thread::Builder::new().name("octavo-grammar".into()).spawn(work);
        thread.map_err(|e| EngineError::EngineDead(format!("no thread to compile a grammar: {e}")))?;
        let kind = structure.kind();
        match inbox.recv_timeout(DEADLINE) {
            Ok(Ok(compiled)) => {
                let compiled = Arc::new(Mutex::new(compiled));
                self.keep(structure, &compiled);
                Ok(compiled)
            }
            Ok(Err(why)) => {
                Err(EngineError::InvalidRequest(format!("structured: the {kind} cannot be used: {why}")))
            }
            Err(RecvTimeoutError::Timeout) => Err(EngineError::InvalidRequest(format!(
                "structured: the {kind} takes more than {} ms to compile: simplify it",
                DEADLINE.as_millis()
            ))),
            Err(RecvTimeoutError::Disconnected) => {
                Err(EngineError::InvalidRequest(format!("structured: the {kind} broke the compiler")))
            }
        }
    }
}

fn grammar(structure: &Structure, schema: Option<Value>) -> TopLevelGrammar {
    match structure {
        Structure::JsonSchema(_) => {
            let schema = match schema {
                Some(Value::Object(mut map)) => {
                    map.insert("x-guidance".into(), json!({"whitespace_pattern": WHITESPACE}));
                    Value::Object(map)
                }
                // true: anything; false: nothing.
                Some(other) => json!({"allOf": [other], "x-guidance": {"whitespace_pattern": WHITESPACE}}),
                None => Value::Bool(true),
            };
            TopLevelGrammar::from_json_schema(schema)
        }
        Structure::Regex(text) => TopLevelGrammar::from_regex(text),
        Structure::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
    }
}

fn build(factory: &ParserFactory, sliced: bool, grammar: TopLevelGrammar) -> Result<Compiled, String> {
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
