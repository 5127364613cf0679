//! Where a model's parts come from. A new file format is a new implementation of `ModelFolder`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, read_json};
use crate::families::{self, Family};
use crate::file_words;
use crate::other_forms;

/// Largest tokenizer.json that is read, in bytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Name of the chat template for requests that name none.
pub const DEFAULT_TEMPLATE: &str = "default";

/// The parts of a model on disk.
pub trait ModelFolder: Send + Sync {
    /// Path, for messages.
    fn path(&self) -> &Path;

    /// config.json.
    ///
    /// # Errors
    /// `NotFound` without it, `Corrupt` if it is not a JSON object.
    fn config(&self) -> Result<Map<String, Value>, ModelError>;

    /// The tensors, mapped and checked.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    fn tensors(&self) -> Result<Checkpoint, ModelError>;

    /// Checks that there is a tokenizer. Fast.
    ///
    /// # Errors
    /// `NoTokenizer`.
    fn check_tokenizer(&self) -> Result<(), ModelError>;

    /// The tokenizer.
    ///
    /// # Errors
    /// `NoTokenizer` without it, `Text` if it cannot be read.
    fn tokenizer(&self) -> Result<TokenizerFiles, ModelError>;

    /// The chat template of this name, if a file holds it.
    ///
    /// # Errors
    /// `Text` if it cannot be read.
    fn chat_template(&self, name: &str) -> Result<Option<String>, ModelError>;

    /// generation_config.json; empty without it.
    ///
    /// # Errors
    /// `Corrupt` if it is not a JSON object.
    fn generation_config(&self) -> Result<Map<String, Value>, ModelError>;
}

/// A tokenizer as text.
pub struct TokenizerFiles {
    /// Path of tokenizer.json, for messages.
    pub path: PathBuf,
    /// Content of tokenizer.json.
    pub json: Vec<u8>,
    /// Content of tokenizer_config.json; empty without it.
    pub config: Map<String, Value>,
    /// Content of special_tokens_map.json; empty without it.
    pub special_tokens_map: Map<String, Value>,
    /// Content of added_tokens.json; empty without it.
    pub added_tokens: Map<String, Value>,
}

/// A folder as Hugging Face publishes it.
///
/// ```text
/// config.json                          decoder, quantisation of the checkpoint
/// model.safetensors                    tensors; or several files and model.safetensors.index.json
/// tokenizer.json                       with tokenizer_config.json, special_tokens_map.json and added_tokens.json (optional)
/// chat_template.jinja                  optional, with additional_chat_templates/NAME.jinja
/// generation_config.json               optional: sampling defaults
/// ```
pub struct HfFolder {
    path: PathBuf,
    tokenizer: PathBuf,
}

/// Opens the model at `path`, in any format that is supported: today a Hugging Face folder.
///
/// # Errors
/// `NotFound` without the folder.
pub fn open(path: &Path) -> Result<Box<dyn ModelFolder>, ModelError> {
    if !path.is_dir() {
        return Err(not_found(path, "there is no such folder"));
    }
    Ok(Box::new(HfFolder::new(path)))
}

/// Opens the tokenizer at `path`: a model folder or a tokenizer.json. [`ModelFolder::check_tokenizer`] checks that it exists.
pub fn open_tokenizer(path: &Path) -> Box<dyn ModelFolder> {
    if path.is_dir() {
        return Box::new(HfFolder::new(path));
    }
    let folder = path.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    Box::new(HfFolder { path: folder, tokenizer: path.to_path_buf() })
}

/// Reads config.json into a spec and the names of its tensors.
///
/// # Errors
/// As [`ModelFolder::config`] and [`families::read`].
pub fn read_family(folder: &dyn ModelFolder) -> Result<Family, ModelError> {
    families::read(&Config::new(&folder.config()?))
}

fn not_found(path: &Path, what: &str) -> ModelError {
    ModelError::NotFound { path: path.to_path_buf(), what: what.into() }
}

impl HfFolder {
    /// A folder with `tokenizer.json` in it. Nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), tokenizer: path.join("tokenizer.json") }
    }

    /// A JSON object, empty without the file.
    fn optional_json(&self, name: &str) -> Result<Map<String, Value>, ModelError> {
        let file = self.path.join(name);
        if file.is_file() { read_json(&file) } else { Ok(Map::new()) }
    }
}

impl ModelFolder for HfFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn config(&self) -> Result<Map<String, Value>, ModelError> {
        let config = self.path.join("config.json");
        if !config.is_file() {
            let what = other_forms::folder(&self.path);
            return Err(not_found(&self.path, what.as_deref().unwrap_or("there is no config.json in it")));
        }
        read_json(&config)
    }

    fn tensors(&self) -> Result<Checkpoint, ModelError> {
        let mut checkpoint = Checkpoint::open(&self.path)?;
        if let Some(warning) = other_forms::idle_adapter(&self.path) {
            checkpoint.warn(warning);
        }
        Ok(checkpoint)
    }

    fn check_tokenizer(&self) -> Result<(), ModelError> {
        match self.tokenizer.exists() {
            true => Ok(()),
            false => {
                let what = other_forms::tokenizer(&self.path);
                let what =
                    what.unwrap_or_else(|| "other forms, such as tokenizer.model, are not read".into());
                Err(ModelError::NoTokenizer { path: self.tokenizer.clone(), what })
            }
        }
    }

    fn tokenizer(&self) -> Result<TokenizerFiles, ModelError> {
        self.check_tokenizer()?;
        let path = self.tokenizer.clone();
        let unreadable = |why: String| ModelError::text(format!("the tokenizer {}", path.display()), why);
        let size = std::fs::metadata(&path).map_err(|e| unreadable(e.to_string()))?.len();
        if size > MAX_TOKENIZER_BYTES {
            return Err(unreadable(format!("{size} bytes, at most {MAX_TOKENIZER_BYTES} are read")));
        }
        let json = std::fs::read(&path).map_err(|e| unreadable(e.to_string()))?;
        if let Some(what) = file_words::pointer(&json) {
            return Err(ModelError::NotFound { path, what });
        }
        let config = self.optional_json("tokenizer_config.json")?;
        let special_tokens_map = self.optional_json("special_tokens_map.json")?;
        let added_tokens = self.optional_json("added_tokens.json")?;
        Ok(TokenizerFiles { path, json, config, special_tokens_map, added_tokens })
    }

    fn chat_template(&self, name: &str) -> Result<Option<String>, ModelError> {
        let file = match name {
            DEFAULT_TEMPLATE => self.path.join("chat_template.jinja"),
            _ => self.path.join("additional_chat_templates").join(format!("{name}.jinja")),
        };
        if !file.is_file() {
            return Ok(None);
        }
        let unreadable = |e: std::io::Error| ModelError::text(file.display().to_string(), e.to_string());
        std::fs::read_to_string(&file).map(Some).map_err(unreadable)
    }

    fn generation_config(&self) -> Result<Map<String, Value>, ModelError> {
        self.optional_json("generation_config.json")
    }
}
