//! adapter_config.json of PEFT: what is read, what changes nothing, and what is refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use super::patterns::{Patterns, Targets};
use crate::ModelError;
use crate::config::{Config, read_json};

/// Largest rank of a module.
pub(crate) const MAX_RANK: usize = 256;
/// Largest adapter_config.json that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Rank and alpha of PEFT where the file names none.
const DEFAULT: usize = 8;
/// Largest number of a layer or rank that is no mistake of the file.
const MAX_INT: u64 = 1 << 32;

/// Fields that this loader reads.
const READ: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "init_lora_weights",
    "bias",
    "fan_in_fan_out",
];
/// Fields that describe the training or the file: they do not change what a trained adapter computes.
const NEUTRAL: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];
/// Fields that change what an adapter computes in a way that rows of a batch cannot have, and what they mean.
const REFUSED: &[(&str, &str)] = &[
    ("modules_to_save", "whole modules beside the adapter"),
    ("trainable_token_indices", "trained rows of the embedding"),
    ("target_parameters", "an adapter on parameters, as those of experts"),
    ("layer_replication", "a model of more layers"),
    ("alora_invocation_tokens", "an adapter that begins at some tokens (aLoRA)"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("arrow_config", "Arrow routing"),
    ("monteclora_config", "MonteCLoRA"),
    ("kasa_config", "KaSA"),
    ("velora_config", "VeLoRA"),
    ("megatron_config", "Megatron's layers"),
    ("loftq_config", "LoftQ, which changes the base model's weights"),
    ("corda_config", "CorDA, which changes the base model's weights"),
    ("lora_ga_config", "LoRA-GA, which changes the base model's weights"),
    ("ensure_weight_tying", "tied modules beside the adapter"),
];
/// Initialisations that leave the base model's weights as they are.
const INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// What the config says of every module.
pub struct AdapterConfig {
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// The modules have magnitudes.
    pub(crate) dora: bool,
    /// B has a bias.
    pub(crate) bias: bool,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    targets: Option<Targets>,
    excluded: Option<Targets>,
    layers: Option<Vec<usize>>,
}

impl AdapterConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// `NoAdapter`, `CorruptAdapter`, or as [`AdapterConfig::parse`].
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = path.display().to_string();
        let meta = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
        if meta.len() > MAX_BYTES {
            let what = format!("{} bytes of JSON, at most {MAX_BYTES} are read", meta.len());
            return Err(ModelError::corrupt_adapter(file, what));
        }
        let map = read_json(path).map_err(|e| match e {
            ModelError::Corrupt { file, what } => ModelError::corrupt_adapter(file, what),
            ModelError::NotFound { path, what } => ModelError::NoAdapter { path, what },
            other => other,
        })?;
        Self::parse(&map, &file)
    }

    /// Reads the fields; `file` names them in messages.
    ///
    /// # Errors
    /// `UnsupportedAdapter` for a field that asks for more than this loader does, `BadConfig` for a value that cannot be right.
    pub fn parse(map: &Map<String, Value>, file: &str) -> Result<Self, ModelError> {
        let config = Config::of_file(map, file);
        check_fields(&config, file)?;
        let refuse = |what: String| ModelError::unsupported_adapter(file, what);
        let rank = config.int("r", 1..=MAX_INT)?.unwrap_or(DEFAULT);
        let adapter = Self {
            rank: check_rank("r", rank, file)?,
            alpha: config.float("lora_alpha", f64::MIN, f64::MAX)?.unwrap_or(DEFAULT as f64),
            rslora: config.flag("use_rslora", false)?,
            dora: config.flag("use_dora", false)?,
            bias: config.flag("lora_bias", false)?,
            ranks: patterns(&config, "rank_pattern", &refuse, |key, value| {
                let rank = value.as_u64().filter(|rank| (1..=MAX_INT).contains(rank));
                let rank =
                    rank.ok_or_else(|| config.bad(key, value, "a whole number above 0 is expected"))?;
                check_rank(key, rank as usize, file)
            })?,
            alphas: patterns(&config, "alpha_pattern", &refuse, |key, value| {
                value.as_f64().ok_or_else(|| config.bad(key, value, "a number is expected"))
            })?,
            targets: targets(&config, "target_modules", &refuse)?,
            excluded: targets(&config, "exclude_modules", &refuse)?,
            layers: layers(&config)?,
        };
        if adapter.dora && adapter.bias {
            return Err(config.bad("lora_bias", &Value::Bool(true), "it cannot be combined with use_dora"));
        }
        Ok(adapter)
    }

    /// Factor on B A of the module that PEFT calls `path`, whose A has `rank` rows.
    ///
    /// # Errors
    /// The field that contradicts the tensors.
    pub fn scale(&self, path: &str, layer: usize, rank: usize) -> Result<f64, String> {
        if self.targets.as_ref().map(|t| t.has(path)).transpose()? == Some(false) {
            return Err("target_modules does not name it".into());
        }
        if self.excluded.as_ref().map(|t| t.has(path)).transpose()? == Some(true) {
            return Err("exclude_modules names it".into());
        }
        if self.layers.as_ref().is_some_and(|layers| !layers.contains(&layer)) {
            return Err(format!("layers_to_transform leaves layer {layer} out"));
        }
        let (field, said) = match self.ranks.get(path)? {
            Some(rank) => ("rank_pattern", rank),
            None => ("r", self.rank),
        };
        if said != rank {
            return Err(format!("its lora_A has {rank} rows, and {field} gives it rank {said}"));
        }
        let alpha = self.alphas.get(path)?.unwrap_or(self.alpha);
        Ok(alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Names of target_modules that are the end of no name in `found`.
    pub(crate) fn unmatched<'a>(&'a self, found: &[&str]) -> Vec<&'a str> {
        let Some(Targets::Names(names)) = &self.targets else { return Vec::new() };
        let missing = |end: &&str| !found.iter().any(|name| super::patterns::is_end(name, end));
        names.iter().map(String::as_str).filter(missing).collect()
    }
}

