//! Long texts, tokenised chunk by chunk, with the ids of the whole. Between two chunks the work can be given up.
//!
//! A chunk is tokenised together with what follows it. It ends at a token border from which the rest, tokenised alone, gives
//! the same tokens: both sides of the border are checked. A text without such a border is tokenised as a whole.

use tokenizers::{Encoding, Token, Tokenizer};

/// How a long text is cut, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub chunk: usize,
    /// Of the text behind a chunk, what is looked at with it.
    pub behind: usize,
}

/// Some tens of milliseconds of work.
pub(super) const SIZES: Sizes = Sizes { chunk: 64 << 10, behind: 2 << 10 };

/// Borders that are tried for a chunk, before a word, and anywhere.
const TRIES: usize = 16;

/// Asked with the number of tokens so far whether to go on.
pub(super) type GoOn<'a, E> = dyn FnMut(usize) -> Result<(), E> + 'a;

/// Why there are no ids.
pub(super) enum Stopped<E> {
    /// The tokenizer failed.
    Failed(tokenizers::Error),
    /// `go_on` has refused.
    Asked(E),
}

impl<E> From<tokenizers::Error> for Stopped<E> {
    fn from(error: tokenizers::Error) -> Self {
        Self::Failed(error)
    }
}

/// Token ids of `text`. `go_on` is asked between chunks.
///
/// # Errors
/// Those of the tokenizer and of `go_on`.
pub(super) fn encode<E>(
    tokenizer: &Tokenizer,
    text: &str,
    add_special_tokens: bool,
    sizes: Sizes,
    go_on: &mut GoOn<'_, E>,
) -> Result<Vec<u32>, Stopped<E>> {
    if text.len() <= 2 * (sizes.chunk + sizes.behind) {
        return Ok(tokenizer.encode_fast(text, add_special_tokens)?.get_ids().to_vec());
    }
    let mut ids = Vec::with_capacity(text.len() / 4);
    let mut rest = text;
    let longest_added = longest_added(tokenizer);
    while rest.len() > 2 * (sizes.chunk + sizes.behind) {
        go_on(ids.len()).map_err(Stopped::Asked)?;
        match first_chunk(tokenizer, rest, sizes, longest_added)? {
            Some((chunk, behind)) => {
                ids.extend(chunk);
                rest = behind;
            }
            None => break,
        }
    }
    go_on(ids.len()).map_err(Stopped::Asked)?;
    ids.extend_from_slice(tokenizer.encode_fast(rest, false)?.get_ids());
    go_on(ids.len()).map_err(Stopped::Asked)?;
    if add_special_tokens { Ok(around(tokenizer, ids)?) } else { Ok(ids) }
}

/// Most bytes of a text that one added token can stand for: normalization may make the text shorter, to a third at most
/// (a letter with two marks).
fn longest_added(tokenizer: &Tokenizer) -> usize {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    3 * added.values().map(|token| token.content.len()).max().unwrap_or(0)
}

/// The ids of a first chunk of `text`, and the text behind it. None if no border was found.
fn first_chunk<'a>(
    tokenizer: &Tokenizer,
    text: &'a str,
    sizes: Sizes,
    longest_added: usize,
) -> Result<Option<(Vec<u32>, &'a str)>, tokenizers::Error> {
    let seen = &text[..text.floor_char_boundary(sizes.chunk + sizes.behind)];
    let encoding = tokenizer.encode(seen, false)?;
    let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
    // Token `k` begins where the one before ends; that may be inside a character, or behind a space that it left out.
    let border = |k: usize| (k, offsets[k - 1].1);
    // An added token behind blanks may take them in: they stay together, also where the end of `seen` cuts the token.
    let before_added = &seen[..seen.floor_char_boundary(seen.len().saturating_sub(longest_added))];
    let last = sizes.chunk.min(before_added.trim_end().len());
    let fits = |(k, at): &(usize, usize)| {
        *at > 0 && *at <= last && offsets[*k].1 > *at && seen.is_char_boundary(*at)
    };
    let before_word = |(_, at): &(usize, usize)| {
        let (left, right) = (seen[..*at].chars().next_back(), &seen[*at..]);
        let mut right = right.chars();
        let blank = matches!(right.next(), Some(' ' | '\n'));
        blank && left.is_some_and(|c| !c.is_whitespace()) && right.next().is_some_and(|c| !c.is_whitespace())
    };
    let borders = || (1..ids.len()).rev().map(border).filter(fits);
    // The pre-tokenizer cut there, too. Only within a word of a chunk's length there is no such border.
    let words = encoding.get_word_ids();
    let cut = |(k, _): &(usize, usize)| words[*k - 1] != words[*k];
    let whole_word = !borders().any(|border| cut(&border));
    let cuts = || borders().filter(|border| whole_word || cut(border));
    for (k, at) in cuts().filter(before_word).take(TRIES).chain(cuts().take(TRIES)) {
        // Some tokenizers put a space before each text: then the rest begins behind its own.
        let own_space = seen[at..].starts_with(' ').then_some(at + 1);
        for start in std::iter::once(at).chain(own_space) {
            if tokenizer.encode_fast(&seen[start..], false)?.get_ids() == &ids[k..] {
                return Ok(Some((ids[..k].to_vec(), &text[start..])));
            }
        }
    }
    Ok(None)
}

