//! Streaming detokenisation: text as soon as it is certain, never a part of a UTF-8 character.

use crate::EngineError;
use crate::tokenizer::Tokenizer;

/// Tokens of the prompt that give the first output token its context (a word's leading space, say).
const PROMPT_CONTEXT: usize = 6;
/// Tokens kept as context of the next decode.
const CONTEXT: usize = 4;
/// Beyond this many undecided tokens only every eighth one is tried: endless broken bytes stay cheap.
const PATIENCE: usize = 64;

/// Turns the tokens of one sequence into text, piece by piece.
///
/// The method: decode a window of known tokens with and without the new ones, and emit the difference. A window
/// whose text ends in U+FFFD may hold the first bytes of a character, so it waits for more.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    /// Window of tokens: `decided` ones, whose text is out, then undecided ones.
    window: Vec<u32>,
    decided: usize,
    /// Length in bytes of the text of the decided tokens.
    prefix_bytes: usize,
    skip_special_tokens: bool,
}

impl Detokenizer {
    /// Starts after `prompt`.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        skip_special_tokens: bool,
    ) -> Result<Self, EngineError> {
        let window = prompt[prompt.len().saturating_sub(PROMPT_CONTEXT)..].to_vec();
        let mut this = Self { decided: window.len(), window, prefix_bytes: 0, skip_special_tokens };
        let prefix = tokenizer.decode(&this.window, skip_special_tokens)?;
        if prefix.ends_with('\u{FFFD}') {
            // The prompt ends inside a character: what comes next cannot be told apart from it.
            this.window.clear();
            this.decided = 0;
        } else {
            this.prefix_bytes = prefix.len();
        }
        Ok(this)
    }

    /// Takes the next token; returns the text that became certain (often empty).
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, EngineError> {
        self.window.push(token);
        let undecided = self.window.len() - self.decided;
        if undecided > PATIENCE && !undecided.is_multiple_of(8) {
            return Ok(String::new());
        }
        self.emit(tokenizer, false)
    }

    /// The text that was held back, at the end of the sequence.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        if self.window.len() == self.decided { Ok(String::new()) } else { self.emit(tokenizer, true) }
    }

    fn emit(&mut self, tokenizer: &Tokenizer, last: bool) -> Result<String, EngineError> {
        let text = tokenizer.decode(&self.window, self.skip_special_tokens)?;
        if text.ends_with('\u{FFFD}') && !last {
            return Ok(String::new());
        }
        // Some decoders change the text of earlier tokens (clean-up of spaces): never cut inside a character then.
        let mut start = self.prefix_bytes.min(text.len());
        while !text.is_char_boundary(start) {
            start += 1;
        }
        let new = text[start..].to_string();
        if new.is_empty() {
            return Ok(new);
        }
        let keep = self.window.len().saturating_sub(CONTEXT);
        self.window.drain(..keep);
        self.decided = self.window.len();
        self.prefix_bytes = tokenizer.decode(&self.window, self.skip_special_tokens)?.len();
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_level;
    use proptest::prelude::*;

    fn stream(prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
        let t = byte_level();
        let mut d = Detokenizer::new(&t, prompt, true).expect("new");
        let mut pieces: Vec<String> = ids.iter().map(|id| d.push(&t, *id).expect("push")).collect();
        pieces.push(d.finish(&t).expect("finish"));
        let text = pieces.concat();
        (pieces, text)
    }

    #[test]
    fn a_character_of_four_tokens_comes_out_whole() {
        let ids: Vec<u32> = "a😀b".bytes().map(u32::from).collect();
        let (pieces, text) = stream(&[], &ids);
        assert_eq!(text, "a😀b");
        assert_eq!(pieces, ["a", "", "", "", "😀", "b", ""]);
    }

    #[test]
    fn an_unfinished_character_is_flushed_at_the_end() {
        let (pieces, text) = stream(&[120], &[97, 0xF0, 0x9F]);
        assert_eq!(pieces[1..3], ["", ""]);
        assert!(text.starts_with('a') && text.ends_with('\u{FFFD}'), "{text:?}");
    }

    proptest! {
        /// Whatever the bytes, the pieces add up to the decoder's text of the whole.
        #[test]
        fn pieces_add_up(prompt in "[a-z é😀]{0,9}", text in "\\PC{0,40}", junk in prop::collection::vec(0u32..256, 0..90)) {
            let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
            let clean: Vec<u32> = text.bytes().map(u32::from).collect();
            prop_assert_eq!(stream(&prompt, &clean).1, text);
            let (pieces, all) = stream(&[], &junk);
            let bytes: Vec<u8> = junk.iter().map(|b| *b as u8).collect();
            prop_assert_eq!(all, String::from_utf8_lossy(&bytes).into_owned());
            prop_assert_eq!(pieces.len(), junk.len() + 1);
        }
    }
}
