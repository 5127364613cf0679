//! The tokens of a model as grammars see them: a trie of their bytes.
//!
//! Slices of the trie, tokens that free text may hold, make masks cheap. With a large vocabulary they take most of the
//! time and of the memory. So the first grammars do without them, and a thread makes them meanwhile.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use llguidance::ParserFactory;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie,
};

use super::build::limit;
use crate::EngineError;
use crate::error::panic_text;
use crate::tokenizer::Tokenizer;

/// Longest token, in bytes, that a grammar may use: one that spells a thousand spaces is known.
const MAX_WORD_BYTES: usize = 1000;
/// Threads that read the bytes of a large vocabulary.
const MAX_THREADS: usize = 4;
/// With fewer tokens the slices are made at once.
const SMALL: usize = 40_000;

/// The trie of one tokenizer, made when it is first needed: most engines never need it.
pub(super) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    vocab: usize,
    eos: Vec<u32>,
    current: Arc<Mutex<Option<Result<Current, EngineError>>>>,
}

/// What grammars are compiled with.
#[derive(Clone)]
pub(super) struct Current {
    pub factory: Arc<ParserFactory>,
    /// It has its slices.
    pub sliced: bool,
}

impl Vocabulary {
    /// The tokens below `vocab`, of which `eos` end an output.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: usize, eos: &[u32]) -> Self {
        let eos: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocab).collect();
        let eos = if eos.is_empty() { vec![INVALID_TOKEN] } else { eos };
        Self { tokenizer, vocab, eos, current: Arc::default() }
    }

    /// Whether grammars have slices by now.
    pub fn is_sliced(&self) -> bool {
        let current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        matches!(&*current, Some(Ok(Current { sliced: true, .. })))
    }

    /// What to compile with now.
    ///
    /// # Errors
    /// `UnsupportedModel` for a tokenizer whose tokens have no bytes of their own.
    pub fn current(&self) -> Result<Current, EngineError> {
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        current.get_or_insert_with(|| self.make()).clone()
    }

    fn make(&self) -> Result<Current, EngineError> {
        let unsupported =
            |why: &str| EngineError::UnsupportedModel(format!("structured output: this tokenizer {why}"));
        let words = words(&self.tokenizer, self.vocab).map_err(|token| {
            unsupported(&format!("has tokens without bytes of their own, such as {token:?}"))
        })?;
        let build = || {
            let trie = TokTrie::from(&TokRxInfo::new(self.vocab as u32, self.eos[0]), &words);
            let trie = if self.eos.len() > 1 { trie.with_eos_tokens(&self.eos) } else { trie };
            // Any tokens that spell an allowed text are allowed, not only the tokenizer's own choice of them.
            Arc::new(ApproximateTokEnv::new(trie)) as TokEnv
        };
        let env = catch_unwind(AssertUnwindSafe(build)).map_err(|p| unsupported(&panic_text(p)))?;
        if self.vocab <= SMALL {
            return Ok(Current { factory: factory(&env, true).map_err(|e| unsupported(&e))?, sliced: true });
        }
        let plain = factory(&env, false).map_err(|e| unsupported(&e))?;
        let current = Arc::clone(&self.current);
        let slice = move || {
            // Without slices grammars mean the same.
            if let Ok(factory) = factory(&env, true) {
                let mut current = current.lock().unwrap_or_else(|e| e.into_inner());
                *current = Some(Ok(Current { factory, sliced: true }));
            }
        };
        // Without a thread it stays as it is.
        let _ = std::thread::Builder::new().name("octavo-slices".into()).spawn(slice);
        Ok(Current { factory: plain, sliced: false })
    }
}

fn factory(env: &TokEnv, sliced: bool) -> Result<Arc<ParserFactory>, String> {
    let build = || match sliced {
        true => ParserFactory::new_simple(env),
        false => ParserFactory::new(env, InferenceCapabilities::default(), &[]),
    };
    let made = catch_unwind(AssertUnwindSafe(build)).map_err(panic_text)?;
    let mut factory = made.map_err(|e| e.to_string())?;
    limit(&mut factory);
    Ok(Arc::new(factory))
}

/// The bytes of each token, as its text has them. A special token has its name behind a mark. The error is a token whose bytes
/// depend on other tokens.
fn words(tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<Vec<u8>>, String> {
    let word = |id: u32| match tokenizer.special_name(id) {
        Some(name) => Ok([&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()),
        None => match tokenizer.token(id, false) {
            Some(token) => tokenizer.token_bytes(id).ok_or(token),
            None => Ok(Vec::new()),
        },
    };
    // The trie takes no longer ones.
    let short = |word: Vec<u8>| if word.len() > MAX_WORD_BYTES { Vec::new() } else { word };
    let part = |ids: Range<u32>| -> Result<Vec<_>, String> { ids.map(|id| word(id).map(short)).collect() };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    let size = vocab.div_ceil(threads).max(SMALL) as u32;
    let starts = (0..vocab as u32).step_by(size as usize);
    std::thread::scope(|scope| {
        let part = &part;
        let run = |at: u32| {
            let ids = at..(at + size).min(vocab as u32);
            let thread = std::thread::Builder::new().spawn_scoped(scope, {
                let ids = ids.clone();
                move || part(ids)
            });
            (ids, thread)
        };
        let running: Vec<_> = starts.map(run).collect();
        let parts = running.into_iter().map(|(ids, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|p| resume_unwind(p)),
            // This machine starts no more threads.
            Err(_) => part(ids),
        });
        Ok(parts.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    })
}
