//! The model's tokenizer: tokenizer.json through the tokenizers crate, and what tokenizer_config.json and
//! generation_config.json add.

mod added_tokens;
mod byte_stages;
mod chunks;
#[cfg(test)]
mod decoding_tests;
mod json_file;
mod stage;
mod text_decoder;
mod text_stages;
mod utf8;
mod word_stages;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::OnceLock;

use octavo_model::{ModelFolder, TokenizerFiles};
use serde_json::{Map, Value};
use tokenizers::Tokenizer as HfTokenizer;

use crate::EngineError;
use crate::error::panic_text;
use crate::token_text::TokenText;
use chunks::Stopped;
pub(crate) use text_decoder::TextDecoder;

/// Text to token ids and back. Safe to share between threads.
pub struct Tokenizer {
    inner: HfTokenizer,
    config: Map<String, Value>,
    /// The decoder before its first token.
    decoder: TextDecoder,
    /// What its files say and does not count.
    warnings: Vec<String>,
    /// Texts of single tokens, by id, as they are asked for.
    texts: OnceLock<Vec<OnceLock<TokenText>>>,
}

impl Tokenizer {
    /// Loads the tokenizer of `folder`.
    ///
    /// # Errors
    /// `ModelNotFound` without the file, `CorruptModel` if it cannot be read; a panic of the parser is caught.
    pub fn load(folder: &dyn ModelFolder) -> Result<Self, EngineError> {
        let files = folder.tokenizer()?;
        let path = files.path.clone();
        Self::read(files).map_err(|what| {
            EngineError::CorruptModel(format!("cannot read the tokenizer {}: {what}", path.display()))
        })
    }

    /// Reads the text of a tokenizer.json; `config` is what tokenizer_config.json holds.
    ///
    /// # Errors
    /// What is wrong with it; a panic of the parser is caught.
    pub fn parse(json: &[u8], config: Map<String, Value>) -> Result<Self, String> {
        let (special_tokens_map, added_tokens) = (Map::new(), Map::new());
        let path = PathBuf::new();
        Self::read(TokenizerFiles { path, json: json.to_vec(), config, special_tokens_map, added_tokens })
    }

    fn read(mut files: TokenizerFiles) -> Result<Self, String> {
        let json = std::mem::take(&mut files.json);
        let mut inner = catch_unwind(|| json_file::read(&json)).map_err(panic_text)??;
        drop(json);
        // A stored truncation or padding is of training; here it would silently cut prompts.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let add = AssertUnwindSafe(|| added_tokens::apply(&mut inner, &mut files));
        let (config, warnings) = catch_unwind(add).map_err(panic_text)??;
        Ok(Self { warnings, ..Self::over(inner, config)? })
    }

    fn over(inner: HfTokenizer, config: Map<String, Value>) -> Result<Self, String> {
        let decoder = TextDecoder::new(inner.get_decoder())?;
        Ok(Self { inner, config, decoder, warnings: Vec::new(), texts: OnceLock::new() })
    }

