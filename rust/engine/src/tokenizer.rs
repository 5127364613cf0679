//! The model's tokenizer: tokenizer.json through the tokenizers crate, and what tokenizer_config.json and
//! generation_config.json add.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use octavo_model::{ModelFolder, TokenizerFiles};
use serde_json::{Map, Value};
use tokenizers::Tokenizer as HfTokenizer;

use crate::EngineError;
use crate::error::panic_text;

/// Text to token ids and back. Safe to share between threads.
pub struct Tokenizer {
    inner: HfTokenizer,
    config: Map<String, Value>,
    /// Texts of single tokens, by id, as they are asked for.
    texts: OnceLock<Vec<OnceLock<String>>>,
}

impl Tokenizer {
    /// Loads the tokenizer of `folder`.
    ///
    /// # Errors
    /// `ModelNotFound` without the file, `CorruptModel` if it cannot be read; a panic of the parser is caught.
    pub fn load(folder: &dyn ModelFolder) -> Result<Self, EngineError> {
        let TokenizerFiles { path, json, config } = folder.tokenizer()?;
        Self::parse(&json, config).map_err(|what| {
            EngineError::CorruptModel(format!("cannot read the tokenizer {}: {what}", path.display()))
        })
    }

    /// Reads the text of a tokenizer.json; `config` is what tokenizer_config.json holds.
    ///
    /// # Errors
    /// What is wrong with it; a panic of the parser is caught.
    pub fn parse(json: &[u8], config: Map<String, Value>) -> Result<Self, String> {
        let loaded = catch_unwind(|| HfTokenizer::from_bytes(json));
        let mut inner = loaded.map_err(panic_text)?.map_err(|e| e.to_string())?;
        // A stored truncation or padding is of training; here it would silently cut prompts.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        Ok(Self { inner, config, texts: OnceLock::new() })
    }

    /// The tokenizer as its tokenizer.json.
    pub fn to_json(&self) -> Result<Value, String> {
        let text = self.inner.to_string(false).map_err(|e| e.to_string())?;
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    /// Token ids of `text`; with `add_special_tokens` what the model expects around a prompt (such as BOS).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        let run = || self.inner.encode_fast(text, add_special_tokens);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(e)) => Err(EngineError::InvalidRequest(format!("the prompt cannot be tokenised: {e}"))),
            Err(p) => {
                Err(EngineError::InvalidRequest(format!("the prompt cannot be tokenised: {}", panic_text(p))))
            }
        }
    }

    /// Text of `ids`. Unknown ids are left out, as in transformers.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, EngineError> {
        let run = || self.inner.decode(ids, skip_special_tokens);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(e)) => Err(EngineError::Execution(format!("tokens cannot be turned into text: {e}"))),
            Err(p) => {
                Err(EngineError::Execution(format!("tokens cannot be turned into text: {}", panic_text(p))))
            }
        }
    }

    /// The text of one token, as reported with logprobs.
    pub fn token_text(&self, id: u32) -> String {
        let texts = self.texts.get_or_init(|| (0..self.vocab_size()).map(|_| OnceLock::new()).collect());
        match texts.get(id as usize) {
            Some(text) => text.get_or_init(|| self.decode_one(id)).clone(),
            None => self.decode_one(id),
        }
    }

    fn decode_one(&self, id: u32) -> String {
        let text = self.decode(&[id], false).unwrap_or_default();
        if text.is_empty() { self.inner.id_to_token(id).unwrap_or_default() } else { text }
    }

    /// The id of a token given by its exact name, such as `<|im_end|>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of token ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// tokenizer_config.json.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// A special token's text from tokenizer_config.json, in both of its spellings.
    pub fn special_token(&self, key: &str) -> Option<&str> {
        let value = self.config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use octavo_model::HfFolder;

    use super::*;

    /// A byte-level tokenizer without merges: token id = byte value, plus `<eos>` = 256.
    pub fn byte_level() -> Tokenizer {
        // The byte alphabet of GPT-2: printable bytes stand for themselves, the others for characters from 256 on.
        let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let others: Vec<u32> = (0..256).filter(|b| !printable(b)).collect();
        let character = |b: u32| match others.iter().position(|o| *o == b) {
            Some(place) => 256 + place as u32,
            None => b,
        };
        let vocab: Map<String, Value> = (0..256)
            .map(|b| (char::from_u32(character(b)).expect("a character").to_string(), Value::from(b)))
            .collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 256, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": []},
        });
        let inner = HfTokenizer::from_bytes(json.to_string()).expect("tokenizer");
        Tokenizer { inner, config: Map::new(), texts: OnceLock::new() }
    }

    #[test]
    fn bytes_round_trip() {
        let t = byte_level();
        let ids = t.encode("héllo <eos>", true).expect("ids");
        assert_eq!(ids.last(), Some(&256));
        assert_eq!(t.decode(&ids, true).expect("text"), "héllo ");
        assert_eq!(t.decode(&ids, false).expect("text"), "héllo <eos>");
        assert_eq!(t.token_text(256), "<eos>");
        assert_eq!(t.id_of("<eos>"), Some(256));
    }

    #[test]
    fn a_missing_or_broken_file_is_a_typed_error() {
        let dir = tempfile::tempdir().expect("dir");
        let missing = Tokenizer::load(&HfFolder::new(dir.path())).err().expect("missing");
        assert_eq!(missing.class_name(), "ModelNotFoundError");
        std::fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3}").expect("write");
        let broken = Tokenizer::load(&HfFolder::new(dir.path())).err().expect("broken");
        assert_eq!(broken.class_name(), "CorruptModelError");
        assert!(broken.to_string().contains("tokenizer.json"), "{broken}");
    }
}
