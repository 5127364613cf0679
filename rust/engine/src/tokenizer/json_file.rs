//! tokenizer.json in one pass. The tokenizers crate reads a model through two general JSON values, which takes several
//! times the memory and the time. Here a BPE model, the one with the large vocabularies, is read directly.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
};

/// Reads the text of a tokenizer.json.
///
/// # Errors
/// Those of the crate.
pub(super) fn read(json: &[u8]) -> Result<Tokenizer, String> {
    match serde_json::from_slice::<File>(json).map_err(|e| e.to_string()).and_then(File::build) {
        Ok(tokenizer) => Ok(tokenizer),
        // Another model, or something is wrong: the crate decides what.
        Err(_) => Tokenizer::from_bytes(json).map_err(|e| e.to_string()),
    }
}

/// A tokenizer.json with a BPE model. Truncation and padding are of training.
#[derive(serde::Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Bpe,
}

/// An added token. Its id follows from the vocabulary and the order, as in the crate.
#[derive(serde::Deserialize)]
struct Added {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(serde::Deserialize)]
enum ModelType {
    #[serde(rename = "BPE")]
    Bpe,
}

#[derive(serde::Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    _kind: ModelType,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: HashMap<String, u32, ahash::RandomState>,
    merges: Vec<Merge>,
}

/// Two tokens: `["a", "b"]`, or `"a b"` in older files.
struct Merge((String, String));

impl File {
    fn build(self) -> Result<Tokenizer, String> {
        if self.version.is_some_and(|version| version != "1.0") {
            return Err("another version".into());
        }
        let mut tokenizer = Tokenizer::new(self.model.build()?);
        tokenizer.with_normalizer(self.normalizer).map_err(|e| e.to_string())?;
        tokenizer.with_pre_tokenizer(self.pre_tokenizer);
        tokenizer.with_post_processor(self.post_processor);
        tokenizer.with_decoder(self.decoder);
        let added = self.added_tokens.into_iter().map(|added| added.token);
        tokenizer.add_tokens(added).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    }
}

impl Bpe {
    fn build(self) -> Result<BPE, String> {
        let merges = self.merges.into_iter().map(|merge| merge.0).collect();
        let mut builder = BPE::builder()
            .vocab_and_merges(ahash::AHashMap::from(self.vocab), merges)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        if let Some(dropout) = self.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(unknown) = self.unk_token {
            builder = builder.unk_token(unknown);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        builder.build().map_err(|e| e.to_string())
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_str<E: Error>(self, line: &str) -> Result<Merge, E> {
                let pair =
                    line.split_once(' ').filter(|(left, right)| *left != "#version:" && !right.contains(' '));
                let (left, right) = pair.ok_or_else(|| E::custom("a merge is not two tokens"))?;
                Ok(Merge((left.to_string(), right.to_string())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                match (list.next_element()?, list.next_element()?, list.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge((left, right))),
                    _ => Err(A::Error::custom("a merge is not two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn file(merges: Value, change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let added = json!({"id": 5, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                           "rstrip": true, "normalized": false});
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": null, "decoder": {"type": "Fuse"},
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                               "pair": [], "special_tokens": {}},
            "model": {"type": "BPE", "dropout": null, "unk_token": "a", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": true,
                      "vocab": {"a": 0, "b": 1, "▁": 2, "ab": 3, "▁ab": 4}, "merges": merges},
        });
        change(&mut file);
        file.to_string().into_bytes()
    }

    #[test]
    fn a_file_reads_as_the_crate_reads_it() {
        let pairs = json!([["a", "b"], ["▁", "ab"]]);
        let lines = json!(["a b", "▁ ab"]);
        for (merges, versioned) in [(pairs.clone(), true), (lines, true), (pairs, false)] {
            let json = file(merges, |file| {
                if !versioned {
                    file["model"].as_object_mut().expect("a model").remove("ignore_merges");
                }
            });
            assert!(serde_json::from_slice::<File>(&json).is_ok(), "the fast way");
            let (own, crates) = (read(&json).expect("reads"), Tokenizer::from_bytes(&json).expect("reads"));
            assert_eq!(own.to_string(false).expect("JSON"), crates.to_string(false).expect("JSON"));
            for text in ["ab ab<s> a", "bab  c", ""] {
                let ids = |t: &Tokenizer| t.encode_fast(text, true).expect("ids").get_ids().to_vec();
                assert_eq!(ids(&own), ids(&crates), "{text}");
            }
        }
    }

    #[test]
    fn what_is_wrong_or_another_model_is_left_to_the_crate() {
        let word = |file: &mut Value| {
            file["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        };
        assert_eq!(read(&file(json!([]), word)).expect("reads").get_vocab_size(true), 2);
        let untyped = |file: &mut Value| {
            file["model"].as_object_mut().expect("a model").remove("type");
        };
        assert_eq!(read(&file(json!([["a", "b"]]), untyped)).expect("reads").get_vocab_size(true), 6);
        let version = |file: &mut Value| file["version"] = json!("2.0");
        assert!(read(&file(json!([]), version)).expect_err("version").contains("2.0"));
        for merges in [json!([["a", "x"]]), json!(["a"]), json!([["a"]]), json!([["a", "b", "a"]]), json!(3)]
        {
            let json = file(merges, |_| {});
            let crates = Tokenizer::from_bytes(&json).err().map(|e| e.to_string());
            assert_eq!(read(&json).err(), crates);
            assert!(crates.is_some());
        }
    }
}
