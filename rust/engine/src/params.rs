//! Sampling parameters: what a caller asks for, checked, and completed with the model's defaults.

use octavo_scheduler::AttentionPolicy;

use crate::EngineError;
use crate::structured::Structure;

/// Largest number of samples of one prompt.
const MAX_N: u32 = 256;
/// Most stop strings of one request, and the longest one in bytes.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias` and `bad_words`.
const MAX_BIASES: usize = 4096;

/// What the caller asks for. `None` takes the model's default. Meanings are those of vLLM's `SamplingParams`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Samples drawn for the prompt.
    pub n: u32,
    /// Most tokens to generate; None: until the context is full.
    pub max_tokens: Option<u32>,
    /// No stop condition ends the output before this many tokens.
    pub min_tokens: u32,
    /// 0: greedy.
    pub temperature: Option<f32>,
    /// Smallest set of tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Number of candidates; 0: all.
    pub top_k: Option<u32>,
    /// Candidates have at least this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Divides (or multiplies, if negative) logits of tokens seen in prompt or output.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// The same seed draws the same output, whatever runs beside it.
    pub seed: Option<u64>,
    /// The output ends before the first of these strings.
    pub stop: Vec<String>,
    /// The output ends with the first of these tokens.
    pub stop_token_ids: Vec<u32>,
    /// Keep the stop string or token's text in the output.
    pub include_stop_str_in_output: bool,
    /// The model's end-of-sequence tokens do not end the output.
    pub ignore_eos: bool,
    /// Strings that may not be produced.
    pub bad_words: Vec<String>,
    /// Added to logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Candidates reported per output token; 0: the chosen token alone. `u32::MAX`: all.
    pub logprobs: Option<u32>,
    /// Candidates reported per prompt token.
    pub prompt_logprobs: Option<u32>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Lower runs first.
    pub priority: i32,
    /// Seconds from submission after which the request fails.
    pub timeout: Option<f64>,
    /// Prefix cache entries are shared only between requests of equal salt.
    pub cache_salt: Option<String>,
    /// Most softmax mass that attention may leave out for this request, at most the engine's own bound.
    pub attention_error_bound: Option<f32>,
    /// What the output must be.
    pub structured: Option<Structure>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            n: 1,
            max_tokens: Some(256),
            min_tokens: 0,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            bad_words: Vec::new(),
            logit_bias: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
            priority: 0,
            timeout: None,
            cache_salt: None,
            attention_error_bound: None,
            structured: None,
        }
    }
}

/// The model's own defaults, from generation_config.json.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SamplingDefaults {
    /// Default temperature.
    pub temperature: f32,
    /// Default nucleus mass.
    pub top_p: f32,
    /// Default number of candidates; 0: all.
    pub top_k: u32,
    /// Default share of the best candidate.
    pub min_p: f32,
    /// Default repetition penalty.
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

fn refuse<T>(name: &str, value: impl std::fmt::Display, expected: &str) -> Result<T, EngineError> {
    Err(EngineError::InvalidRequest(format!("{name} is {value}: {expected}")))
}

fn in_range(name: &str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<(), EngineError> {
    if range.contains(&value) {
        return Ok(());
    }
    refuse(name, value, &format!("a number from {} to {} is expected", range.start(), range.end()))
}

impl SamplingParams {
    /// Checks everything that needs no model.
    ///
    /// # Errors
    /// `InvalidRequest` names the parameter, its value and what is allowed.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.n == 0 || self.n > MAX_N {
            return refuse("n", self.n, &format!("an integer from 1 to {MAX_N} is expected"));
        }
        if self.max_tokens == Some(0) {
            return refuse("max_tokens", 0, "at least 1 is expected (None: until the context is full)");
        }
        if let Some(max) = self.max_tokens.filter(|max| self.min_tokens > *max) {
            let expected = format!("at most max_tokens ({max}) is expected");
            return refuse("min_tokens", self.min_tokens, &expected);
        }
        in_range("temperature", self.temperature.unwrap_or(1.0), 0.0..=100.0)?;
        in_range("min_p", self.min_p.unwrap_or(0.0), 0.0..=1.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", top_p, "a number above 0 and at most 1 is expected");
        }
        let bound = self.attention_error_bound.unwrap_or(0.5);
        if !(bound > 0.0 && bound < 1.0) {
            return refuse("attention_error_bound", bound, "a number above 0 and below 1 is expected");
        }
        let repetition = self.repetition_penalty.unwrap_or(1.0);
        if !(repetition > 0.0 && repetition <= 100.0) {
            return refuse("repetition_penalty", repetition, "a number above 0 and at most 100 is expected");
        }
        if self.stop.len() > MAX_STOPS {
            return refuse(
                "stop",
                format!("{} strings", self.stop.len()),
                &format!("at most {MAX_STOPS} are taken"),
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "an empty string", "it would match everywhere; leave it out");
        }
        if let Some(long) = self.stop.iter().find(|s| s.len() > MAX_STOP_BYTES) {
            let found = format!("a string of {} bytes", long.len());
            return refuse("stop", found, &format!("at most {MAX_STOP_BYTES} bytes are taken"));
        }
        if self.bad_words.len() > MAX_BIASES || self.logit_bias.len() > MAX_BIASES {
            let found = format!("{} and {} entries", self.bad_words.len(), self.logit_bias.len());
            return refuse("bad_words / logit_bias", found, &format!("at most {MAX_BIASES} each are taken"));
        }
        if self.bad_words.iter().any(String::is_empty) {
            return refuse("bad_words", "an empty string", "leave it out");
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            return refuse(
                "logit_bias",
                format!("{bias} for token {id}"),
                "a number from -100 to 100 is expected",
            );
        }
        if let Some(timeout) = self.timeout.filter(|t| !(*t > 0.0 && *t <= 1e9)) {
            return refuse("timeout", timeout, "a number of seconds above 0 is expected");
        }
        Ok(())
    }

    /// Checks the request's bound on attention against the engine's policy. `bounded`: attention keeps to that policy.
    pub(crate) fn check_attention(&self, engine: AttentionPolicy, bounded: bool) -> Result<(), EngineError> {
        let Some(bound) = self.attention_error_bound else { return Ok(()) };
        let name = "attention_error_bound";
        let max = engine.error_bound;
        if !bounded {
            let expected = "this engine's attention keeps to no bound (its mode is \"budget\"): leave it out";
            return refuse(name, bound, expected);
        }
        // Dense attention keeps to every bound.
        if engine != AttentionPolicy::DENSE && bound > max {
            let expected = format!(
                "at most the engine's own error_bound ({max}) is expected: a request may be stricter, not looser"
            );
            return refuse(name, bound, &expected);
        }
        Ok(())
    }

    /// The request's attention policy, in an engine with the policy `engine`.
    pub(crate) fn attention_policy(&self, engine: AttentionPolicy) -> AttentionPolicy {
        match self.attention_error_bound {
            Some(error_bound) if engine != AttentionPolicy::DENSE => AttentionPolicy { error_bound },
            _ => engine,
        }
    }

    /// Checks token ids against the vocabulary.
    pub fn check_vocabulary(&self, vocab: usize) -> Result<(), EngineError> {
        let ids = self.stop_token_ids.iter().map(|id| ("stop_token_ids", *id));
        let mut all = ids.chain(self.logit_bias.iter().map(|(id, _)| ("logit_bias", *id)));
        match all.find(|(_, id)| *id as usize >= vocab) {
            Some((name, id)) => refuse(name, id, &format!("token ids of this model are below {vocab}")),
            None => Ok(()),
        }
    }
}
