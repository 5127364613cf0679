//! The handle that callers hold: loads a model, takes requests, answers questions. Cheap to share between threads.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use octavo_model::ModelSpec;
use octavo_scheduler::{AttentionPolicy, Scheduler, SchedulerConfig};
use serde_json::{Value, json};

use crate::EngineError;
use crate::adapters::{AdapterLimits, AdapterStats, Adapters, LoadedAdapter};
use crate::command::Command;
use crate::engine_loop::EngineLoop;
use crate::executor::Executor;
use crate::generation::GenerationDefaults;
use crate::health::Health;
use crate::limits::Limits;
use crate::metrics::HistogramSnapshot;
use crate::packs::{PackFacts, Packs};
use crate::report::Report;
use crate::stats::EngineStats;
use crate::status::EngineStatus;
use crate::stream::ReadyQueue;
use crate::structured::Compiler;
use crate::template::ChatTemplate;
use crate::token_text::TokenText;
use crate::tokenizer::Tokenizer;

/// A prompt as the caller gives it.
pub enum Prompt {
    /// Text; `true` adds the special tokens that the model expects around a prompt.
    Text(String, bool),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// What an executor must be told apart from plans, for `Engine::start`.
pub struct EngineParts {
    /// Computes steps.
    pub executor: Box<dyn Executor>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// The chat template, if there is one; one that does not compile says so when it is used.
    pub template: Option<Result<ChatTemplate, EngineError>>,
    /// Size of a row of logits.
    pub vocab: usize,
    /// What the model is, where there is one.
    pub spec: Option<ModelSpec>,
    /// The model's own defaults.
    pub generation: GenerationDefaults,
    /// Limits of the scheduler.
    pub limits: Limits,
    /// Share blocks of equal prefixes.
    pub prefix_caching: bool,
    /// Cap of one sequence's prefill chunk.
    pub prefill_chunk: Option<u32>,
    /// Seed of requests that bring none.
    pub seed: u64,
    /// Facts for `Engine::info`.
    pub info: Value,
}

/// A running engine.
pub struct Engine {
    pub(crate) tokenizer: Arc<Tokenizer>,
    template: Option<Result<ChatTemplate, EngineError>>,
    pub(crate) generation: GenerationDefaults,
    pub(crate) limits: SchedulerConfig,
    pub(crate) vocab: usize,
    /// Size of the executor's hidden states, if it gives them.
    pub(crate) hidden: Option<usize>,
    pub(crate) attention: AttentionPolicy,
    /// Whether attention keeps to that policy.
    pub(crate) bounds_attention: bool,
    pub(crate) seed: u64,
    info: Value,
    pub(crate) spec: Option<ModelSpec>,
    pub(crate) compiler: Compiler,
    pub(crate) adapters: Adapters,
    pub(crate) packs: Packs,
    pub(crate) commands: Sender<Command>,
    pub(crate) ready: ReadyQueue,
    pub(crate) status: Arc<EngineStatus>,
    pub(crate) next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The process that has the engine thread: a fork of it has not.
    process: u32,
}

impl Engine {
    /// Starts the engine thread over any executor.
    pub fn start(parts: EngineParts) -> Result<Self, EngineError> {
        let l = parts.limits;
        let (executor, backend) = (parts.executor.info(), parts.executor.adapters());
        let layout = parts.executor.block_layout().filter(|_| executor.max_in_flight == 1).map(Arc::new);
        let adapter_limits = AdapterLimits {
            max_memory: l.max_lora_memory,
            max_rank: l.max_lora_rank,
            max_adapters: l.max_loras,
        };
        let limits = SchedulerConfig {
            num_blocks: l.num_blocks,
            block_size: l.block_size,
            max_num_seqs: l.max_num_seqs,
            max_adapters: l.max_loras,
            max_num_batched_tokens: l.max_num_batched_tokens,
            max_model_len: l.max_model_len,
            max_queue: l.max_queue,
            enable_prefix_caching: parts.prefix_caching,
            prefill_chunk: parts.prefill_chunk,
            hash_seed: parts.seed ^ 0x6f63_7461_766f,
            hash_bits: 128,
            open_blocks: executor.open_blocks,
        };
        let refuse = |e: &dyn std::fmt::Display| EngineError::InvalidRequest(e.to_string());
        let scheduler = Scheduler::new(limits.clone()).map_err(|e| refuse(&e))?;
        let tokenizer = Arc::new(parts.tokenizer);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let status = Arc::new(EngineStatus::default());
        let body =
            EngineLoop::new(scheduler, parts.executor, Arc::clone(&tokenizer), inbox, Arc::clone(&status));
        let thread = std::thread::Builder::new().name("octavo-engine".into()).spawn(move || body.run());
        let thread =
            thread.map_err(|e| EngineError::EngineDead(format!("the engine thread did not start: {e}")))?;
        let mut info = parts.info;
        if let Value::Object(map) = &mut info {
            map.insert("limits".into(), json!(l));
            map.insert("defaults".into(), json!(parts.generation));
        }
        Ok(Self {
            compiler: Compiler::new(Arc::clone(&tokenizer), parts.vocab, &parts.generation.eos),
            tokenizer,
            template: parts.template,
            generation: parts.generation,
            limits,
            vocab: parts.vocab,
            hidden: executor.hidden_size,
            attention: executor.attention,
            bounds_attention: executor.bounds_attention,
            seed: parts.seed,
            info,
            spec: parts.spec,
            adapters: Adapters::new(backend, adapter_limits, commands.clone()),
            packs: Packs::new(layout),
            commands,
            ready: crossbeam_channel::unbounded(),
            status,
            next_id: AtomicU64::new(0),
            thread: Mutex::new(Some(thread)),
            process: std::process::id(),
        })
    }

