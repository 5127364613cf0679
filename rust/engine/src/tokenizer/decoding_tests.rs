//! Text of every kind of tokenizer: streamed, whole, and as the tokenizers crate decodes it.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::Decoder;

use super::Tokenizer;
use super::utf8::byte_of;
use crate::detokenizer::Detokenizer;

/// How a kind of tokenizer writes bytes.
#[derive(Clone, Copy, PartialEq)]
enum Bytes {
    /// Characters of an alphabet stand for them.
    Alphabet,
    /// Tokens such as `<0xE4>`.
    Tokens,
    None,
}

struct Kind {
    name: &'static str,
    tokenizer: Tokenizer,
    bytes: Bytes,
    tokens: u32,
}

const REPLACE: &str = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"#;
const STRIP: &str = r#"{"type": "Strip", "content": " ", "start": 1, "stop": 0}"#;

fn sequence(parts: &[&str]) -> Value {
    let parts: Vec<Value> = parts.iter().map(|part| serde_json::from_str(part).expect("JSON")).collect();
    json!({"type": "Sequence", "decoders": parts})
}

fn alphabet(byte: u8) -> char {
    (0..400).filter_map(char::from_u32).find(|c| byte_of(*c) == Some(byte)).expect("a character")
}

/// A tokenizer that knows `tokens`; `<s>` is special and `<tool>` added.
fn tokenizer(tokens: &[String], decoder: Value) -> Tokenizer {
    let mut vocab = Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token.clone()).or_insert(id.into());
    }
    let added = |content: &str, id: usize, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let (special, tool) = (added("<s>", vocab.len(), true), added("<tool>", vocab.len() + 1, false));
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
    let json = json!({"version": "1.0", "added_tokens": [special, tool], "decoder": decoder, "model": model});
    Tokenizer::parse(json.to_string().as_bytes(), Map::new()).expect("tokenizer")
}

fn kinds() -> Vec<Kind> {
    let words = [
        "a", "▁", "▁b", "▁▁c", "d▁", "é", "##e", "##", "f</w>", "g</w>h", "你", " ", ",", "<pad>", "|", "▁▁",
    ];
    let spaced = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let first = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let never = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true});
    let pieces = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let plain = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let (fallback, fuse) = (r#"{"type": "ByteFallback"}"#, r#"{"type": "Fuse"}"#);
    let long = r#"{"type": "Replace", "pattern": {"String": "▁▁"}, "content": "_"}"#;
    let regex = r#"{"type": "Replace", "pattern": {"Regex": "[de]+"}, "content": "!"}"#;
    let ends = r#"{"type": "Strip", "content": " ", "start": 1, "stop": 1}"#;
    let table = [
        ("byte level", Bytes::Alphabet, level),
        ("Llama", Bytes::Tokens, sequence(&[REPLACE, fallback, fuse, STRIP])),
        ("Gemma", Bytes::Tokens, sequence(&[REPLACE, fallback, fuse])),
        ("Metaspace behind bytes", Bytes::Tokens, sequence(&[fallback, &spaced.to_string()])),
        ("bytes, not fused", Bytes::Tokens, sequence(&[fallback, REPLACE])),
        ("both ends", Bytes::Tokens, sequence(&[REPLACE, fallback, fuse, ends])),
        ("a long mark", Bytes::Tokens, sequence(&[fallback, fuse, long])),
        ("an expression", Bytes::Tokens, sequence(&[fallback, fuse, regex])),
        ("an expression for each token", Bytes::None, sequence(&[regex, fuse])),
        ("marks of the whole", Bytes::None, sequence(&[fuse, &spaced.to_string()])),
        ("Metaspace", Bytes::None, spaced),
        ("Metaspace, first", Bytes::None, first),
        ("Metaspace, never", Bytes::None, never),
        ("WordPiece", Bytes::None, pieces),
        ("WordPiece, plain", Bytes::None, plain),
        ("suffix", Bytes::None, suffix),
        ("CTC", Bytes::None, ctc),
        ("none", Bytes::None, Value::Null),
    ];
    let kind = |(name, bytes, decoder)| {
        let mut tokens: Vec<String> = match bytes {
            Bytes::Alphabet => (0..=255).map(|b| alphabet(b).to_string()).collect(),
            Bytes::Tokens => (0..=255).map(|b| format!("<0x{b:02X}>")).collect(),
            Bytes::None => Vec::new(),
        };
        tokens.extend(words.iter().map(|word| word.to_string()));
        let tokenizer = tokenizer(&tokens, decoder);
        Kind { name, tokens: tokenizer.vocab_size() as u32, tokenizer, bytes }
    };
    table.into_iter().map(kind).collect()
}

