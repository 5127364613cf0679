//! Sampling parameters from a Python mapping.

use octavo_engine::{SamplingParams, Structure};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::raise;

/// Reads the fields of `octavo.SamplingParams`. Missing or None takes the default.
pub fn read(params: &Bound<'_, PyAny>) -> PyResult<SamplingParams> {
    let fields = Fields::new(params, &NAMES)?;
    let neutral = SamplingParams::default();
    let mut p = SamplingParams {
        n: fields.get("n")?.unwrap_or(neutral.n),
        // Given as None it means "until the context is full".
        max_tokens: if fields.dict.contains("max_tokens")? {
            fields.get("max_tokens")?
        } else {
            neutral.max_tokens
        },
        min_tokens: fields.get("min_tokens")?.unwrap_or(0),
        temperature: fields.get("temperature")?,
        top_p: fields.get("top_p")?,
        top_k: None,
        min_p: fields.get("min_p")?,
        repetition_penalty: fields.get("repetition_penalty")?,
        presence_penalty: fields.get("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: fields.get("frequency_penalty")?.unwrap_or(0.0),
        seed: None,
        stop: Vec::new(),
        stop_token_ids: fields.get("stop_token_ids")?.unwrap_or_default(),
        include_stop_str_in_output: fields.get("include_stop_str_in_output")?.unwrap_or(false),
        ignore_eos: fields.get("ignore_eos")?.unwrap_or(false),
        bad_words: fields.get("bad_words")?.unwrap_or_default(),
        logit_bias: Vec::new(),
        logprobs: fields.count("logprobs")?,
        prompt_logprobs: fields.count("prompt_logprobs")?,
        skip_special_tokens: fields.get("skip_special_tokens")?.unwrap_or(true),
        priority: fields.get("priority")?.unwrap_or(0),
        timeout: fields.get("timeout")?,
        cache_salt: fields.get("cache_salt")?,
        attention_error_bound: fields.get("attention_error_bound")?,
        structured: None,
    };
    // -1 means all candidates, as in vLLM.
    if let Some(k) = fields.get::<i64>("top_k")? {
        match u32::try_from(k) {
            Ok(k) => p.top_k = Some(k),
            Err(_) if k == -1 => p.top_k = Some(0),
            Err(_) => {
                return Err(fields.refuse("top_k", "0 or -1 (all), or a number of candidates, is expected"));
            }
        }
    }
    if let Some(seed) = fields.get::<i128>("seed")? {
        let wrapped = i64::try_from(seed).map(|s| s as u64).or_else(|_| u64::try_from(seed));
        p.seed = Some(wrapped.map_err(|_| fields.refuse("seed", "an integer of 64 bits is expected"))?);
    }
    if let Some(stop) = fields.value("stop")? {
        p.stop = match stop.extract::<String>() {
            Ok(one) => vec![one],
            Err(_) => fields.get("stop")?.unwrap_or_default(),
        };
    }
    if let Some(bias) = fields.value("logit_bias")? {
        let bias = bias
            .cast::<PyDict>()
            .map_err(|_| fields.refuse("logit_bias", "a dict of token id to number is expected"))?;
        for (id, value) in bias {
            // Keys may be strings, as JSON has them.
            let id = id.extract::<u32>().or_else(|e| id.extract::<String>()?.parse::<u32>().map_err(|_| e));
            let id = id.map_err(|_| fields.refuse("logit_bias", "token ids are expected as keys"))?;
            let value = value
                .extract::<f32>()
                .map_err(|_| fields.refuse("logit_bias", "numbers are expected as values"))?;
            p.logit_bias.push((id, value));
        }
        p.logit_bias.sort_unstable_by_key(|(id, _)| *id);
    }
    if let Some(structured) = fields.value("structured")? {
        let read = structured.extract::<(String, String)>().ok();
        p.structured = read.and_then(|(kind, text)| Structure::of(&kind, text));
        if p.structured.is_none() {
            return Err(fields.refuse("structured", "JsonSchema, Regex or Grammar is expected"));
        }
    }
    fields.refuse_unknown()?;
    Ok(p)
}

const NAMES: [&str; 25] = [
    "n",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "bad_words",
    "logit_bias",
    "logprobs",
    "prompt_logprobs",
    "skip_special_tokens",
    "priority",
    "timeout",
    "cache_salt",
    "attention_error_bound",
    "structured",
];

/// A mapping of parameters, of which `names` are known.
pub(crate) struct Fields<'py> {
    pub dict: Bound<'py, PyDict>,
    pub names: &'static [&'static str],
}

impl<'py> Fields<'py> {
    pub fn new(params: &Bound<'py, PyAny>, names: &'static [&'static str]) -> PyResult<Self> {
        let dict = match params.cast::<PyDict>() {
            Ok(dict) => dict.clone(),
            Err(_) => params.py().get_type::<PyDict>().call1((params,))?.cast_into::<PyDict>()?,
        };
        Ok(Self { dict, names })
    }

    fn value(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.dict.get_item(name)?.filter(|v| !v.is_none()))
    }

    pub fn get<T>(&self, name: &str) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let Some(value) = self.value(name)? else { return Ok(None) };
        match value.extract::<T>() {
            Ok(v) => Ok(Some(v)),
            Err(_) => Err(self.refuse(name, expected::<T>())),
        }
    }

    /// A number of candidates; -1 means all.
    fn count(&self, name: &str) -> PyResult<Option<u32>> {
        match self.get::<i64>(name)? {
            None => Ok(None),
            Some(-1) => Ok(Some(u32::MAX)),
            Some(k) => match u32::try_from(k) {
                Ok(k) => Ok(Some(k)),
                Err(_) => {
                    Err(self.refuse(name, "-1 (all), or a number of candidates from 0 on, is expected"))
                }
            },
        }
    }

    pub fn refuse(&self, name: &str, expected: &str) -> PyErr {
        let py = self.dict.py();
        let shown =
            self.dict.get_item(name).ok().flatten().and_then(|v| v.repr().ok()).map(|r| r.to_string());
        let mut shown = shown.unwrap_or_default();
        if shown.chars().count() > 80 {
            shown = shown.chars().take(77).chain("...".chars()).collect();
        }
        raise(py, "InvalidRequestError", &format!("{name} is {shown}: {expected}"))
    }

    pub fn refuse_unknown(&self) -> PyResult<()> {
        for (key, _) in &self.dict {
            let key = key.str()?.to_string();
            if !self.names.contains(&key.as_str()) {
                let text =
                    format!("{key} is not a parameter of this request. Known are: {}", self.names.join(", "));
                return Err(raise(self.dict.py(), "InvalidRequestError", &text));
            }
        }
        Ok(())
    }
}

/// What a field of type `T` takes, in words.
fn expected<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    match name {
        "u32" => "an integer from 0 to 4294967295 is expected",
        "i32" | "i64" | "i128" => "an integer is expected",
        "f32" | "f64" => "a number is expected",
        "bool" => "True or False is expected",
        _ if name.contains("Vec<u32>") => "a list of token ids is expected",
        _ if name.contains("Vec") => "a list of strings is expected",
        _ => "a string is expected",
    }
}
