//! Sampling parameters: what a caller asks for, checked, and completed with the model's defaults.

use std::collections::BTreeMap;

use octavo_scheduler::AttentionPolicy;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::EngineError;
use crate::fields::{FieldError, read_fields};
use crate::structured::Structured;

/// Max number of stop strings of one request, and of bytes of one.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
/// Max entries of `logit_bias` and `bad_words`.
const MAX_BIASES: usize = 4096;

/// What the caller asks for. `None` takes the model's default. Meanings are those of vLLM's `SamplingParams`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Samples drawn for the prompt.
    pub n: u32,
    /// Max tokens to generate; None: until the context is full.
    pub max_tokens: Option<u32>,
    /// No stop condition ends the output before this many tokens.
    pub min_tokens: u32,
    /// 0: greedy.
    pub temperature: Option<f32>,
    /// Smallest set of tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Number of candidates; 0: all.
    #[serde(deserialize_with = "count_or_all_zero")]
    pub top_k: Option<u32>,
    /// Candidates have at least this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Divides (or multiplies, if negative) logits of tokens seen in prompt or output.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Equal seeds give equal output, whatever else is in the batch.
    #[serde(deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// The output ends before the first of these strings.
    #[serde(deserialize_with = "strings")]
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
    #[serde(deserialize_with = "biases")]
    pub logit_bias: Vec<(u32, f32)>,
    /// The only tokens that the output may consist of; None: all.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Candidates reported per output token; 0: the chosen token alone. `u32::MAX`: all.
    #[serde(deserialize_with = "count_or_all")]
    pub logprobs: Option<u32>,
    /// Candidates reported per prompt token.
    #[serde(deserialize_with = "count_or_all")]
    pub prompt_logprobs: Option<u32>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Lower runs first.
    pub priority: i32,
    /// Seconds from submission after which the request fails.
    pub timeout: Option<f64>,
    /// Loaded packs whose texts the prompt begins with, in this order.
    #[serde(deserialize_with = "strings")]
    pub pack: Vec<String>,
    /// Prefix cache entries are shared only between requests of equal salt.
    pub cache_salt: Option<String>,
    /// The adapter's name, or its name and generation (`sql@3`).
    pub lora: Option<String>,
    /// Max softmax mass that attention may omit for this request, at most the engine's own bound.
    pub attention_error_bound: Option<f32>,
    /// What the output must be.
    pub structured: Option<Structured>,
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
            allowed_token_ids: None,
            logprobs: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
            priority: 0,
            timeout: None,
            pack: Vec::new(),
            cache_salt: None,
            lora: None,
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

/// A field's number, if it is set.
type FieldValue = fn(&SamplingParams) -> Option<f64>;

/// Range of a numeric field.
struct NumberRange {
    name: &'static str,
    /// Whole numbers only.
    integer: bool,
    min: f64,
    max: f64,
    /// `min` itself is not allowed.
    above_min: bool,
    /// `max` itself is not allowed.
    below_max: bool,
    value: FieldValue,
}

impl NumberRange {
    const fn new(name: &'static str, min: f64, max: f64, value: FieldValue) -> Self {
        Self { name, integer: false, min, max, above_min: false, below_max: false, value }
    }

    const fn integer(name: &'static str, min: f64, max: f64, value: FieldValue) -> Self {
        Self { integer: true, ..Self::new(name, min, max, value) }
    }

    const fn above(name: &'static str, min: f64, max: f64, value: FieldValue) -> Self {
        Self { above_min: true, ..Self::new(name, min, max, value) }
    }

    fn contains(&self, x: f64) -> bool {
        let low = if self.above_min { x > self.min } else { x >= self.min };
        let high = if self.below_max { x < self.max } else { x <= self.max };
        low && high
    }

    /// The range in words.
    fn expected(&self) -> String {
        let kind = if self.integer { "an integer" } else { "a number" };
        let Self { min, max, .. } = self;
        match (self.above_min, self.below_max) {
            (false, _) => format!("{kind} from {min} to {max} is expected"),
            (true, false) => format!("{kind} above {min} and at most {max} is expected"),
            (true, true) => format!("{kind} above {min} and below {max} is expected"),
        }
    }

    fn schema(&self) -> Value {
        let number = |x: f64| if x.fract() == 0.0 { json!(x as i64) } else { json!(x) };
        let min = if self.above_min { "exclusiveMinimum" } else { "minimum" };
        let max = if self.below_max { "exclusiveMaximum" } else { "maximum" };
        let kind = if self.integer { "integer" } else { "number" };
        json!({"type": kind, min: number(self.min), max: number(self.max)})
    }
}

/// Ranges of the numeric fields.
const RANGES: [NumberRange; 11] = [
    NumberRange::integer("n", 1.0, 256.0, |p| Some(p.n.into())),
    NumberRange::integer("max_tokens", 1.0, u32::MAX as f64, |p| p.max_tokens.map(Into::into)),
    NumberRange::integer("min_tokens", 0.0, u32::MAX as f64, |p| Some(p.min_tokens.into())),
    NumberRange::new("temperature", 0.0, 100.0, |p| p.temperature.map(Into::into)),
    NumberRange::above("top_p", 0.0, 1.0, |p| p.top_p.map(Into::into)),
    NumberRange::new("min_p", 0.0, 1.0, |p| p.min_p.map(Into::into)),
    NumberRange::above("repetition_penalty", 0.0, 100.0, |p| p.repetition_penalty.map(Into::into)),
    NumberRange::new("presence_penalty", -2.0, 2.0, |p| Some(p.presence_penalty.into())),
    NumberRange::new("frequency_penalty", -2.0, 2.0, |p| Some(p.frequency_penalty.into())),
    NumberRange::above("timeout", 0.0, 1e9, |p| p.timeout),
    NumberRange {
        below_max: true,
        ..NumberRange::above("attention_error_bound", 0.0, 1.0, |p| p.attention_error_bound.map(Into::into))
    },
];

