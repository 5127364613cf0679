//! The file of `octavo quantize`: safetensors whose tensors are the arrays that kernels read. docs/quantized-files.md
//! describes it for other readers.
//!
//! ```text
//! bytes
//! 0..8        size of the header, u64
//! 8..8+size   header, JSON, padded with spaces; 8 + size is a multiple of 4096
//!               "__metadata__": format, version, layout, group_size, rotation, made_by, source, stored_dtype,
//!                               error_budget, spared: [{tensor, error}], matrices: {KEY: MatrixEntry}
//!               "KEY.codes": {dtype, shape, data_offsets}, ...
//! data        arrays for aligned loads     KEY.codes, KEY.panels: each a multiple of 64 bytes
//!             scales                       KEY.scales
//!             plain f32                    norms, biases, small panels
//! ```
//!
//! KEY is the name of the matrix in the checkpoint. Matrices that are packed below each other have one key, such as
//! `model.layers.0.mlp.{gate_proj,up_proj}.weight`.

use std::collections::{BTreeMap, HashMap};
use std::num::ParseIntError;

use octavo_kernels::{Linear, PackedArray, QuantScheme, Rotation, WeightDtype};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ModelError;
use crate::config::Config;
use crate::weight_format::KeptInBf16;

/// `quant_method` in config.json and `format` in the file's metadata.
pub const METHOD: &str = "octavo";
/// Version of the file's form, beside the layout of the arrays, which the kernels name. Files of version 1 are read, too:
/// their int8 matrices are not rotated.
pub const VERSION: &str = "2";
const UNROTATED_VERSION: &str = "1";
/// Every array that kernels load from begins at a multiple of this, in bytes.
pub const ALIGNMENT: usize = 64;

/// The entry of one matrix in `matrices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixEntry {
    /// Rows of each of its tensors.
    pub rows: Vec<usize>,
    /// Columns.
    pub columns: usize,
    /// "int8" (in the scheme of the file), "int8-unrotated", "bfloat16" or "float32".
    pub dtype: String,
    /// Number of matrices of this form under the name, one after the other (one for each head); None: a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

/// Origin of a quantised file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Origin {
    /// Name of the model that was quantised.
    pub source: String,
    /// The program that wrote it, with its version.
    pub made_by: String,
    /// Element type of the embedding there.
    pub stored_dtype: String,
    /// The error above which a projection stayed in bfloat16; None: all are int8.
    pub error_budget: Option<f64>,
}

impl MatrixEntry {
    /// The tensor names and shapes of the arrays of matrix `key`.
    pub fn arrays(&self, key: &str, dtype: WeightDtype) -> Vec<(String, PackedArray)> {
        let arrays = PackedArray::of(dtype, self.rows.iter().sum(), self.columns);
        let named = arrays.into_iter().map(|mut array| {
            array.shape.splice(0..0, self.count);
            (format!("{key}.{}", array.name), array)
        });
        named.collect()
    }

    /// The type of its elements, if a file of `scheme` may hold it.
    pub fn weight_dtype(&self, scheme: QuantScheme) -> Option<WeightDtype> {
        if self.dtype == scheme.name() {
            return Some(WeightDtype::Quantized(scheme));
        }
        [WeightDtype::INT8_UNROTATED, WeightDtype::Bf16, WeightDtype::F32]
            .into_iter()
            .find(|d| name_of(*d) == self.dtype)
    }
}

/// The name of an element type in `matrices`.
pub fn name_of(dtype: WeightDtype) -> String {
    match dtype {
        WeightDtype::INT8_UNROTATED => "int8-unrotated".into(),
        WeightDtype::Quantized(scheme) => scheme.name(),
        WeightDtype::Bf16 => "bfloat16".into(),
        WeightDtype::F32 => "float32".into(),
    }
}