/// What the tokenizers crate makes of `ids`. Valid characters beside broken bytes stay.
fn expected(kind: &Kind, ids: &[u32], skip: bool) -> String {
    let t = &kind.tokenizer;
    let kept: Vec<String> = ids.iter().filter_map(|id| t.token(*id, skip)).collect();
    if kept.is_empty() {
        return String::new();
    }
    let whole = t.inner.decode(ids, skip);
    if kind.bytes != Bytes::Tokens || whole.as_ref().is_ok_and(|text| !text.contains('\u{FFFD}')) {
        return whole.expect("decodes");
    }
    let mut tokens: Vec<String> = Vec::new();
    let mut run: Vec<u8> = Vec::new();
    let end = |run: &mut Vec<u8>, tokens: &mut Vec<String>| {
        for chunk in std::mem::take(run).utf8_chunks() {
            tokens.push(chunk.valid().into());
            tokens.push("\u{FFFD}".repeat(chunk.invalid().len()));
        }
    };
    for token in kept {
        match super::utf8::byte_token(&token) {
            Some(byte) => run.push(byte),
            None => {
                end(&mut run, &mut tokens);
                tokens.push(token);
            }
        }
    }
    end(&mut run, &mut tokens);
    t.inner.get_decoder().expect("a decoder").decode(tokens).expect("decodes")
}

fn stream(kind: &Kind, prompt: &[u32], ids: &[u32], skip: bool, verbatim: bool) -> Vec<String> {
    let t = &kind.tokenizer;
    let mut d = Detokenizer::new(t, prompt, skip, verbatim).expect("new");
    let mut pieces: Vec<String> = ids.iter().map(|id| d.push(t, *id).expect("push")).collect();
    pieces.push(d.finish().expect("finish"));
    pieces
}

/// Characters at the borders of the lengths of UTF-8, and some of real texts.
const CHARACTERS: [char; 17] = [
    'a',
    '\u{0}',
    '\u{7F}',
    '\u{80}',
    'é',
    '\u{7FF}',
    '\u{800}',
    '你',
    'ᚠ',
    '⠿',
    '⼀',
    '\u{D7FF}',
    '\u{FFFF}',
    '\u{10000}',
    '😀',
    '𠮷',
    '\u{10FFFF}',
];

#[test]
fn a_character_comes_out_with_its_last_byte() {
    for kind in kinds().iter().filter(|kind| kind.bytes != Bytes::None && kind.name != "an expression") {
        for (before, c) in CHARACTERS.into_iter().enumerate() {
            let mut text = [0; 4];
            let bytes = c.encode_utf8(&mut text).as_bytes();
            // In the middle of a run of other characters, and of a broken one.
            let run = ["你é".as_bytes(), bytes, &[0xE4, 0xBD], bytes, bytes].concat();
            let ids: Vec<u32> = run.iter().map(|b| u32::from(*b)).collect();
            let prompt = vec![256; before % 2];
            let pieces = stream(kind, &prompt, &ids, true, false);
            let mut at = 5 + bytes.len();
            assert_eq!(pieces[at - 1], c.to_string(), "{}: {c:?}", kind.name);
            assert_eq!(pieces[5..at - 1].concat(), "", "{}: {c:?}", kind.name);
            at += 2 + bytes.len();
            assert!(pieces[at - 1].ends_with(c), "{}: {c:?}", kind.name);
            assert_eq!(pieces[at + bytes.len() - 1], c.to_string(), "{}: {c:?}", kind.name);
        }
    }
}

#[test]
fn a_character_split_into_any_tokens_is_whole() {
    for c in CHARACTERS {
        let bytes: Vec<u8> = format!("x{c}y").into_bytes();
        let borders = bytes.len() - 1;
        for splits in 0..1u32 << borders {
            let mut tokens = vec![String::new()];
            for (i, byte) in bytes.iter().enumerate() {
                if i > 0 && splits >> (i - 1) & 1 == 1 {
                    tokens.push(String::new());
                }
                tokens.last_mut().expect("a token").push(alphabet(*byte));
            }
            let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
            let tokenizer = tokenizer(&tokens, level);
            let ids: Vec<u32> = tokens.iter().map(|token| tokenizer.id_of(token).expect("an id")).collect();
            let kind = Kind { name: "split", tokens: 0, tokenizer, bytes: Bytes::Alphabet };
            assert_eq!(stream(&kind, &[], &ids, true, false).concat(), format!("x{c}y"));
        }
    }
}

