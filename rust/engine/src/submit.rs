//! From a prompt and its parameters to a queued request: everything that the caller's thread checks and prepares.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::EngineError;
use crate::adapters::AdapterClaim;
use crate::command::Command;
use crate::detokenizer::Detokenizer;
use crate::engine::{Engine, Prompt};
use crate::params::SamplingParams;
use crate::pooling::{Pooler, PoolingParams};
use crate::request::EngineRequest;
use crate::sampling::SamplingRules;
use crate::stop::{StopFilter, StopStrings};
use crate::stream::{self, RequestStream};

/// Max number of token ids of one of `bad_words`.
const MAX_BAD_WORD_TOKENS: usize = 64;

/// Waits while the queue is full. It may take the streams.
pub type OnFull<'a> = dyn FnMut(&mut Vec<RequestStream>) -> Result<(), EngineError> + 'a;

/// Adds the stream that `submit` returns once the queue has room.
fn when_room(
    submit: impl Fn() -> Result<RequestStream, EngineError>,
    streams: &mut Vec<RequestStream>,
    on_full: &mut OnFull<'_>,
) -> Result<(), EngineError> {
    loop {
        let failed = match submit() {
            Ok(stream) => {
                streams.push(stream);
                return Ok(());
            }
            Err(EngineError::QueueFull(_)) => on_full(streams).err(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            streams.iter().for_each(RequestStream::cancel);
            return Err(error);
        }
    }
}

impl Engine {
    /// Queues a request. Tokenises and checks in the calling thread, so every error in the input is raised here.
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

    /// Checks all requests, then queues each as soon as the queue has room. While the queue is full, `on_full` waits; it may
    /// take the streams so far. Returns the others.
    ///
    /// # Errors
    /// As `submit` but `QueueFull`, and those of `on_full`. An error cancels the streams that `on_full` has not taken.
    pub fn submit_many(
        &self,
        prompts: Vec<Prompt>,
        params: &[Arc<SamplingParams>],
        on_full: &mut OnFull<'_>,
    ) -> Result<Vec<RequestStream>, EngineError> {
        self.check_process()?;
        self.status.check_open()?;
        let checked = |(prompt, params): (Prompt, &Arc<SamplingParams>)| {
            let prompt = self.prompt_tokens(prompt)?;
            let max_tokens = self.check(&prompt, params)?;
            Ok((prompt, max_tokens))
        };
        let checked =
            prompts.into_iter().zip(params).map(checked).collect::<Result<Vec<_>, EngineError>>()?;
        let mut streams = Vec::with_capacity(checked.len());
        for ((prompt, max_tokens), params) in checked.into_iter().zip(params) {
            let queue = || self.enqueue(|| self.prepare(prompt.clone(), params, max_tokens));
            when_room(queue, &mut streams, on_full)?;
        }
        Ok(streams)
    }

    /// `submit_many` for embeddings.
    ///
    /// # Errors
    /// As `submit_many`, and `UnsupportedModel` if the executor has none.
    pub fn embed_many(
        &self,
        prompts: Vec<Prompt>,
        params: &PoolingParams,
        on_full: &mut OnFull<'_>,
    ) -> Result<Vec<RequestStream>, EngineError> {
        let checked = |prompt| {
            let prompt = self.prompt_tokens(prompt)?;
            self.check_embed(&prompt, params)?;
            Ok(prompt)
        };
        let checked = prompts.into_iter().map(checked).collect::<Result<Vec<_>, EngineError>>()?;
        let mut streams = Vec::with_capacity(checked.len());
        for prompt in checked {
            when_room(|| self.embed(Prompt::Tokens(prompt.clone()), params), &mut streams, on_full)?;
        }
        Ok(streams)
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
                let job = prepared.adapter.as_ref().and_then(AdapterClaim::job);
                if self.commands.send(Command::Submit(Box::new(prepared))).is_err() {
                    self.status.queued.fetch_sub(1, Ordering::SeqCst);
                    self.status.check_alive()?;
                    return Err(EngineError::closed());
                }
                // Only now: the loader thread's answer comes behind the request.
                if let Some(job) = job {
                    self.adapters.enqueue(job);
                }
                Ok(stream)
            }
            Err(e) => {
                self.status.queued.fetch_sub(1, Ordering::SeqCst);
                Err(e)
            }
        }
    }

    /// Checks a request without queueing it: parameters, token ids, lengths. Returns the most tokens that it may generate.
    ///
    /// # Errors
    /// `InvalidRequest`, also for a model without an output head, and `ContextLength`.
    pub fn check(&self, prompt: &[u32], params: &SamplingParams) -> Result<u32, EngineError> {
        self.check_head()?;
        params.check()?;
        params.check_vocabulary(self.vocab)?;
        self.check_adapter(params.lora.as_deref())?;
        params.check_attention(self.attention, self.bounds_attention)?;
        self.check_packs(prompt, params)?;
        if let Some(structure) = &params.structured {
            self.compiler.check(structure)?;
        }
        let len = self.check_ids(prompt)?;
        let room = self.limits.max_model_len.saturating_sub(len).max(1);
        let max_tokens = params.max_tokens.or(self.generation.max_new_tokens).unwrap_or(room).min(room);
        self.limits.check(len, params.n, max_tokens).map_err(EngineError::from)?;
        Ok(max_tokens)
    }

    fn check_adapter(&self, name: Option<&str>) -> Result<(), EngineError> {
        name.map_or(Ok(()), |name| self.adapters.check(name))
    }

    /// Refuses to generate with a base model.
    fn check_head(&self) -> Result<(), EngineError> {
        match &self.spec {
            Some(spec) if !spec.has_head => Err(EngineError::InvalidRequest(format!(
                "this model makes embeddings only: its checkpoint has no output head (lm_head.weight), and config.json does not \
                 tie it to the embedding. Use LLM.embed or /v1/embeddings, or load a checkpoint of {}",
                spec.architecture
            ))),
            _ => Ok(()),
        }
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
        self.check_adapter(params.lora.as_deref())?;
        let len = self.check_ids(prompt)?;
        self.limits.check_hidden(len).map_err(EngineError::from)
    }

    /// The prompt's length, if all its tokens are in the vocabulary.
    fn check_ids(&self, prompt: &[u32]) -> Result<u32, EngineError> {
        if let Some(id) = prompt.iter().find(|id| **id as usize >= self.vocab) {
            return Err(EngineError::InvalidRequest(format!(
                "the prompt has token id {id}, and the model knows ids below {}: tokenizer and model must belong together",
                self.vocab
            )));
        }
        Ok(u32::try_from(prompt.len()).unwrap_or(u32::MAX))
    }

    fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<u32>, EngineError> {
        self.prompt_tokens_while(prompt, &|| true)
    }

    /// The tokens of a prompt. A text is given up when `go_on` is false, and when it has more tokens than the context.
    ///
    /// # Errors
    /// `InvalidRequest`, `ContextLength`, and `EngineDead` if it is given up.
    pub fn prompt_tokens_while(
        &self,
        prompt: Prompt,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<u32>, EngineError> {
        let (text, special) = match prompt {
            Prompt::Text(text, special) => (text, special),
            Prompt::Tokens(tokens) => return Ok(tokens),
        };
        let most = self.limits.max_model_len as usize;
        let mut check = |count: usize| match count <= most {
            true if go_on() && !self.is_closing() => Ok(()),
            true => Err(EngineError::closed()),
            false => Err(EngineError::ContextLength(format!(
                "the prompt has more than {most} tokens, and max_model_len is {most}: shorten it, or raise max_model_len"
            ))),
        };
        check(0)?;
        self.tokenizer.encode_while(&text, special, &mut check)
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
        let verbatim = params.structured.is_some();
        let detokenizer = Detokenizer::new(&self.tokenizer, &prompt, params.skip_special_tokens, verbatim)?;
        let bad_words = self.bad_words(&params.bad_words)?;
        let constraint =
            params.structured.as_ref().map(|s| self.compiler.constraint(s, max_tokens)).transpose()?;
        let id = self.next_id.fetch_add(1, Ordering::SeqCst);
        let eos = if params.ignore_eos { Vec::new() } else { self.generation.eos.clone() };
        let mut stop_ids: Vec<u32> = eos.iter().chain(&params.stop_token_ids).copied().collect();
        stop_ids.retain(|id| (*id as usize) < self.vocab);
        // Requests without a seed draw differently from each other, and the same again in a new engine of equal seed.
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(id);
        let (submitted, lora) = (Instant::now(), params.lora.as_deref());
        let tokens = |n: Option<u32>| n.map(|n| n as usize);
        let pack = self.check_packs(&prompt, params)?;
        let (outbox, stream) = stream::channel(id, prompt.clone(), self.commands.clone(), &self.ready.0);
        let prepared = EngineRequest {
            id,
            prompt: prompt.into(),
            n: params.n,
            max_tokens,
            min_tokens: params.min_tokens,
            priority: params.priority,
            salt: params.cache_salt.as_deref().map(Into::into),
            pack,
            adapter: lora.map(|name| self.adapters.claim(name, params.priority, id)).transpose()?,
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
}

/// What a request that samples nothing has in common with one that does.
fn unsampled(params: &PoolingParams) -> SamplingParams {
    SamplingParams {
        max_tokens: Some(1),
        priority: params.priority,
        timeout: params.timeout,
        cache_salt: params.cache_salt.clone(),
        lora: params.lora.clone(),
        ..SamplingParams::default()
    }
}
