//! The handle that callers hold: loads a model, takes requests, answers questions. Cheap to share between threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use octavo_model::ModelSpec;
use octavo_scheduler::{AttentionPolicy, Rejection, Scheduler, SchedulerConfig};
use serde_json::{Map, Value, json};

use crate::EngineError;
use crate::command::Command;
use crate::detokenizer::Detokenizer;
use crate::engine_loop::EngineLoop;
use crate::executor::Executor;
use crate::generation::GenerationDefaults;
use crate::health::Health;
use crate::limits::Limits;
use crate::metrics::HistogramSnapshot;
use crate::params::SamplingParams;
use crate::pooling::{Pooler, PoolingParams};
use crate::report::Report;
use crate::request::EngineRequest;
use crate::sampling::SamplingRules;
use crate::stats::EngineStats;
use crate::status::EngineStatus;
use crate::stop::{StopFilter, StopStrings};
use crate::stream::{self, ReadyQueue, RequestStream};
use crate::structured::Compiler;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// Most token ids that one of `bad_words` may have.
const MAX_BAD_WORD_TOKENS: usize = 64;

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
    tokenizer: Arc<Tokenizer>,
    template: Option<Result<ChatTemplate, EngineError>>,
    generation: GenerationDefaults,
    limits: SchedulerConfig,
    vocab: usize,
    /// Size of the executor's hidden states, if it gives them.
    hidden: Option<usize>,
    attention: AttentionPolicy,
    /// Whether attention keeps to that policy.
    bounds_attention: bool,
    seed: u64,
    info: Value,
    spec: Option<ModelSpec>,
    compiler: Compiler,
    commands: Sender<Command>,
    ready: ReadyQueue,
    status: Arc<EngineStatus>,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The process that has the engine thread: a fork of it has not.
    process: u32,
}