    /// Token ids of `text`; with `add_special_tokens` what the model expects around a prompt (such as BOS).
    ///
    /// # Errors
    /// `InvalidRequest` if the tokenizer refuses it.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EngineError> {
        self.encode_while(text, add_special_tokens, &mut |_| Ok(()))
    }

    /// `encode` of a text that may be long: `go_on` is asked with the number of tokens so far, some ten times a second.
    ///
    /// # Errors
    /// As `encode`, and those of `go_on`.
    pub fn encode_while(
        &self,
        text: &str,
        add_special_tokens: bool,
        go_on: &mut dyn FnMut(usize) -> Result<(), EngineError>,
    ) -> Result<Vec<u32>, EngineError> {
        let run = || chunks::encode(&self.inner, text, add_special_tokens, chunks::SIZES, go_on);
        let refused =
            |why: String| EngineError::InvalidRequest(format!("the prompt cannot be tokenised: {why}"));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(ids)) => Ok(ids),
            Ok(Err(Stopped::Asked(error))) => Err(error),
            Ok(Err(Stopped::Failed(error))) => Err(refused(error.to_string())),
            Err(panic) => Err(refused(panic_text(panic))),
        }
    }

    /// Text of `ids`. Unknown ids are left out, as in transformers.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, EngineError> {
        let mut decoder = self.decoder();
        let mut text = String::new();
        for id in ids {
            if let Some(token) = self.token(*id, skip_special_tokens) {
                decoder.push(&token, &mut text).map_err(undecodable)?;
            }
        }
        decoder.finish(&mut text).map_err(undecodable)?;
        Ok(text)
    }

    /// A decoder before its first token.
    pub(crate) fn decoder(&self) -> TextDecoder {
        self.decoder.clone()
    }

    /// The token of `id` as the decoder takes it. None if there is none, or a special one is to be skipped.
    pub(crate) fn token(&self, id: u32, skip_special_tokens: bool) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        let skipped = skip_special_tokens && self.inner.get_added_vocabulary().is_special_token(&token);
        (!skipped).then_some(token)
    }

    /// The name of a special token, such as `<eos>`.
    pub(crate) fn special_name(&self, id: u32) -> Option<&str> {
        let added = self.inner.get_added_vocabulary();
        let name = &added.get_added_tokens_decoder().get(&id)?.content;
        added.is_special_token(name).then_some(name)
    }

    /// The bytes that the token adds to a text that has begun. None if there is no such token, or if that depends on other
    /// tokens.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.decoder.bytes(&self.token(id, false)?)
    }

    /// What one token adds to a text, as reported with logprobs.
    pub fn token_text(&self, id: u32) -> TokenText {
        let texts = self.texts.get_or_init(|| (0..self.vocab_size()).map(|_| OnceLock::new()).collect());
        match texts.get(id as usize) {
            Some(text) => text.get_or_init(|| self.decode_one(id)).clone(),
            None => self.decode_one(id),
        }
    }

    fn decode_one(&self, id: u32) -> TokenText {
        let bytes =
            self.token_bytes(id).unwrap_or_else(|| self.decode(&[id], false).unwrap_or_default().into());
        match bytes.is_empty() {
            true => TokenText::of_name(self.inner.id_to_token(id).unwrap_or_default()),
            false => TokenText::of_bytes(bytes),
        }
    }

    /// The id of a token given by its exact name, such as `<|im_end|>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of token ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// tokenizer_config.json, with what special_tokens_map.json adds to it.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// A special token's text, in both of its spellings.
    pub fn special_token(&self, key: &str) -> Option<&str> {
        let value = self.config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }

    /// What its files say and does not count, and tokens for which a model of `vocab` tokens has no row.
    pub fn warnings(&self, vocab: usize) -> Vec<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let beyond = added.iter().filter(|(id, _)| **id as usize >= vocab);
        let mut beyond: Vec<(u32, &str)> = beyond.map(|(id, token)| (*id, token.content.as_str())).collect();
        beyond.sort_unstable();
        let first = beyond.first().map(|(id, text)| {
            format!(
                "the tokenizer has {} added tokens for which the model has no row: it has {vocab}, and token {text:?} is \
                 {id}. A prompt with them is refused, and the model never writes them",
                beyond.len()
            )
        });
        self.warnings.iter().cloned().chain(first).collect()
    }
}

pub(crate) fn undecodable(why: String) -> EngineError {
    EngineError::Execution(format!("tokens cannot be turned into text: {why}"))
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
        Tokenizer::over(inner, Map::new()).expect("decoder")
    }

    #[test]
    fn bytes_round_trip() {
        let t = byte_level();
        let ids = t.encode("héllo <eos>", true).expect("ids");
        assert_eq!(ids.last(), Some(&256));
        assert_eq!(t.decode(&ids, true).expect("text"), "héllo ");
        assert_eq!(t.decode(&ids, false).expect("text"), "héllo <eos>");
        assert_eq!(t.token_text(256).text(), "<eos>");
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
