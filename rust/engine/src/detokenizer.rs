//! Streaming detokenisation: text as soon as it is certain, never a part of a UTF-8 character.

use crate::EngineError;
use crate::tokenizer::{TextDecoder, Tokenizer, undecodable};

/// Tokens at the end of the prompt that the decoder sees, for what depends on the token before.
const PROMPT_END: usize = 4;

/// Turns the tokens of one sequence into text, piece by piece. The text continues that of the prompt: a word that follows
/// others keeps its leading space.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    decoder: TextDecoder,
    skip_special_tokens: bool,
}

impl Detokenizer {
    /// Starts after `prompt`. `verbatim`: the text is the bytes of all tokens, even at its beginning and its end.
    ///
    /// # Errors
    /// `Execution` where a regular expression of the decoder gives up.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        skip_special_tokens: bool,
        verbatim: bool,
    ) -> Result<Self, EngineError> {
        let mut this = Self { decoder: tokenizer.decoder(), skip_special_tokens };
        let mut text = String::new();
        let mut at = 0;
        // What follows depends on whether a text has begun, and on the last tokens.
        while at < prompt.len() && text.is_empty() {
            this.take(tokenizer, prompt[at], &mut text)?;
            at += 1;
        }
        for token in &prompt[at.max(prompt.len().saturating_sub(PROMPT_END))..] {
            this.take(tokenizer, *token, &mut text)?;
        }
        // A character that the prompt began is the prompt's.
        this.decoder.forget_bytes();
        if verbatim {
            this.decoder.verbatim();
        }
        Ok(this)
    }

    fn take(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) -> Result<(), EngineError> {
        let token = tokenizer.token(token, self.skip_special_tokens);
        token.map_or(Ok(()), |token| self.decoder.push(&token, text)).map_err(undecodable)
    }

    /// Takes the next token; returns the text that became certain (often empty).
    ///
    /// # Errors
    /// As `new`.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, EngineError> {
        let mut text = String::new();
        self.take(tokenizer, token, &mut text)?;
        Ok(text)
    }

    /// The text that was held back, at the end of the sequence.
    ///
    /// # Errors
    /// As `new`.
    pub fn finish(&mut self) -> Result<String, EngineError> {
        let mut text = String::new();
        self.decoder.finish(&mut text).map_err(undecodable)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_level;
    use proptest::prelude::*;

    fn stream(prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
        let t = byte_level();
        let mut d = Detokenizer::new(&t, prompt, true, false).expect("new");
        let mut pieces: Vec<String> = ids.iter().map(|id| d.push(&t, *id).expect("push")).collect();
        pieces.push(d.finish().expect("finish"));
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