/// Refuses another method, what the loader does not do, and what it does not know.
fn check_fields(config: &Config<'_>, file: &str) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::unsupported_adapter(file, what));
    match config.text("peft_type")? {
        Some("LORA") => {}
        Some(other) => {
            return refuse(format!("peft_type {other:?}: only \"LORA\" can be attached to requests"));
        }
        None => return Err(config.bad("peft_type", &Value::Null, "\"LORA\" is expected")),
    }
    for (key, value) in config.map() {
        let (name, known) = (key.as_str(), |list: &[&str]| list.contains(&key.as_str()));
        if known(READ) || known(NEUTRAL) || is_nothing(value) {
            continue;
        }
        match REFUSED.iter().find(|(refused, _)| *refused == name) {
            Some((_, meaning)) => return refuse(format!("{name} is {}: {meaning}", shortened(value))),
            None => {
                return refuse(format!(
                    "{name} is {}, and octavo does not know this field",
                    shortened(value)
                ));
            }
        }
    }
    for key in ["r", "lora_alpha"] {
        if let Some(null @ Value::Null) = config.map().get(key) {
            return Err(config.bad(key, null, "a number is expected"));
        }
    }
    match config.text("bias")? {
        None | Some("none") => {}
        Some(other) => return refuse(format!("bias is {other:?}: trained biases of the base model")),
    }
    if config.flag("fan_in_fan_out", false)? {
        return refuse("fan_in_fan_out is true: transposed weights".into());
    }
    match config.value("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if INITIALISATIONS.contains(&name.as_str()) => Ok(()),
        Some(other) => refuse(format!(
            "init_lora_weights is {}, which changes the base model's weights",
            shortened(other)
        )),
    }
}

/// The value of a field that is off.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
}

fn check_rank(key: &str, rank: usize, file: &str) -> Result<usize, ModelError> {
    if rank <= MAX_RANK {
        return Ok(rank);
    }
    Err(ModelError::unsupported_adapter(
        file,
        format!("{key} is {rank}: ranks up to {MAX_RANK} can be attached"),
    ))
}

/// A map from patterns to values; `value` checks one.
fn patterns<T: Copy>(
    config: &Config<'_>,
    key: &str,
    refuse: &dyn Fn(String) -> ModelError,
    value: impl Fn(&str, &Value) -> Result<T, ModelError>,
) -> Result<Patterns<T>, ModelError> {
    let map = match config.value(key) {
        None => &Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(config.bad(key, other, "an object is expected")),
    };
    let rows = map.iter().map(|(pattern, v)| Ok((pattern.clone(), value(&format!("{key}.{pattern}"), v)?)));
    let rows = rows.collect::<Result<Vec<_>, ModelError>>()?;
    Patterns::new(rows.into_iter()).map_err(|what| refuse(format!("{key}: {what}")))
}

fn targets(
    config: &Config<'_>,
    key: &str,
    refuse: &dyn Fn(String) -> ModelError,
) -> Result<Option<Targets>, ModelError> {
    match config.value(key) {
        None => Ok(None),
        Some(Value::String(text)) => {
            Targets::pattern(text).map(Some).map_err(|what| refuse(format!("{key}: {what}")))
        }
        Some(_) => {
            let names = config.texts(key)?.unwrap_or_default();
            Ok(Some(Targets::Names(names.into_iter().map(String::from).collect())))
        }
    }
}

/// layers_to_transform: a number, or a list of them.
fn layers(config: &Config<'_>) -> Result<Option<Vec<usize>>, ModelError> {
    const KEY: &str = "layers_to_transform";
    let Some(value) = config.value(KEY) else { return Ok(None) };
    let number = |v: &Value| v.as_u64().filter(|n| *n < MAX_INT).map(|n| n as usize);
    let list = match value {
        Value::Array(list) if list.is_empty() => return Ok(None),
        Value::Array(list) => list.iter().map(number).collect::<Option<Vec<_>>>(),
        one => number(one).map(|n| vec![n]),
    };
    let bad = || config.bad(KEY, value, "numbers of layers are expected");
    list.map(Some).ok_or_else(bad)
}