/// `ids` with what the tokenizer puts before and behind a text.
fn around(tokenizer: &Tokenizer, ids: Vec<u32>) -> Result<Vec<u32>, tokenizers::Error> {
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let template = tokenizer.post_process(text, None, true)?;
    let mut all = Vec::with_capacity(ids.len() + template.get_ids().len());
    for id in template.get_ids() {
        match *id {
            TEXT => all.extend_from_slice(&ids),
            special => all.push(special),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// BPE over the letters of English words, under a pre-tokenizer, normalizer and post-processor.
    fn bpe(normalizer: Value, pre_tokenizer: Value, byte_level: bool) -> Tokenizer {
        let space = if byte_level { "Ġ" } else { "▁" };
        let mut tokens: Vec<String> =
            "abcdefghijklmnopqrstuvwxyz0123456789.,!Ċ".chars().map(String::from).collect();
        tokens.push(space.into());
        let mut merges = Vec::new();
        let pairs = [
            ("t", "h"),
            ("th", "e"),
            (space, "the"),
            ("a", "a"),
            ("aa", "aa"),
            ("1", "2"),
            (space, space),
            (space, "a"),
            ("e", "a"),
        ];
        for (left, right) in pairs {
            tokens.push(format!("{left}{right}"));
            merges.push(json!([left, right]));
        }
        tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
        let vocab: serde_json::Map<String, Value> =
            tokens.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
        let added = json!({"id": 0, "content": "<x>", "special": true, "single_word": false, "lstrip": true,
                           "rstrip": false, "normalized": false});
        let bos = json!({"<x>": {"id": "<x>", "ids": [vocab.len()], "tokens": ["<x>"]}});
        let json = json!({
            "version": "1.0", "added_tokens": [added], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "decoder": null,
            "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": bos,
                               "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
            "model": {"type": "BPE", "byte_fallback": !byte_level, "vocab": vocab, "merges": merges},
        });
        Tokenizer::from_bytes(json.to_string()).expect("tokenizer")
    }

    fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
        let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let llama = json!({"type": "Sequence", "normalizers": [prepend, marks]});
        let space = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
        let level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
        let digits = json!({"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+(?!\\S)| ?\\p{L}+|\\s+|."}, "behavior": "Isolated", "invert": false});
        let split = json!({"type": "Sequence", "pretokenizers": [digits, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        vec![
            ("Gemma", bpe(marks, Value::Null, false)),
            ("Llama", bpe(llama, Value::Null, false)),
            ("Metaspace, first", bpe(Value::Null, space("first"), false)),
            ("Metaspace, always", bpe(Value::Null, space("always"), false)),
            ("byte level", bpe(Value::Null, level(false), true)),
            ("byte level, prefix", bpe(Value::Null, level(true), true)),
            ("groups of digits", bpe(json!({"type": "NFC"}), split, true)),
        ]
    }

    fn chunked(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
        let sizes = Sizes { chunk: 160, behind: 80 };
        let ids = encode::<()>(tokenizer, text, special, sizes, &mut |_| Ok(()));
        ids.unwrap_or_else(|_| panic!("no ids"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn chunks_have_the_ids_of_the_whole(
            parts in prop::collection::vec(("( the| a|the aa|\n| the, aa!|1212|x<x>| é你| {1,9}|<x>|aaaaaaa|[a-z]{1,9}|[0-9]{1,9})", 1usize..30), 20..90),
            special: bool,
        ) {
            let text: String = parts.iter().map(|(part, times)| part.repeat(*times)).collect();
            for (name, tokenizer) in tokenizers() {
                let whole = tokenizer.encode_fast(text.as_str(), special).expect("ids").get_ids().to_vec();
                prop_assert_eq!(chunked(&tokenizer, &text, special), whole, "{}", name);
            }
        }
    }

    #[test]
    fn blanks_stay_with_the_added_token_that_takes_them_in() {
        // What is tokenised at once ends inside of "<x>", at each of its places.
        for blanks in 150..250 {
            let text = format!("{}<x>{}", " ".repeat(blanks), " the aa!".repeat(80));
            for (name, tokenizer) in tokenizers() {
                let whole = tokenizer.encode_fast(text.as_str(), false).expect("ids").get_ids().to_vec();
                assert_eq!(chunked(&tokenizer, &text, false), whole, "{name}, {blanks} blanks");
            }
        }
    }

    #[test]
    fn it_stops_when_it_is_asked_to() {
        let text = "the aa ".repeat(1000);
        for (name, tokenizer) in tokenizers() {
            let sizes = Sizes { chunk: 160, behind: 80 };
            let mut asked = Vec::new();
            let stopped = encode(&tokenizer, &text, false, sizes, &mut |count| {
                asked.push(count);
                if count < 300 { Ok(()) } else { Err("enough") }
            });
            assert!(matches!(stopped, Err(Stopped::Asked("enough"))), "{name}");
            assert!(*asked.last().expect("asked") < 600, "{name}: {asked:?}");
        }
    }
}