impl SamplingParams {
    /// Reads the fields from a JSON object. A null takes the default, and without limit in `max_tokens`.
    ///
    /// # Errors
    /// Names the first field of another type.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Self, FieldError> {
        let params: Self = read_fields(fields)?;
        let unlimited = fields.get("max_tokens") == Some(&Value::Null);
        Ok(Self { max_tokens: params.max_tokens.filter(|_| !unlimited), ..params })
    }

    /// The ranges of numeric fields as a JSON schema.
    pub fn schema() -> Value {
        let properties: Map<String, Value> =
            RANGES.iter().map(|r| (r.name.to_string(), r.schema())).collect();
        json!({"type": "object", "properties": properties})
    }

    /// Checks everything that needs no model.
    ///
    /// # Errors
    /// `InvalidRequest` names the parameter, its value and the expected values.
    pub fn check(&self) -> Result<(), EngineError> {
        for range in &RANGES {
            if let Some(value) = (range.value)(self).filter(|x| !range.contains(*x)) {
                // Numbers are shown as they were written: most fields are f32.
                let shown = if range.integer { value.to_string() } else { (value as f32).to_string() };
                return refuse(range.name, shown, &range.expected());
            }
        }
        if let Some(max) = self.max_tokens.filter(|max| self.min_tokens > *max) {
            let expected = format!("at most max_tokens ({max}) is expected");
            return refuse("min_tokens", self.min_tokens, &expected);
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return refuse(
                "allowed_token_ids",
                "[]",
                "at least one token id is expected; leave it out to allow all",
            );
        }
        self.check_texts()
    }

    fn check_texts(&self) -> Result<(), EngineError> {
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
        Ok(())
    }

    /// Checks the request's bound on attention against the engine's policy. `bounded`: attention keeps to that policy.
    pub(crate) fn check_attention(&self, engine: AttentionPolicy, bounded: bool) -> Result<(), EngineError> {
        let Some(bound) = self.attention_error_bound else { return Ok(()) };
        let name = "attention_error_bound";
        let max = engine.bound();
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

    /// Refuses another attention than the engine's, with which its packs are made.
    pub(crate) fn check_pack_attention(
        &self,
        engine: AttentionPolicy,
        pack: &str,
    ) -> Result<(), EngineError> {
        match self.attention_error_bound.filter(|_| self.attention_policy(engine) != engine) {
            Some(bound) => {
                let expected = format!("pack {pack:?} was made with the engine's own: leave it out");
                refuse("attention_error_bound", bound, &expected)
            }
            None => Ok(()),
        }
    }

    /// The request's attention policy, in an engine with the policy `engine`.
    pub(crate) fn attention_policy(&self, engine: AttentionPolicy) -> AttentionPolicy {
        match self.attention_error_bound {
            Some(bound) if engine != AttentionPolicy::DENSE => AttentionPolicy::new(bound),
            _ => engine,
        }
    }

    /// Checks token ids against the vocabulary.
    pub fn check_vocabulary(&self, vocab: usize) -> Result<(), EngineError> {
        let ids = self.stop_token_ids.iter().map(|id| ("stop_token_ids", *id));
        let allowed = self.allowed_token_ids.iter().flatten().map(|id| ("allowed_token_ids", *id));
        let mut all = ids.chain(self.logit_bias.iter().map(|(id, _)| ("logit_bias", *id))).chain(allowed);
        match all.find(|(_, id)| *id as usize >= vocab) {
            Some((name, id)) => refuse(name, id, &format!("token ids of this model are below {vocab}")),
            None => Ok(()),
        }
    }
}

/// A count, of which -1 is `all`.
fn count<'de, D: Deserializer<'de>>(d: D, all: u32) -> Result<Option<u32>, D::Error> {
    let Some(count) = Option::<i64>::deserialize(d)? else { return Ok(None) };
    match u32::try_from(count) {
        Ok(count) => Ok(Some(count)),
        Err(_) if count == -1 => Ok(Some(all)),
        Err(_) => Err(serde::de::Error::custom("expected -1 (all), or a number of candidates from 0 on,")),
    }
}

fn count_or_all<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    count(d, u32::MAX)
}

fn count_or_all_zero<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    count(d, 0)
}

/// An integer of 64 bits, signed or not.
fn seed<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<i128>::deserialize(d)?.map(|seed| seed as u64))
}

fn strings<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string or a list of strings")]
    enum Strings {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Strings::deserialize(d)? {
        Strings::One(one) => vec![one],
        Strings::Many(many) => many,
    })
}

/// Biases by token id, in order. JSON has the ids as strings.
fn biases<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(u32, f32)>, D::Error> {
    let invalid = |_| serde::de::Error::custom("expected a dict of token id to number");
    let biases = BTreeMap::<String, f32>::deserialize(d).map_err(invalid)?;
    let parse = |(id, bias): (String, f32)| Ok((id.parse::<u32>()?, bias));
    let biases: Result<BTreeMap<u32, f32>, std::num::ParseIntError> = biases.into_iter().map(parse).collect();
    let invalid = |_| serde::de::Error::custom("expected a dict of token id to number");
    Ok(biases.map_err(invalid)?.into_iter().collect())
}