    /// The engine with what packs are compared with.
    pub(crate) fn with_packs(mut self, facts: Option<PackFacts>) -> Self {
        self.packs.facts = facts;
        self
    }

    /// Fails in a process that was forked from the one of the engine: threads do not survive a fork.
    ///
    /// # Errors
    /// `EngineDead`, with the remedy.
    pub fn check_process(&self) -> Result<(), EngineError> {
        if std::process::id() == self.process {
            return Ok(());
        }
        Err(EngineError::EngineDead(
            "this LLM was made in another process, of which this one is a fork. Make an LLM in each process (with \
             multiprocessing: start method \"spawn\", or make it after the fork)"
                .into(),
        ))
    }

    /// Renders the chat template; see `ChatTemplate::render`.
    pub fn render_chat(&self, request: &str) -> Result<String, EngineError> {
        match &self.template {
            Some(Ok(template)) => template.render(request),
            Some(Err(e)) => Err(e.clone()),
            None => Err(EngineError::InvalidRequest(
                "this model has no chat template: pass chat_template=, or use generate with a plain prompt"
                    .into(),
            )),
        }
    }

    /// Token ids of `text`.
    ///
    /// # Errors
    /// `InvalidRequest` if the tokenizer refuses it; `EngineDead` if the engine is closed meanwhile.
    pub fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        self.tokenize_while(text, add_special_tokens, &|| true)
    }

