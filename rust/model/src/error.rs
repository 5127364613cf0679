//! Errors of reading a model folder.

use std::path::PathBuf;

/// Faults of a model folder. Each message names the input and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder, or a file that it must hold, is not there.
    #[error("no model at {path}: {what}. Give a folder that holds config.json and *.safetensors files")]
    NotFound {
        /// The folder or file that was looked for.
        path: PathBuf,
        /// What is missing there.
        what: String,
    },
    /// The operating system refused to read a file.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The operating system refused to write a file.
    #[error("cannot write {path}: {source}. Give a new file in a folder with room for it")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The tokenizer is not there.
    #[error(
        "no tokenizer at {path}: a tokenizer.json is needed ({what}). \
         Save it with transformers' AutoTokenizer, or pass tokenizer="
    )]
    NoTokenizer {
        /// The file that was looked for.
        path: PathBuf,
        /// What there is instead.
        what: String,
    },
    /// A tokenizer or a chat template cannot be read.
    #[error("cannot read {what}: {why}")]
    Text {
        /// The file.
        what: String,
        /// The reason.
        why: String,
    },
    /// The architecture or one of its options is outside what the spec can express.
    #[error("unsupported model: {0}")]
    Unsupported(String),
    /// config.json, or another JSON file of the folder, holds a value that cannot be right.
    #[error("bad {file}: {key} is {value}, {expected}")]
    BadConfig {
        /// Name of the file.
        file: String,
        /// The key, with its parents, such as `rope_scaling.factor`.
        key: String,
        /// The value found.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A weight file is damaged, or does not fit config.json.
    #[error("corrupt checkpoint: {file}: {what}. Download or convert the model again")]
    Corrupt {
        /// The weight file or index.
        file: String,
        /// What is wrong in it.
        what: String,
    },
    /// The folder of an adapter, or a file that it must hold, is not there.
    #[error(
        "no adapter at {path}: {what}. Give a folder that PEFT has saved: adapter_config.json and adapter_model.safetensors"
    )]
    NoAdapter {
        /// The folder or file that was looked for.
        path: PathBuf,
        /// What is missing there.
        what: String,
    },
    /// An adapter uses what cannot be applied to a running model.
    #[error(
        "unsupported adapter: {file}: {what}. Merge it into the model with `octavo merge MODEL ADAPTER OUT`, and load OUT"
    )]
    UnsupportedAdapter {
        /// The file.
        file: String,
        /// The field or tensor, and why.
        what: String,
    },
    /// A file of an adapter is damaged, or contradicts another.
    #[error("corrupt adapter: {file}: {what}. Save the adapter with PEFT or download it again")]
    CorruptAdapter {
        /// The file.
        file: String,
        /// What is wrong in it.
        what: String,
    },
    /// An adapter was made for another base model.
    #[error(
        "the adapter does not fit this model: {file}: {what}. Load the base model that the adapter was trained on"
    )]
    ForeignAdapter {
        /// The file.
        file: String,
        /// The tensor, and what the model has instead.
        what: String,
    },
    /// Values of the caller's options that cannot be combined with this model or machine.
    #[error("{0}")]
    BadOption(String),
}

impl ModelError {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn write(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Write { path: path.to_path_buf(), source }
    }

    pub(crate) fn text(what: String, why: String) -> Self {
        Self::Text { what, why }
    }

    pub(crate) fn unsupported_adapter(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::UnsupportedAdapter { file: file.into(), what: what.into() }
    }

    pub(crate) fn corrupt_adapter(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::CorruptAdapter { file: file.into(), what: what.into() }
    }

    pub(crate) fn corrupt(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), what: what.into() }
    }
}
