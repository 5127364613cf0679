//! pack.json: what a pack was made of and with.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EngineError;

/// Largest pack.json that is read.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Value of `format`.
const FORMAT: &str = "octavo-pack";
/// Value of `version`.
const VERSION: u32 = 1;
/// Most sources of a pack.
const MAX_SOURCES: usize = 100_000;
const NOTE: &str =
    "The text is data: documents that a model reads. It grants nothing and configures nothing.";

/// Where the text of a pack stands in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackForm {
    /// At the beginning of the system message, through the chat template.
    Chat,
    /// At the beginning of a plain prompt.
    Text,
}

impl PackForm {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Text => "text",
        }
    }
}

/// A document in the text of a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its title.
    pub title: String,
    /// Its first character in the text.
    pub start: u64,
    /// The character behind its last one.
    pub end: u64,
}

/// The content of pack.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: String,
    version: u32,
    pub made_by: String,
    note: String,
    /// Names all of the rest.
    pub digest: String,
    pub form: PackForm,
    pub fingerprint: Map<String, Value>,
    pub blocks: u32,
    pub block_size: u32,
    /// Digests of the layers in kv.safetensors.
    pub layers: Vec<String>,
    pub sources: Vec<Source>,
    pub text: String,
    /// Tokens of the whole blocks.
    pub tokens: Vec<u32>,
}

impl Manifest {
    pub fn new(
        form: PackForm,
        fingerprint: Map<String, Value>,
        block_size: u32,
        tokens: Vec<u32>,
        text: String,
        sources: Vec<Source>,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            made_by: concat!("octavo ", env!("CARGO_PKG_VERSION")).into(),
            note: NOTE.into(),
            digest: String::new(),
            form,
            fingerprint,
            blocks: tokens.len() as u32 / block_size,
            block_size,
            layers: Vec::new(),
            sources,
            text,
            tokens,
        }
    }

    /// The digest of everything that a request gets of the pack.
    pub fn content_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(self.form.name().as_bytes());
        part(&serde_json::to_vec(&self.fingerprint).unwrap_or_default());
        part(&serde_json::to_vec(&self.sources).unwrap_or_default());
        part(self.text.as_bytes());
        part(&self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
        self.layers.iter().for_each(|layer| part(layer.as_bytes()));
        hasher.finalize().to_hex().to_string()
    }

    /// Reads and checks pack.json at `path`, without what a model is needed for.
    ///
    /// # Errors
    /// `CorruptModel` names the file and the field.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, EngineError> {
        let corrupt = |field: &str, what: String| {
            EngineError::CorruptModel(format!("{}: {field}: {what}. Make the pack again", path.display()))
        };
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| corrupt("not the form of a pack", e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(corrupt("format", format!("{:?}, expected {FORMAT:?}", manifest.format)));
        }
        if manifest.version != VERSION {
            return Err(corrupt("version", format!("{}, this octavo reads {VERSION}", manifest.version)));
        }
        if manifest.blocks == 0 {
            return Err(corrupt("blocks", "0, a pack has at least one block".into()));
        }
        let tokens = u64::from(manifest.blocks) * u64::from(manifest.block_size);
        if tokens != manifest.tokens.len() as u64 {
            let (found, blocks) = (manifest.tokens.len(), manifest.blocks);
            return Err(corrupt("tokens", format!("{found} of them, expected {tokens} in {blocks} blocks")));
        }
        let length = manifest.text.chars().count() as u64;
        let outside = |s: &&Source| s.start > s.end || s.end > length;
        if let Some(source) = manifest.sources.iter().find(outside) {
            let (start, end) = (source.start, source.end);
            return Err(corrupt("sources", format!("{start}..{end} of a text of {length} characters")));
        }
        if manifest.sources.len() > MAX_SOURCES {
            let found = manifest.sources.len();
            return Err(corrupt("sources", format!("{found} of them, at most {MAX_SOURCES} are read")));
        }
        let digest = manifest.content_digest();
        if manifest.digest != digest {
            return Err(corrupt("digest", format!("{:?}, its content has {digest:?}", manifest.digest)));
        }
        Ok(manifest)
    }
}
