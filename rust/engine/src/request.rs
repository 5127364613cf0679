//! A request inside the engine: its samples, their text, and the deltas that have not been sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use octavo_kernels::{Kernels, Peak};
use octavo_scheduler::AttentionPolicy;

use crate::EngineError;
use crate::adapters::AdapterClaim;
use crate::detokenizer::Detokenizer;
use crate::mailbox::Outbox;
use crate::output::{
    Delta, FinishReason, PromptLogprobs, RequestMetrics, SampleDelta, StopReason, TokenLogprob,
};
use crate::pooling::Pooler;
use crate::report::Report;
use crate::sampling::{History, Logprob, SampleSpec, SampledToken, Sampler, SamplingRules, intersection};
use crate::stats::add;
use crate::status::EngineStatus;
use crate::stop::StopFilter;
use crate::structured::{Constraint, Progress};
use crate::tokenizer::Tokenizer;

/// Largest number of candidates that an executor reports with a token that it samples; more need the row of logits.
const MAX_DEVICE_LOGPROBS: usize = 20;

/// A checked and tokenised request, as the caller's thread hands it to the engine thread.
pub(crate) struct EngineRequest {
    pub id: u64,
    pub prompt: Arc<[u32]>,
    pub n: u32,
    pub max_tokens: u32,
    pub min_tokens: u32,
    pub priority: i32,
    pub salt: Option<Box<str>>,
    /// The pack that the prompt begins with.
    pub pack: Option<u32>,
    /// Its adapter, which lives as long as the request.
    pub adapter: Option<AdapterClaim>,
    /// Its own attention policy, or the engine's.
    pub attention: AttentionPolicy,
    pub submitted: Instant,
    pub deadline: Option<Instant>,
    pub rules: SamplingRules,
    /// End-of-sequence tokens, empty with `ignore_eos`.
    pub eos: Vec<u32>,
    /// The model's end-of-sequence tokens, whether or not they are obeyed.
    pub ends: Vec<u32>,
    pub stop_token_ids: Vec<u32>,
    pub include_stop: bool,
    /// Candidates per output token, if asked for.
    pub logprobs: Option<usize>,
    /// Candidates per prompt token, if asked for.
    pub prompt_logprobs: Option<usize>,
    pub detokenizer: Detokenizer,
    pub filter: StopFilter,
    /// What the output is held to.
    pub constraint: Option<Constraint>,
    /// Set where an embedding is wanted, and no tokens.
    pub pooler: Option<Pooler>,
    pub outbox: Outbox,
}

/// A request that has not ended.
pub(crate) struct RequestState {
    pub request: EngineRequest,
    samples: Vec<Sample>,
    prompt_logprobs: PromptLogprobs,
    pub started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    cached_tokens: u32,
    /// Merged reports of all steps so far.
    pub report: Option<Report>,
    /// Set when the request fails.
    pub error: Option<EngineError>,
    ended: u32,
}

struct Sample {
    tokens: Vec<u32>,
    detokenizer: Detokenizer,
    filter: StopFilter,
    history: History,
    constraint: Option<Constraint>,
    cumulative: f64,
    last_token: Option<Instant>,
    stopped: bool,
    stop_reason: Option<StopReason>,
    ended: bool,
}

impl RequestState {
    pub fn new(request: EngineRequest) -> Self {
        let history =
            if request.rules.needs_history() { History::new(&request.prompt) } else { History::default() };
        let sample = |constraint| Sample {
            tokens: Vec::new(),
            detokenizer: request.detokenizer.clone(),
            filter: request.filter.clone(),
            history: history.clone(),
            constraint,
            cumulative: 0.0,
            last_token: None,
            stopped: false,
            stop_reason: None,
            ended: false,
        };
        let samples =
            (0..request.n).map(|_| sample(request.constraint.as_ref().map(Constraint::fork))).collect();
        let prompt_logprobs = if request.prompt_logprobs.is_some() { vec![None] } else { Vec::new() };
        Self {
            request,
            samples,
            prompt_logprobs,
            started: None,
            first_token: None,
            last_token: None,
            cached_tokens: 0,
            report: None,
            error: None,
            ended: 0,
        }
    }

    pub fn start(&mut self, now: Instant, cached_tokens: u32) {
        self.started = Some(now);
        if let Some(adapter) = &mut self.request.adapter {
            adapter.start();
        }
        self.cached_tokens = cached_tokens;
    }

