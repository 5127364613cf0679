//! Stages that put spaces between tokens.

use std::sync::Arc;

use tokenizers::Decoder;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::wordpiece::cleanup;

use super::stage::{Begun, Piece, Single, Stage};

/// A mark stands for a space; in the first token it may stand for nothing.
#[derive(Clone, Debug)]
pub(super) struct Metaspace {
    mark: char,
    drops: bool,
    /// A stage before has made one token of all.
    fused: bool,
    begun: Begun,
}

impl Metaspace {
    pub fn new(mark: char, drops: bool, fused: bool) -> Self {
        Self { mark, drops, fused, begun: Begun::None }
    }
}

impl Stage for Metaspace {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        let with = if self.begun.is_first(&piece) && self.drops { "" } else { " " };
        next.push(Piece { text: piece.text.replace(self.mark, with), ..piece });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        let with = if self.fused && self.drops { "" } else { " " };
        Single::Text(text.replace(self.mark, with))
    }

    fn verbatim(&mut self) {
        if !self.fused {
            self.begun.skip();
        }
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// A space before each token but the first, and those that begin with a prefix.
#[derive(Clone, Debug)]
pub(super) struct Words {
    prefix: Option<String>,
    cleanup: bool,
    /// A stage before has made one token of all.
    fused: bool,
    begun: Begun,
}

impl Words {
    pub fn new(prefix: Option<String>, cleanup: bool, fused: bool) -> Self {
        Self { prefix, cleanup, fused, begun: Begun::None }
    }

    fn word(&self, text: &str, spaced: bool) -> String {
        let joined = self.prefix.as_deref().and_then(|prefix| text.strip_prefix(prefix));
        let text = match (spaced, joined) {
            (false, _) => text.to_string(),
            (true, Some(rest)) => rest.to_string(),
            (true, None) => format!(" {text}"),
        };
        if self.cleanup { cleanup(&text) } else { text }
    }
}

impl Stage for Words {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        let spaced = !self.begun.is_first(&piece) && piece.first;
        next.push(Piece { text: self.word(&piece.text, spaced), ..piece });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        Single::Text(self.word(&text, !self.fused))
    }

    fn verbatim(&mut self) {
        if !self.fused {
            self.begun.skip();
        }
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// A suffix stands for a space, but at the end of the text.
#[derive(Clone, Debug)]
pub(super) struct Suffix {
    suffix: String,
    held: String,
    verbatim: bool,
}

impl Suffix {
    pub fn new(suffix: String) -> Self {
        Self { suffix, held: String::new(), verbatim: false }
    }
}

impl Stage for Suffix {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        let mut text = std::mem::take(&mut self.held).replace(&self.suffix, " ");
        let certain = piece.text.find(&self.suffix).unwrap_or(piece.text.len());
        text.push_str(&piece.text[..certain]);
        self.held.push_str(&piece.text[certain..]);
        next.push(Piece { text, ..piece });
        Ok(())
    }

    fn finish(&mut self, next: &mut Vec<Piece>) -> Result<(), String> {
        let with = if self.verbatim { " " } else { "" };
        let text = std::mem::take(&mut self.held).replace(&self.suffix, with);
        next.push(Piece { text, first: false, last: true });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        Single::Text(text.replace(&self.suffix, " "))
    }

    fn verbatim(&mut self) {
        self.verbatim = true;
        // The space after the prompt's last word is the prompt's.
        self.held.clear();
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// The decoder of speech models: a token that is equal to the one before is left out.
#[derive(Clone, Debug)]
pub(super) struct Ctc {
    decoder: Arc<DecoderWrapper>,
    before: Option<String>,
}

impl Ctc {
    pub fn new(decoder: &DecoderWrapper) -> Self {
        Self { decoder: Arc::new(decoder.clone()), before: None }
    }
}

impl Stage for Ctc {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        if self.before.as_ref() != Some(&piece.text) {
            let made = self.decoder.decode_chain(vec![piece.text.clone()]).map_err(|e| e.to_string())?;
            self.before = Some(piece.text);
            next.extend(made.into_iter().map(|text| Piece { text, ..piece }));
        }
        Ok(())
    }

    fn single(&self, _text: String) -> Single {
        Single::Unknown
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}