/// One name for tensors that are packed below each other: the parts that differ are in braces.
pub fn key_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let split: Vec<Vec<&str>> = names.map(|name| name.split('.').collect()).collect();
    let [first, others @ ..] = split.as_slice() else { return String::new() };
    if others.is_empty() {
        return first.join(".");
    }
    let shortest = split.iter().map(Vec::len).min().unwrap_or(0);
    let same = |at: &dyn Fn(&Vec<&'a str>) -> usize| others.iter().all(|o| o[at(o)] == first[at(first)]);
    let before = (0..shortest).take_while(|i| same(&|_| *i)).count();
    let after = (0..shortest - before).take_while(|i| same(&|name| name.len() - 1 - i)).count();
    let inner = split.iter().map(|name| name[before..name.len() - after].join("."));
    let inner = format!("{{{}}}", inner.collect::<Vec<_>>().join(","));
    let parts = first[..before].iter().copied().chain([inner.as_str()]);
    parts.chain(first[first.len() - after..].iter().copied()).collect::<Vec<_>>().join(".")
}

/// `quantization_config` for config.json of a quantised folder.
pub fn quantization_config(scheme: QuantScheme) -> Value {
    let QuantScheme { bits, group, rotation, .. } = scheme;
    json!({
        "quant_method": METHOD,
        "version": 2,
        "layout": Linear::LAYOUT,
        "bits": bits,
        "group_size": group,
        "rotation": rotation.name(),
    })
}

/// The scheme of a `quantization_config` of `octavo quantize`; None: it is of another method.
///
/// # Errors
/// `Unsupported` for another version, layout or scheme.
pub fn scheme_of(q: &Config<'_>) -> Result<Option<QuantScheme>, ModelError> {
    if q.text("quant_method")? != Some(METHOD) {
        return Ok(None);
    }
    let version = q.int("version", 0..=u64::from(u32::MAX))?.map(|version| version.to_string());
    check_layout(version.as_deref(), q.text("layout")?, "config.json")?;
    let default = QuantScheme::INT8;
    let bits = q.int("bits", 0..=u64::from(u8::MAX))?.map_or(default.bits, |bits| bits as u8);
    let group = q.int("group_size", 0..=u64::from(u32::MAX))?.unwrap_or(default.group);
    let rotation = rotation_of(version.as_deref(), q.text("rotation")?)
        .map_err(|e| ModelError::Unsupported(format!("quantization_config of config.json: {e}")))?;
    let scheme = QuantScheme { bits, group, rotation, ..default }.check();
    scheme.map(Some).map_err(|e| ModelError::Unsupported(format!("quantization_config of config.json: {e}")))
}

/// The rotation of a file of `version` that names `rotation`.
fn rotation_of(version: Option<&str>, rotation: Option<&str>) -> Result<Rotation, String> {
    match rotation {
        None if version == Some(UNROTATED_VERSION) => Ok(Rotation::None),
        None => Err("rotation is missing".into()),
        Some(name) => Rotation::from_name(name)
            .ok_or_else(|| format!("rotation {name:?} is not known: \"none\" or \"hadamard\" is expected")),
    }
}

/// Refuses a version or layout that this program does not read.
///
/// # Errors
/// `Unsupported`, with what to do.
pub fn check_layout(version: Option<&str>, layout: Option<&str>, file: &str) -> Result<(), ModelError> {
    let known = [UNROTATED_VERSION, VERSION].map(Some);
    if known.contains(&version) && layout == Some(Linear::LAYOUT) {
        return Ok(());
    }
    let or = |text: Option<&str>| text.unwrap_or("none named").to_string();
    Err(ModelError::Unsupported(format!(
        "{file} is of octavo's quantised form in version {} with layout {}, and this octavo reads versions {UNROTATED_VERSION} and {VERSION} with layout {}. \
         Quantise the original model again with `octavo quantize`, or use the octavo that made it",
        or(version),
        or(layout),
        Linear::LAYOUT
    )))
}