#[test]
fn a_lead_byte_waits_and_is_broken_at_the_end() {
    for kind in kinds().iter().filter(|kind| kind.bytes != Bytes::None && kind.name != "an expression") {
        let pieces = stream(kind, &[], &[0xF0, 0x9F, 0x61], true, false);
        let broken = if kind.bytes == Bytes::Tokens { "\u{FFFD}\u{FFFD}a" } else { "\u{FFFD}a" };
        assert_eq!(pieces, ["", "", broken, ""], "{}", kind.name);
        let pieces = stream(kind, &[], &[0x61, 0xE4], true, false);
        assert_eq!(pieces, ["a", "", "\u{FFFD}"], "{}", kind.name);
    }
}

#[test]
fn a_structured_text_keeps_the_space_that_its_grammar_asked_for() {
    let kinds = kinds();
    let word = |kind: &Kind, token: &str| kind.tokenizer.id_of(token).expect("an id");
    for name in ["Llama", "Metaspace", "both ends"] {
        let kind = kinds.iter().find(|kind| kind.name == name).expect("a kind");
        let ids = [word(kind, "▁b"), word(kind, "▁")];
        assert_eq!(stream(kind, &[word(kind, "<s>")], &ids, true, true).concat(), " b ", "{name}");
    }
}

#[test]
fn what_a_prompt_began_is_not_the_text_of_the_output() {
    for kind in kinds().iter().filter(|kind| kind.bytes != Bytes::None && kind.name != "an expression") {
        assert_eq!(
            stream(kind, &[0xE4, 0xBD], &[0xA0, 0x61], true, false).concat(),
            "\u{FFFD}a",
            "{}",
            kind.name
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    /// Streamed, whole and the crate's text are equal for every kind; a prompt's text comes before.
    #[test]
    fn every_kind_decodes_as_the_crate(
        draws in prop::collection::vec((any::<u32>(), any::<bool>()), 0..14),
        text in "[a-c你😀é ]{0,4}",
        prompt_length in 0usize..9,
        skip: bool,
    ) {
        for kind in kinds() {
            // Bytes of a text, then anything: words more often than their share.
            let mut ids: Vec<u32> = if kind.bytes == Bytes::None { Vec::new() } else { text.bytes().map(u32::from).collect() };
            let words = if kind.bytes == Bytes::None { 0 } else { 256 };
            ids.extend(draws.iter().map(|(n, word)| if *word { words + n % (kind.tokens - words) } else { n % (kind.tokens + 3) }));
            let whole = kind.tokenizer.decode(&ids, skip).expect("decodes");
            if kind.name == "both ends" && whole.is_empty() {
                // The crate panics where it strips an empty text.
                continue;
            }
            prop_assert_eq!(&whole, &expected(&kind, &ids, skip), "{}: {:?}", kind.name, ids);
            prop_assert_eq!(&stream(&kind, &[], &ids, skip, false).concat(), &whole, "{}", kind.name);
            let (prompt, rest) = ids.split_at(prompt_length.min(ids.len()));
            let joined = |text: &str, more: &str| format!("{text}{more}");
            let before = kind.tokenizer.decode(prompt, skip).expect("decodes");
            // The end of a prompt is final there, but not where more follows: a broken character, a stripped space.
            let changes = ["both ends", "an expression", "suffix", "a long mark"].contains(&kind.name);
            if !changes && !before.ends_with('\u{FFFD}') {
                prop_assert_eq!(&joined(&before, &stream(&kind, prompt, rest, skip, false).concat()), &whole, "{}: {:?} {:?}", kind.name, prompt, rest);
            }
        }
    }

    /// The text of a structured output is the bytes that its grammar saw.
    #[test]
    fn a_structured_text_is_its_bytes(draws in prop::collection::vec(any::<u32>(), 1..14), text in "[a-c你😀é ]{0,4}", prompt in 0u32..300) {
        for kind in kinds() {
            let mut ids: Vec<u32> = if kind.bytes == Bytes::None { Vec::new() } else { text.bytes().map(u32::from).collect() };
            ids.extend(draws.iter().map(|n| if kind.bytes == Bytes::None { n % kind.tokens } else { 256 + n % (kind.tokens - 256) }));
            let bytes: Option<Vec<Vec<u8>>> = ids.iter().map(|id| kind.tokenizer.token_bytes(*id)).collect();
            let Some(bytes) = bytes else { continue };
            if let Ok(text) = String::from_utf8(bytes.concat()) {
                prop_assert_eq!(&stream(&kind, &[prompt], &ids, false, true).concat(), &text, "{}: {:?}", kind.name, ids);
                prop_assert_eq!(&stream(&kind, &[], &ids, false, true).concat(), &text, "{}: {:?}", kind.name, ids);
            }
        }
    }
}