impl Engine {
    /// Starts the engine thread over any executor.
    pub fn start(parts: EngineParts) -> Result<Self, EngineError> {
        let l = parts.limits;
        let executor = parts.executor.info();
        let limits = SchedulerConfig {
            num_blocks: l.num_blocks,
            block_size: l.block_size,
            max_num_seqs: l.max_num_seqs,
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
            commands,
            ready: crossbeam_channel::unbounded(),
            status,
            next_id: AtomicU64::new(0),
            thread: Mutex::new(Some(thread)),
            process: std::process::id(),
        })
    }

    /// Queues a request. Tokenises and checks in the calling thread, so that every fault of the input shows here.
    ///
    /// # Errors
    /// `InvalidRequest`, `ContextLength`, `QueueFull`, `EngineDead`.
    pub fn submit(&self, prompt: Prompt, params: &SamplingParams) -> Result<RequestStream, EngineError> {
        self.check_process()?;
        self.status.check_open()?;
        let prompt = self.prompt_tokens(prompt)?;
        let max_tokens = self.check(&prompt, params)?;
        self.enqueue(|| self.prepare(prompt, params, max_tokens))
    }

    /// Queues a request for the embedding of a prompt; its one delta carries it.
    ///
    /// # Errors
    /// `InvalidRequest`, `ContextLength`, `QueueFull`, `EngineDead`, and `UnsupportedModel` if the executor has none.
    pub fn embed(&self, prompt: Prompt, params: &PoolingParams) -> Result<RequestStream, EngineError> {
        self.check_process()?;
        self.status.check_open()?;
        let prompt = self.prompt_tokens(prompt)?;
        self.check_embed(&prompt, params)?;
        self.enqueue(|| {
            let pooler = Pooler::new(params.clone(), prompt.len());
            let (prepared, stream) = self.prepare(prompt, &unsampled(params), 1)?;
            Ok((EngineRequest { pooler: Some(pooler), ..prepared }, stream))
        })
    }

    /// Takes a place in the queue, and sends what `prepare` makes to the engine thread.
    fn enqueue(
        &self,
        prepare: impl FnOnce() -> Result<(EngineRequest, RequestStream), EngineError>,
    ) -> Result<RequestStream, EngineError> {
        self.reserve_place()?;
        match prepare() {
            Ok((prepared, stream)) => {
                if self.commands.send(Command::Submit(Box::new(prepared))).is_err() {
                    self.status.queued.fetch_sub(1, Ordering::SeqCst);
                    self.status.check_alive()?;
                    return Err(EngineError::closed());
                }
                Ok(stream)
            }
            Err(e) => {
                self.status.queued.fetch_sub(1, Ordering::SeqCst);
                Err(e)
            }
        }
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

    /// Checks a request without queueing it: parameters, token ids, lengths. Returns the most tokens that it may generate.
    ///
    /// # Errors
    /// `InvalidRequest`, `ContextLength`.
    pub fn check(&self, prompt: &[u32], params: &SamplingParams) -> Result<u32, EngineError> {
        params.check()?;
        params.check_vocabulary(self.vocab)?;
        params.check_attention(self.attention, self.bounds_attention)?;
        if let Some(structure) = &params.structured {
            self.compiler.check(structure)?;
        }
        let len = self.check_ids(prompt)?;
        let room = self.limits.max_model_len.saturating_sub(len).max(1);
        let max_tokens = params.max_tokens.or(self.generation.max_new_tokens).unwrap_or(room).min(room);
        self.limits.check(len, params.n, max_tokens).map_err(refused)?;
        Ok(max_tokens)
    }

    /// `check` for `embed`.
    ///
    /// # Errors
    /// `InvalidRequest`, `ContextLength`, `UnsupportedModel`.
    pub fn check_embed(&self, prompt: &[u32], params: &PoolingParams) -> Result<(), EngineError> {
        let width = self.hidden.ok_or_else(|| {
            EngineError::UnsupportedModel("this device computes no embeddings yet: use device=\"cpu\"".into())
        })?;
        params.check(width)?;
        unsampled(params).check()?;
        let len = self.check_ids(prompt)?;
        self.limits.check_hidden(len).map_err(refused)
    }

    /// The prompt's length, if the model knows all its tokens.
    fn check_ids(&self, prompt: &[u32]) -> Result<u32, EngineError> {
        if let Some(id) = prompt.iter().find(|id| **id as usize >= self.vocab) {
            return Err(EngineError::InvalidRequest(format!(
                "the prompt has token id {id}, and the model knows ids below {}: tokenizer and model must belong together",
                self.vocab
            )));
        }
        Ok(u32::try_from(prompt.len()).unwrap_or(u32::MAX))
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// `InvalidRequest`.
    pub fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<u32>, EngineError> {
        match prompt {
            Prompt::Text(text, special) => self.tokenizer.encode(&text, special),
            Prompt::Tokens(tokens) => Ok(tokens),
        }
    }

    /// Takes a place in the bounded queue.
    fn reserve_place(&self) -> Result<(), EngineError> {
        let max = self.limits.max_queue as usize;
        let mut seen = self.status.queued.load(Ordering::SeqCst);
        loop {
            if seen >= max {
                return Err(EngineError::QueueFull(format!(
                    "{seen} requests are waiting and max_queue is {max}: retry later, or raise max_queue"
                )));
            }
            match self.status.queued.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    fn prepare(
        &self,
        prompt: Vec<u32>,
        params: &SamplingParams,
        max_tokens: u32,
    ) -> Result<(EngineRequest, RequestStream), EngineError> {
        let stops = StopStrings::new(&params.stop, params.include_stop_str_in_output)?;
        let detokenizer = Detokenizer::new(&self.tokenizer, &prompt, params.skip_special_tokens)?;
        let bad_words = self.bad_words(&params.bad_words)?;
        let constraint = params.structured.as_ref().map(|s| self.compiler.constraint(s)).transpose()?;
        let id = self.next_id.fetch_add(1, Ordering::SeqCst);
        let eos = if params.ignore_eos { Vec::new() } else { self.generation.eos.clone() };
        let mut stop_ids: Vec<u32> = eos.iter().chain(&params.stop_token_ids).copied().collect();
        stop_ids.retain(|id| (*id as usize) < self.vocab);
        // Requests without a seed draw differently from each other, and the same again in a new engine of equal seed.
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(id);
        let submitted = Instant::now();
        let tokens = |n: Option<u32>| n.map(|n| n as usize);
        let (outbox, stream) = stream::channel(id, prompt.clone(), self.commands.clone(), &self.ready.0);
        let prepared = EngineRequest {
            id,
            prompt: prompt.into(),
            n: params.n,
            max_tokens,
            min_tokens: params.min_tokens,
            priority: params.priority,
            salt: params.cache_salt.as_deref().map(Into::into),
            attention: params.attention_policy(self.attention),
            submitted,
            deadline: params.timeout.map(|t| submitted + Duration::from_secs_f64(t)),
            rules: SamplingRules::new(params, &self.generation.sampling, seed, stop_ids, bad_words),
            eos,
            ends: self.generation.eos.clone(),
            stop_token_ids: params.stop_token_ids.clone(),
            include_stop: params.include_stop_str_in_output,
            logprobs: tokens(params.logprobs),
            prompt_logprobs: tokens(params.prompt_logprobs),
            detokenizer,
            filter: StopFilter::new(stops),
            constraint,
            pooler: None,
            outbox,
        };
        Ok((prepared, stream))
    }

    /// Each word as it stands at the start of a text and after a space.
    fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut out: Vec<Vec<u32>> = Vec::new();
        for word in words {
            for text in [word.clone(), format!(" {}", word.trim_start())] {
                let ids = self.tokenizer.encode(&text, false)?;
                if ids.len() > MAX_BAD_WORD_TOKENS {
                    return Err(EngineError::InvalidRequest(format!(
                        "bad_words: {word:?} has {} tokens, at most {MAX_BAD_WORD_TOKENS} are taken",
                        ids.len()
                    )));
                }
                let known = ids.iter().all(|id| (*id as usize) < self.vocab);
                if !ids.is_empty() && known && !out.contains(&ids) {
                    out.push(ids);
                }
            }
        }
        Ok(out)
    }

    /// Renders the chat template; see `ChatTemplate::render`.
    pub fn render_chat(&self, request: &Map<String, Value>) -> Result<String, EngineError> {
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
    pub fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        self.tokenizer.encode(text, add_special_tokens)
    }

    /// Text of `ids`.
    pub fn detokenize(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, EngineError> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }

    /// Waits for deltas of subscribed requests; their ids.
    pub fn wait_ready(&self, timeout: Duration) -> Vec<u64> {
        let mut ids: Vec<u64> = self.ready.1.recv_timeout(timeout).into_iter().collect();
        ids.extend(self.ready.1.try_iter());
        ids
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

    /// Aborts what runs, joins the thread, frees the memory. Idempotent.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        match thread {
            // The thread is the other process's: there is nothing to join here.
            Some(thread) if self.check_process().is_err() => std::mem::forget(thread),
            Some(thread) => {
                // An error means that the thread has ended already; it catches its own panics.
                let _ = self.commands.send(Command::Close);
                let _ = thread.join();
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

/// What a request that samples nothing has in common with one that does.
fn unsampled(params: &PoolingParams) -> SamplingParams {
    SamplingParams {
        max_tokens: Some(1),
        priority: params.priority,
        timeout: params.timeout,
        cache_salt: params.cache_salt.clone(),
        ..SamplingParams::default()
    }
}

fn refused(rejection: Rejection) -> EngineError {
    match rejection {
        Rejection::TooLong { .. } | Rejection::PromptTooLong { .. } => {
            EngineError::ContextLength(rejection.to_string())
        }
        Rejection::QueueFull { .. } => EngineError::QueueFull(rejection.to_string()),
        other => EngineError::InvalidRequest(other.to_string()),
    }
}