/// The header's `__metadata__`.
pub fn metadata(
    origin: &Origin,
    scheme: QuantScheme,
    kept_in_bf16: &[KeptInBf16],
    matrices: &BTreeMap<String, MatrixEntry>,
) -> Value {
    let kept_in_bf16 =
        kept_in_bf16.iter().map(|s| json!({"tensor": s.tensor, "error": s.error})).collect::<Value>();
    let mut map = json!({
        "format": METHOD,
        "version": VERSION,
        "layout": Linear::LAYOUT,
        "group_size": scheme.group.to_string(),
        "rotation": scheme.rotation.name(),
        "made_by": origin.made_by,
        "source": origin.source,
        "stored_dtype": origin.stored_dtype,
        "spared": kept_in_bf16.to_string(),
        "matrices": json!(matrices).to_string(),
    });
    if let Some(budget) = origin.error_budget {
        map["error_budget"] = budget.to_string().into();
    }
    map
}

/// The metadata of a file.
pub struct Metadata {
    /// Origin of the file.
    pub origin: Origin,
    /// Scheme of its quantised matrices.
    pub scheme: QuantScheme,
    /// Tensors in bfloat16.
    pub kept_in_bf16: Vec<KeptInBf16>,
    /// By name.
    pub matrices: BTreeMap<String, MatrixEntry>,
}

/// Reads the metadata of a file whose version and layout are known.
///
/// # Errors
/// The key that is missing or wrong.
pub fn read_metadata(map: &HashMap<String, String>) -> Result<Metadata, String> {
    #[derive(Deserialize)]
    struct Entry {
        tensor: String,
        error: f64,
    }
    let text = |key: &str| map.get(key).ok_or_else(|| format!("its metadata has no {key}"));
    let bad = |key: &str, what: &dyn std::fmt::Display| format!("{key} in its metadata: {what}");
    let group = text("group_size")?.parse().map_err(|e: ParseIntError| bad("group_size", &e))?;
    let rotation =
        rotation_of(map.get("version").map(String::as_str), map.get("rotation").map(String::as_str))
            .map_err(|e| bad("rotation", &e))?;
    let scheme =
        QuantScheme { group, rotation, ..QuantScheme::INT8 }.check().map_err(|e| bad("group_size", &e))?;
    let error_budget = match map.get("error_budget") {
        None => None,
        Some(budget) => Some(budget.parse::<f64>().map_err(|e| bad("error_budget", &e))?),
    };
    let kept_in_bf16: Vec<Entry> = serde_json::from_str(text("spared")?).map_err(|e| bad("spared", &e))?;
    let named: Map<String, Value> =
        serde_json::from_str(text("matrices")?).map_err(|e| bad("matrices", &e))?;
    let matrices = named.into_iter().map(|(key, value)| {
        let entry = serde_json::from_value(value).map_err(|e| bad("matrices", &format!("{key}: {e}")))?;
        Ok((key, entry))
    });
    Ok(Metadata {
        origin: Origin {
            source: text("source")?.clone(),
            made_by: text("made_by")?.clone(),
            stored_dtype: text("stored_dtype")?.clone(),
            error_budget,
        },
        scheme,
        kept_in_bf16: kept_in_bf16
            .into_iter()
            .map(|s| KeptInBf16 { tensor: s.tensor, error: s.error })
            .collect(),
        matrices: matrices.collect::<Result<_, String>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_all_their_tensors() {
        let key = |names: &[&str]| key_of(names.iter().copied());
        assert_eq!(key(&["lm_head.weight"]), "lm_head.weight");
        assert_eq!(key(&["a.0.q.weight", "a.0.k.weight"]), "a.0.{q,k}.weight");
        assert_eq!(key(&["a.q.x.weight", "a.k.weight"]), "a.{q.x,k}.weight");
        assert_eq!(key(&["q", "k"]), "{q,k}");
        assert_eq!(key(&["a.a", "a.a.a"]), "a.a.{,a}");
    }
}
