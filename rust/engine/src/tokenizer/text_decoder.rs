//! From tokens to text, token by token: the decoder of a tokenizer.json as stages that keep what they must wait for.
//!
//! A whole text and a stream go through the same stages, so they are equal. The text is that of the tokenizers crate but
//! for one case: a run of byte tokens with broken bytes and valid characters. The crate turns all of it into U+FFFD. Here
//! the valid characters stay, since a stream has shown them already.

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::byte_stages::{ByteFallback, ByteLevel};
use super::stage::{Piece, Single, Stage};
use super::text_stages::{Fuse, Replace, Strip};
use super::word_stages::{Ctc, Metaspace, Suffix, Words};

/// More stages than any tokenizer has: what is beyond is refused.
const MAX_STAGES: usize = 64;

/// The decoder of a tokenizer, and the state of one text.
#[derive(Clone, Debug)]
pub(crate) struct TextDecoder {
    stages: Vec<Box<dyn Stage>>,
}

impl TextDecoder {
    /// The stages of `decoder`; None joins the tokens with spaces.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(decoder: Option<&DecoderWrapper>) -> Result<Self, String> {
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        match decoder {
            Some(decoder) => add(decoder, &mut stages, &mut false)?,
            None => stages.push(Box::new(Words::new(None, false, false))),
        }
        Ok(Self { stages })
    }

    /// Takes a token; appends the text that became certain to `out`.
    ///
    /// # Errors
    /// A regular expression of the decoder that gives up.
    pub fn push(&mut self, token: &str, out: &mut String) -> Result<(), String> {
        self.run(vec![Piece { text: token.into(), first: true, last: true }], false, out)
    }

    /// Appends the text that was held back, at the end.
    ///
    /// # Errors
    /// As `push`.
    pub fn finish(&mut self, out: &mut String) -> Result<(), String> {
        self.run(Vec::new(), true, out)
    }

    fn run(&mut self, mut pieces: Vec<Piece>, end: bool, out: &mut String) -> Result<(), String> {
        for stage in &mut self.stages {
            let mut next = Vec::new();
            for piece in pieces {
                stage.push(piece, &mut next)?;
            }
            if end {
                stage.finish(&mut next)?;
            }
            pieces = next;
        }
        out.extend(pieces.into_iter().map(|piece| piece.text));
        Ok(())
    }

    /// Forgets a character whose first bytes have come: what follows stands for itself.
    pub fn forget_bytes(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.forget_bytes());
    }

    /// From here on the text is the bytes of the tokens: nothing at its beginning or end is stripped.
    pub fn verbatim(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.verbatim());
    }

    /// The bytes that `token` adds to a text that has begun; None where that depends on other tokens.
    pub fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        let mut text = token.to_string();
        for stage in &self.stages {
            let bytes = match stage.single(text) {
                Single::Text(changed) => changed.into_bytes(),
                Single::Bytes(bytes) => bytes,
                Single::Unknown => return None,
            };
            match String::from_utf8(bytes) {
                Ok(valid) => text = valid,
                // Later stages change characters only.
                Err(e) => return Some(e.into_bytes()),
            }
        }
        Some(text.into_bytes())
    }
}

fn add(decoder: &DecoderWrapper, stages: &mut Vec<Box<dyn Stage>>, fused: &mut bool) -> Result<(), String> {
    if stages.len() >= MAX_STAGES {
        return Err(format!("its decoder has more than {MAX_STAGES} parts"));
    }
    stages.push(match decoder {
        DecoderWrapper::Sequence(sequence) => {
            return sequence.get_decoders().iter().try_for_each(|decoder| add(decoder, stages, fused));
        }
        DecoderWrapper::ByteLevel(_) => Box::new(ByteLevel::default()),
        DecoderWrapper::ByteFallback(_) => Box::new(ByteFallback::default()),
        DecoderWrapper::Fuse(_) => Box::new(Fuse::default()),
        DecoderWrapper::Metaspace(m) => {
            Box::new(Metaspace::new(m.get_replacement(), m.prepend_scheme != PrependScheme::Never, *fused))
        }
        DecoderWrapper::Strip(s) => Box::new(Strip::new(s.content, s.start, s.stop, *fused)),
        DecoderWrapper::WordPiece(w) => Box::new(Words::new(Some(w.prefix.clone()), w.cleanup, *fused)),
        DecoderWrapper::BPE(b) => Box::new(Suffix::new(b.suffix.clone())),
        DecoderWrapper::CTC(_) => Box::new(Ctc::new(decoder)),
        DecoderWrapper::Replace(replace) => {
            let pattern = serde_json::to_value(replace).map_err(|e| e.to_string())?;
            Box::new(Replace::new(literal(&pattern["pattern"]), replace.content.clone(), decoder, *fused))
        }
    });
    *fused |= matches!(decoder, DecoderWrapper::ByteLevel(_) | DecoderWrapper::Fuse(_));
    Ok(())
}

/// The text that a pattern stands for, if it is the same text always.
fn literal(pattern: &Value) -> Option<String> {
    let special = |c: char| c.is_ascii_punctuation() || c.is_whitespace() && c != ' ';
    let text = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(text), _) => text,
        (None, Some(regex)) if !regex.contains(special) => regex,
        _ => return None,
    };
    (!text.is_empty()).then(|| text.to_string())
}