    /// The prompt token after `position` and the number of candidates, if its log-probabilities are still to come.
    pub fn wants_prompt_row(&self, position: u32) -> Option<(u32, usize)> {
        let next = position as usize + 1;
        // Each row comes once and in order; a recomputed one is already there.
        let missing = next >= self.prompt_logprobs.len();
        let token = self.request.prompt.get(next).filter(|_| missing)?;
        Some((*token, self.request.prompt_logprobs?))
    }

    /// Takes the log-probabilities of the next prompt token.
    pub fn take_prompt_row(&mut self, tokenizer: &Tokenizer, row: Vec<Logprob>) {
        self.prompt_logprobs.push(Some(with_text(tokenizer, row)));
    }

    /// Time since the last token of a sample, if it has one.
    pub fn gap(&self, index: u32, now: Instant) -> Option<Duration> {
        let last = self.samples.get(index as usize)?.last_token?;
        Some(now.saturating_duration_since(last))
    }

    /// Waits for the constraint masks that `sample` reads.
    pub fn prepare(&mut self, samples: std::ops::Range<u32>) {
        for index in samples {
            if let Some(constraint) = self.samples.get_mut(index as usize).and_then(|s| s.constraint.as_mut())
            {
                constraint.wait();
            }
        }
    }

    /// Samples the next token of sample `index` from `logits`, whose peak is `raw`; changes nothing.
    ///
    /// # Errors
    /// Those of the sample's constraint.
    pub fn sample(
        &self,
        kernels: &Kernels,
        sampler: &mut Sampler,
        index: u32,
        logits: &[f32],
        raw: Peak,
    ) -> Result<SampledToken, EngineError> {
        let r = &self.request;
        let s = self.samples.get(index as usize).ok_or_else(|| no_sample(index))?;
        let held = s.constraint.as_ref().map(Constraint::mask).transpose()?;
        let both;
        let allowed = match (r.rules.allowed(), held) {
            (Some(ids), Some(held)) => {
                both = intersection(ids, held).ok_or_else(nothing_allowed)?;
                Some(&both[..])
            }
            (ids, held) => ids.or(held),
        };
        let token = sampler.sample(kernels, &r.rules, logits, raw, &s.history, &s.tokens, index, allowed);
        let logprobs = match r.logprobs {
            Some(top) => sampler.logprobs(kernels, logits, raw, token, top),
            None => Vec::new(),
        };
        Ok(SampledToken { token, logprobs })
    }

    /// Spec of the next token of a sample, behind `pending` tokens that are being sampled; None: its logits must be
    /// processed, or more of them are wanted.
    pub fn sample_spec(&self, index: u32, pending: u32) -> Option<SampleSpec> {
        let (r, s) = (&self.request, self.samples.get(index as usize)?);
        let few = r.logprobs.is_none_or(|top| top <= MAX_DEVICE_LOGPROBS);
        let free = s.constraint.is_none() && r.prompt_logprobs.is_none() && few;
        let logprobs = r.logprobs.map_or(-1, |top| top as i32);
        let spec = if free { r.rules.sample_spec(index, s.tokens.len() as u32 + pending) } else { None };
        spec.map(|spec| SampleSpec { logprobs, ..spec })
    }

    /// Takes the next token of a sample: (token, whether it stops the sample).
    pub fn take(
        &mut self,
        tokenizer: &Tokenizer,
        index: u32,
        SampledToken { token, logprobs }: SampledToken,
        now: Instant,
    ) -> Result<(u32, bool), EngineError> {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        let r = &self.request;
        let s = self.samples.get_mut(index as usize).ok_or_else(|| no_sample(index))?;
        let complete = match &mut s.constraint {
            Some(constraint) => constraint.push(token)? == Progress::Complete,
            None => false,
        };
        s.tokens.push(token);
        s.last_token = Some(now);
        if r.rules.needs_history() {
            s.history.push(token);
        }
        let mut delta = SampleDelta { index, token_ids: vec![token], ..SampleDelta::default() };
        if let Some(own) = logprobs.first() {
            s.cumulative += f64::from(own.logprob);
            delta.cumulative_logprob = Some(s.cumulative);
            delta.logprobs = Some(vec![with_text(tokenizer, logprobs)]);
        }
        let armed = s.tokens.len() >= r.min_tokens as usize;
        let eos = armed && r.eos.contains(&token);
        let stop_token = armed && r.stop_token_ids.contains(&token);
        if stop_token && !eos {
            s.stop_reason = Some(StopReason::Token(token));
        }
        // What is complete ends, with or without a token that says so; such a token is no text, others are.
        let ends = r.ends.contains(&token);
        s.stopped = eos || stop_token || complete;
        if !(eos || stop_token || (complete && ends)) || r.include_stop {
            let text = s.detokenizer.push(tokenizer, token)?;
            if let Some(found) = s.filter.push(&text, armed, &mut delta.text) {
                if !s.stopped || complete {
                    s.stop_reason = Some(StopReason::Text(found));
                }
                s.stopped = true;
            }
        }
        let stopped = s.stopped;
        self.request.outbox.pending.add(delta);
        Ok((token, stopped))
    }