    /// `tokenize` of a text that may be long: it is given up when `go_on` is false.
    ///
    /// # Errors
    /// As `tokenize`, and `EngineDead` if it is given up.
    pub fn tokenize_while(
        &self,
        text: &str,
        add_special_tokens: bool,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<u32>, EngineError> {
        let mut go_on = |_| if go_on() && !self.is_closing() { Ok(()) } else { Err(EngineError::closed()) };
        self.tokenizer.encode_while(text, add_special_tokens, &mut go_on)
    }

    /// Text of `ids`.
    pub fn detokenize(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, EngineError> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }

    /// What the token `id` adds to a text.
    pub fn token_text(&self, id: u32) -> TokenText {
        self.tokenizer.token_text(id)
    }

    /// Waits for deltas of subscribed requests; their ids.
    pub fn wait_ready(&self, timeout: Duration) -> Vec<u64> {
        let mut ids: Vec<u64> = self.ready.1.recv_timeout(timeout).into_iter().collect();
        ids.extend(self.ready.1.try_iter());
        ids
    }

    /// Gives the adapter of `folder` the name, whose generation goes up if the content is another one. Its files are
    /// checked here; it is packed at its first use. With `expected` only if the name has that generation (0: is free).
    ///
    /// # Errors
    /// `ModelNotFound`, `UnsupportedModel`, `CorruptModel`: its files. `AdapterConflict`: another generation.
    /// `InvalidRequest`: the name, or a limit. `EngineDead`.
    pub fn load_adapter(
        &self,
        name: &str,
        folder: &Path,
        expected: Option<u64>,
    ) -> Result<LoadedAdapter, EngineError> {
        self.check_process()?;
        self.status.check_open()?;
        self.adapters.load(name, folder, expected)
    }

    /// Removes the name of an adapter. Requests with it go on.
    ///
    /// # Errors
    /// `AdapterNotFound`, `EngineDead`.
    pub fn unload_adapter(&self, name: &str) -> Result<(), EngineError> {
        self.check_process()?;
        self.status.check_alive()?;
        self.adapters.unload(name)
    }

    /// The adapters that have a name.
    ///
    /// # Errors
    /// `EngineDead` in a fork.
    pub fn adapters(&self) -> Result<Vec<LoadedAdapter>, EngineError> {
        self.check_process()?;
        Ok(self.adapters.list())
    }

    /// Names of adapters in use, and their memory.
    pub fn adapter_stats(&self) -> AdapterStats {
        // In a fork, another thread of its parent may hold the lock for ever.
        if self.check_process().is_ok() { self.adapters.stats() } else { AdapterStats::default() }
    }

    /// Counters since the start.
    pub fn stats(&self) -> EngineStats {
        self.status.counters.snapshot()
    }

    /// Reports of the executor since the start, merged.
    pub fn report(&self) -> Report {
        self.status.report.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Distributions of times and sizes since the start.
    pub fn histograms(&self) -> Vec<HistogramSnapshot> {
        self.status.histograms.snapshot()
    }

    /// Requests that wait for their start, those on their way to the engine thread included.
    pub fn queued(&self) -> usize {
        // Nothing waits in an engine that has ended; a request that met the end on its way in has had its error.
        if self.status.check_alive().is_err() { 0 } else { self.status.queued.load(Ordering::SeqCst) }
    }

    /// Whether the engine makes progress. A step that takes longer than `limit` counts as stalled: choose several times
    /// what the largest step takes.
    pub fn health(&self, limit: Duration) -> Health {
        match self.status.check_alive() {
            Err(cause) => Health::Dead(cause),
            Ok(()) => match self.status.heartbeat.busy_for().filter(|age| *age > limit) {
                Some(age) => Health::Stalled { seconds: age.as_secs_f64() },
                None => Health::Ready,
            },
        }
    }

    /// Model, warnings about its files, memory plan, kernels, limits, defaults.
    pub fn info(&self) -> &Value {
        &self.info
    }

    /// What the model is; None over an executor that was brought along.
    pub fn spec(&self) -> Option<&ModelSpec> {
        self.spec.as_ref()
    }

    /// Takes no more requests, waits until those that were taken have ended, at most for `limit`, and closes. False: the
    /// limit passed, and what still ran was aborted.
    pub fn drain(&self, limit: Duration) -> bool {
        self.status.draining.store(true, Ordering::SeqCst);
        let begin = Instant::now();
        // A closed engine has no one to tell, and nothing that runs.
        if self.check_process().is_ok() && self.commands.send(Command::Drain).is_ok() {
            while self.status.check_alive().is_ok() && begin.elapsed() < limit {
                std::thread::sleep(Duration::from_millis(1).min(limit));
            }
        }
        let ended = self.status.check_alive().is_err();
        self.close();
        ended
    }

    /// Whether `close` was called: the engine thread ends behind the step that runs.
    pub fn is_closing(&self) -> bool {
        self.status.closing.load(Ordering::SeqCst)
    }

    /// Aborts what runs, joins the thread, frees the memory. Idempotent.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        match thread {
            // The thread is the other process's: there is nothing to join here.
            Some(thread) if self.check_process().is_err() => {
                std::mem::forget(thread);
                self.adapters.forget_thread();
            }
            Some(thread) => {
                // An error means that the thread has ended already; it catches its own panics.
                let _ = self.commands.send(Command::Close);
                self.status.closing.store(true, Ordering::SeqCst);
                let _ = thread.join();
                self.adapters.close();
            }
            None => {}
        }
        self.status.die(EngineError::closed());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}
