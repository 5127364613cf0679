//! What the keys and values of a pack depend on, and the refusal of a pack that was made with something else.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use octavo_model::{BlockLayout, ModelSpec, open, open_tokenizer};
use serde_json::{Map, Value};

use crate::EngineError;
use crate::config::EngineConfig;
use crate::packs::manifest::PackForm;
use crate::resolve::ResolvedConfig;

/// Raised when a kernel computes other bits than before.
const NUMERICS_VERSION: &str = "1";
/// Raised when a block's bytes have another order than before.
const LAYOUT_VERSION: &str = "1";
/// Bytes that are hashed at once.
const CHUNK: usize = 1 << 20;

/// What an engine's keys and values depend on. Digests of files are made when the first pack is.
pub struct PackFacts {
    fixed: Vec<(&'static str, String)>,
    model: PathBuf,
    tokenizer: PathBuf,
    /// The template that was given to the engine.
    template: Option<String>,
    files: OnceLock<Result<FileDigests, EngineError>>,
}

#[derive(Clone)]
struct FileDigests {
    weights: String,
    tokenizer: String,
    template: String,
}

impl PackFacts {
    /// The facts of an engine over the model in `folder`. `quantization`: that of the weights as they are held.
    pub fn new(
        folder: &Path,
        spec: &ModelSpec,
        config: &EngineConfig,
        resolved: &ResolvedConfig,
        layout: &BlockLayout,
        quantization: String,
    ) -> Self {
        let context = resolved.limits.max_model_len as usize;
        let mut ropes = blake3::Hasher::new();
        for rope in &spec.ropes {
            for x in rope.inverse_frequencies(context) {
                ropes.update(&x.to_le_bytes());
            }
            ropes.update(&rope.amplitude().to_le_bytes());
        }
        let spec_json = serde_json::to_vec(spec).unwrap_or_default();
        let attention = resolved.attention.as_ref().map_or("dense".into(), |a| format!("dynamic {a:?}"));
        let fixed = vec![
            ("numerics", NUMERICS_VERSION.into()),
            ("kv_layout", format!("{LAYOUT_VERSION} {}", short(format!("{layout:?}").as_bytes()))),
            ("model", format!("{} {}", spec.architecture, short(&spec_json))),
            ("dtype", resolved.dtype.name().into()),
            ("quantization", quantization),
            (
                "kv_cache_dtype",
                format!("{} over {}", resolved.kv_format.name(), resolved.kv_format.float.name()),
            ),
            ("rope", ropes.finalize().to_hex()[..16].into()),
            ("attention", attention),
        ];
        Self {
            fixed,
            model: folder.to_path_buf(),
            tokenizer: config.tokenizer.clone().unwrap_or_else(|| folder.to_path_buf()),
            template: config.chat_template.clone(),
            files: OnceLock::new(),
        }
    }

    /// The fingerprint of a pack of `text`.
    ///
    /// # Errors
    /// Those of reading the model's files.
    pub(crate) fn fingerprint(
        &self,
        form: PackForm,
        text: &str,
        adapter: Option<&str>,
    ) -> Result<Map<String, Value>, EngineError> {
        let files = self.files.get_or_init(|| self.read()).clone()?;
        let template = if form == PackForm::Chat { files.template } else { "none".into() };
        let fixed = self.fixed.iter().map(|(name, value)| (*name, value.clone()));
        let others = [
            ("weights", files.weights),
            ("adapter", adapter.unwrap_or("none").into()),
            ("tokenizer", files.tokenizer),
            ("template", template),
            ("text", blake3::hash(text.as_bytes()).to_hex().to_string()),
        ];
        Ok(fixed.chain(others).map(|(name, value)| (name.to_string(), Value::String(value))).collect())
    }

    fn read(&self) -> Result<FileDigests, EngineError> {
        let files = open_tokenizer(&self.tokenizer).tokenizer()?;
        let mut tokenizer = blake3::Hasher::new();
        tokenizer.update(&files.json);
        for map in [&files.config, &files.special_tokens_map, &files.added_tokens] {
            tokenizer.update(&serde_json::to_vec(map).unwrap_or_default());
        }
        let template = match &self.template {
            Some(text) => text.clone(),
            None => {
                let own = open(&self.model)?.chat_template(octavo_model::DEFAULT_TEMPLATE)?;
                own.unwrap_or_else(|| {
                    files.config.get("chat_template").map(Value::to_string).unwrap_or_default()
                })
            }
        };
        Ok(FileDigests {
            weights: weights_digest(&self.model)?,
            tokenizer: tokenizer.finalize().to_hex().to_string(),
            template: blake3::hash(template.as_bytes()).to_hex().to_string(),
        })
    }
}

/// Compares the fingerprint of the pack at `path` with this engine's.
///
/// # Errors
/// `PackMismatch` names the first field that differs.
pub(crate) fn compare(
    path: &Path,
    found: &Map<String, Value>,
    expected: &Map<String, Value>,
) -> Result<(), EngineError> {
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "missing".into(),
    };
    let names = expected.keys().chain(found.keys().filter(|name| !expected.contains_key(*name)));
    for name in names {
        let (found, expected) = (found.get(name), expected.get(name));
        if found != expected {
            return Err(EngineError::PackMismatch(format!(
                "the pack {} does not fit: {name} is {:?}, and this engine has {:?}. Make it again: octavo pack --refresh",
                path.display(),
                text(found),
                text(expected)
            )));
        }
    }
    Ok(())
}

/// The first digits of a digest.
fn short(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].into()
}

/// The digest of all weight files of a folder.
fn weights_digest(folder: &Path) -> Result<String, EngineError> {
    let unreadable = |path: &Path, e: std::io::Error| {
        EngineError::ModelNotFound(format!("cannot read {}: {e}", path.display()))
    };
    let entries = std::fs::read_dir(folder).map_err(|e| unreadable(folder, e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .collect();
    files.sort();
    let mut all = blake3::Hasher::new();
    for file in files {
        let digest = file_digest(&file).map_err(|e| unreadable(&file, e))?;
        all.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        all.update(digest.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

fn file_digest(path: &Path) -> std::io::Result<blake3::Hash> {
    let (mut file, mut hasher) = (File::open(path)?, blake3::Hasher::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize()),
            n => {
                hasher.update(&chunk[..n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn the_first_field_that_differs_is_named_with_both_values() {
        let expected = map(json!({"numerics": "1", "weights": "abc", "text": "t"}));
        let check = |found: Value| compare(Path::new("x.pack"), &map(found), &expected);
        assert_eq!(check(json!({"text": "t", "weights": "abc", "numerics": "1"})), Ok(()));
        let error = check(json!({"numerics": "1", "weights": "old", "text": "other"})).expect_err("differs");
        let text = error.to_string();
        assert!(text.contains("weights is \"old\", and this engine has \"abc\""), "{text}");
        assert!(text.contains("octavo pack --refresh"), "{text}");
        let lacks = check(json!({"numerics": "1", "text": "t"})).expect_err("differs").to_string();
        assert!(lacks.contains("weights is \"missing\""), "{lacks}");
        let more =
            check(json!({"numerics": "1", "weights": "abc", "text": "t", "z": 1})).expect_err("differs");
        assert!(more.to_string().contains("z is \"1\", and this engine has \"missing\""), "{more}");
    }
}