    /// A sample ended. Returns true if it was the last one of the request.
    pub fn end_sample(&mut self, index: u32, reason: FinishReason, now: Instant) -> bool {
        let Some(s) = self.samples.get_mut(index as usize) else { return false };
        if std::mem::replace(&mut s.ended, true) {
            return false;
        }
        let mut delta = SampleDelta { index, finish_reason: Some(reason), ..SampleDelta::default() };
        if !matches!(s.stop_reason, Some(StopReason::Text(_))) {
            // Text that waited for the rest of a character or of a stop string. A decoder that fails here has failed
            // before: there is nothing more to show.
            let rest = s.detokenizer.finish().unwrap_or_default();
            s.filter.push(&rest, false, &mut delta.text);
            s.filter.finish(&mut delta.text);
        }
        if reason == FinishReason::Stop {
            delta.stop_reason = s.stop_reason.clone();
        }
        self.request.outbox.pending.add(delta);
        self.ended += 1;
        let last = self.ended == self.request.n;
        if last {
            self.finish(now);
        }
        last
    }

    /// Whether a sample has ended.
    pub fn has_ended(&self, index: u32) -> bool {
        self.samples.get(index as usize).is_none_or(|s| s.ended)
    }

    /// Ends all samples at once.
    pub fn end_all(&mut self, reason: FinishReason, now: Instant) {
        for index in 0..self.request.n {
            self.end_sample(index, reason, now);
        }
    }

    fn finish(&mut self, now: Instant) {
        let since = |t: Instant| t.saturating_duration_since(self.request.submitted).as_secs_f64();
        let generated: u64 = self.samples.iter().map(|s| s.tokens.len() as u64).sum();
        let span = match (self.first_token, self.last_token) {
            (Some(first), Some(last)) => last.saturating_duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        let longest = self.samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let delta: &mut Delta = &mut self.request.outbox.pending;
        delta.metrics = Some(RequestMetrics {
            queue_seconds: self.started.map_or_else(|| since(now), since),
            ttft_seconds: self.first_token.map_or(0.0, since),
            tpot_seconds: if longest > 1 { span / (longest - 1) as f64 } else { 0.0 },
            total_seconds: since(now),
            prompt_tokens: self.request.prompt.len() as u64,
            cached_prompt_tokens: u64::from(self.cached_tokens),
            generated_tokens: generated,
            report: self.report.take(),
        });
        delta.embedding = self.request.pooler.as_ref().and_then(Pooler::embedding);
        delta.error = self.error.take();
        delta.finished = true;
    }

    /// Sends the pending delta. Prompt log-probabilities go out when they are complete.
    pub fn flush(&mut self) {
        let complete = self.prompt_logprobs.len() == self.request.prompt.len();
        if self.request.prompt_logprobs.is_some() && complete {
            self.request.outbox.pending.prompt_logprobs = Some(std::mem::take(&mut self.prompt_logprobs));
        }
        self.request.outbox.flush();
    }

    /// True once the last delta was handed over.
    pub fn is_over(&self) -> bool {
        self.ended == self.request.n
    }

    /// `flush`, with the end of a request counted.
    pub fn flush_counted(&mut self, status: &EngineStatus) {
        if self.is_over() {
            add(&status.counters.requests_finished, 1);
            if let Some(metrics) = &self.request.outbox.pending.metrics {
                status.histograms.request(metrics);
            }
            if self.started.is_none() {
                status.queued.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.flush();
    }
}

fn no_sample(index: u32) -> EngineError {
    EngineError::Execution(format!("there is no sample {index}"))
}

fn nothing_allowed() -> EngineError {
    EngineError::InvalidRequest(
        "allowed_token_ids leaves no token that the structured output may continue with: allow the tokens of its text"
            .into(),
    )
}

fn with_text(tokenizer: &Tokenizer, row: Vec<Logprob>) -> Vec<TokenLogprob> {
    row.into_iter()
        .map(|l| TokenLogprob {
            token_id: l.token_id,
            logprob: l.logprob,
            rank: l.rank,
            token: tokenizer.token_text(l.token_id),
        })
        .collect()
}
