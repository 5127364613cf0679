//! Limits on the free text before an answer, such as reasoning: at its limit, the answer begins.

use llguidance::Matcher;
use serde::Deserialize;

use super::Structure;

/// Bytes of an output's beginning that are searched for `Budgeted::begin`.
const HEAD: usize = 256;
/// Marks a special token among the bytes of a vocabulary.
const SPECIAL: u8 = 0xff;

/// What a request asks its output to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "(String, String)")]
pub enum Structured {
    /// One structure holds the whole output.
    Whole(Structure),
    /// The output has free text of limited length before its answer.
    Budgeted(Box<Budgeted>),
}

impl TryFrom<(String, String)> for Structured {
    type Error = &'static str;

    /// From a kind's name and its text.
    fn try_from((kind, text): (String, String)) -> Result<Self, Self::Error> {
        if kind != "budgeted" {
            return Structure::try_from((kind, text)).map(Self::Whole);
        }
        serde_json::from_str(&text).map(Self::Budgeted).map_err(|_| "expected a budgeted structure")
    }
}

impl From<Structure> for Structured {
    fn from(structure: Structure) -> Self {
        Self::Whole(structure)
    }
}

/// An output with free text before its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgeted {
    /// The whole output.
    pub output: Structure,
    /// The mark at which free text begins; None: the output begins with free text.
    pub begin: Option<String>,
    /// The mark at which free text ends.
    pub end: String,
    /// What follows free text that reaches its limit. It begins with `end`.
    pub answer: Structure,
    /// Limit of the free text in tokens, its marks included; None: none of its own.
    pub max_tokens: Option<u32>,
    /// Tokens that stay for the answer: free text ends when so many are left, or half of all.
    pub answer_tokens: u32,
}

impl Budgeted {
    /// The limit of the free text, for an output of at most `max_tokens`.
    pub fn limit(&self, max_tokens: u32) -> u32 {
        let kept = self.answer_tokens.min(max_tokens / 2);
        self.max_tokens.unwrap_or(u32::MAX).min(max_tokens - kept)
    }
}

/// What is left of the limit of one sample's free text.
#[derive(Clone)]
pub(super) struct Budget {
    left: u32,
    begin: Option<Vec<u8>>,
    end: Vec<u8>,
    /// The first bytes of the output.
    head: Vec<u8>,
    /// Its last bytes, as many as an unfinished `end` needs.
    tail: Vec<u8>,
}

/// What follows from a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    /// Free text goes on.
    Within,
    /// There is no free text, or it has ended.
    Over,
    /// The limit is reached: the answer begins.
    Exhausted,
}

impl Budget {
    pub fn new(of: &Budgeted, max_tokens: u32) -> Self {
        Self {
            left: of.limit(max_tokens),
            begin: of.begin.as_ref().map(|mark| mark.clone().into_bytes()),
            end: of.end.clone().into_bytes(),
            head: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Counts a token with the given bytes.
    pub fn spend(&mut self, bytes: &[u8]) -> Spent {
        let bytes: Vec<u8> = bytes.iter().copied().filter(|b| *b != SPECIAL).collect();
        self.head.extend(bytes.iter().take(HEAD.saturating_sub(self.head.len())));
        self.tail.extend(&bytes);
        if self.tail.windows(self.end.len().max(1)).any(|w| w == self.end) || !self.may_be_free() {
            return Spent::Over;
        }
        self.left = self.left.saturating_sub(1);
        // A mark inside a character would break it.
        let whole = !cut_inside_character(&self.tail);
        let keep = self.end.len().max(4);
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        if self.left == 0 && whole { Spent::Exhausted } else { Spent::Within }
    }

    /// Whether the output begins with free text, as far as its beginning shows.
    fn may_be_free(&self) -> bool {
        let Some(begin) = &self.begin else { return true };
        let head = self.head.trim_ascii_start();
        head.starts_with(begin) || begin.starts_with(head)
    }
}

/// Whether `bytes` end inside a character of UTF-8.
fn cut_inside_character(bytes: &[u8]) -> bool {
    let last = &bytes[bytes.len().saturating_sub(3)..];
    // A leading byte that asks for more bytes than follow it.
    last.iter().rev().enumerate().any(|(following, byte)| match byte {
        0xc0..=0xdf => following < 1,
        0xe0..=0xef => following < 2,
        0xf0..=0xf7 => following < 3,
        _ => false,
    })
}

/// The bytes of a token, as the matcher's vocabulary has them.
pub(super) fn token_bytes(matcher: &Matcher, token: u32) -> Vec<u8> {
    matcher.tok_env().map(|env| env.tok_trie().token(token).to_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(begin: Option<&str>, tokens: u32) -> Budget {
        let any = Structure::Regex("(?s).*".into());
        let of = Budgeted {
            output: any.clone(),
            begin: begin.map(str::to_string),
            end: "</think>".into(),
            answer: any,
            max_tokens: Some(tokens),
            answer_tokens: 0,
        };
        Budget::new(&of, 1000)
    }

    fn spend(budget: &mut Budget, texts: &[&[u8]]) -> Vec<Spent> {
        texts.iter().map(|t| budget.spend(t)).collect()
    }

    #[test]
    fn half_of_the_tokens_at_most_are_kept_for_the_answer() {
        let mut of = Budgeted {
            output: Structure::Regex("a".into()),
            begin: None,
            end: "e".into(),
            answer: Structure::Regex("a".into()),
            max_tokens: None,
            answer_tokens: 512,
        };
        assert_eq!([60, 1, 4096].map(|n| of.limit(n)), [30, 1, 3584]);
        of.max_tokens = Some(100);
        assert_eq!([60, 4096].map(|n| of.limit(n)), [30, 100]);
    }

    #[test]
    fn the_answer_begins_when_the_limit_is_reached() {
        use Spent::{Exhausted, Over, Within};
        assert_eq!(spend(&mut budget(None, 3), &[b"a", b"b", b"c"]), [Within, Within, Exhausted]);
        // The mark ends the limit, in one token or in parts.
        assert_eq!(spend(&mut budget(None, 3), &[b"a", b"\xff</think>"]), [Within, Over]);
        assert_eq!(spend(&mut budget(None, 9), &[b"a</", b"thi", b"nk>\n"]), [Within, Within, Over]);
        // Not inside a character.
        let parts: [&[u8]; 4] = [b"a", b"\xe2", b"\x82", b"\xac"];
        assert_eq!(spend(&mut budget(None, 2), &parts), [Within, Within, Within, Exhausted]);
        assert_eq!(spend(&mut budget(None, 1), &[b"\xf0\x9f\x98", b"\x80"]), [Within, Exhausted]);
        // Broken bytes do not delay the end.
        assert_eq!(spend(&mut budget(None, 1), &[b"\x80\x80\x80"]), [Exhausted]);
    }

    #[test]
    fn an_output_without_the_first_mark_has_no_limit() {
        use Spent::{Exhausted, Over, Within};
        assert_eq!(spend(&mut budget(Some("<think>"), 3), &[b"\n<", b"no"]), [Within, Over]);
        assert_eq!(spend(&mut budget(Some("<think>"), 2), &[b"<think>", b"no"]), [Within, Exhausted]);
    }
}
