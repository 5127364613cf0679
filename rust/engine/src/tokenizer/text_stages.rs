//! Stages that change characters.

use std::sync::Arc;

use tokenizers::Decoder;
use tokenizers::decoders::DecoderWrapper;

use super::stage::{Piece, Single, Stage};

/// All tokens become one.
#[derive(Clone, Debug, Default)]
pub(super) struct Fuse {
    begun: bool,
}

impl Stage for Fuse {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        next.push(Piece { first: !std::mem::replace(&mut self.begun, true), last: false, ..piece });
        Ok(())
    }

    fn finish(&mut self, next: &mut Vec<Piece>) -> Result<(), String> {
        next.push(Piece { text: String::new(), first: !self.begun, last: true });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        Single::Text(text)
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// Replaces a text, or what a regular expression matches.
#[derive(Clone, Debug)]
pub(super) struct Replace {
    /// The text; None for a regular expression.
    literal: Option<String>,
    with: String,
    decoder: Arc<DecoderWrapper>,
    /// A stage before has made one token of all.
    fused: bool,
    held: String,
}

impl Replace {
    pub fn new(literal: Option<String>, with: String, decoder: &DecoderWrapper, fused: bool) -> Self {
        Self { literal, with, decoder: Arc::new(decoder.clone()), fused, held: String::new() }
    }

    /// What a whole token becomes.
    fn whole(&self, text: String) -> Result<String, String> {
        match &self.literal {
            Some(literal) => Ok(text.replace(literal.as_str(), &self.with)),
            None => Ok(self.decoder.decode_chain(vec![text]).map_err(|e| e.to_string())?.concat()),
        }
    }

    /// Of a token that is not complete, the bytes that no later text changes.
    fn certain(&self) -> usize {
        let Some(literal) = &self.literal else { return 0 };
        let matched = self.held.match_indices(literal.as_str()).last();
        let start = matched.map_or(0, |(place, _)| place + literal.len());
        let rest = &self.held[start..];
        let may_begin = |at: &usize| literal.starts_with(&rest[*at..]);
        let undecided = rest.char_indices().map(|(at, _)| at).find(may_begin);
        start + undecided.unwrap_or(rest.len())
    }
}

impl Stage for Replace {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        self.held.push_str(&piece.text);
        let certain = if piece.last { self.held.len() } else { self.certain() };
        let text = self.held.drain(..certain).collect();
        next.push(Piece { text: self.whole(text)?, ..piece });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        let one = self.literal.as_ref().is_some_and(|literal| literal.chars().count() == 1);
        match self.whole(text) {
            Ok(text) if one || !self.fused => Single::Text(text),
            _ => Single::Unknown,
        }
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// Takes characters away from both ends of a token.
#[derive(Clone, Debug)]
pub(super) struct Strip {
    content: char,
    start: usize,
    stop: usize,
    /// How many more may be taken from the beginning.
    left: usize,
    /// Characters at the end so far that may be its last ones.
    held: usize,
    /// A stage before has made one token of all.
    fused: bool,
}

impl Strip {
    pub fn new(content: char, start: usize, stop: usize, fused: bool) -> Self {
        Self { content, start, stop, left: start, held: 0, fused }
    }

    fn take(&mut self, c: char, text: &mut String) {
        if c != self.content {
            self.left = 0;
            text.extend(std::iter::repeat_n(self.content, std::mem::take(&mut self.held)));
            text.push(c);
        } else if self.left > 0 {
            self.left -= 1;
        } else if self.held < self.stop {
            self.held += 1;
        } else {
            text.push(c);
        }
    }
}

impl Stage for Strip {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        if piece.first {
            (self.left, self.held) = (self.start, 0);
        }
        let mut text = String::with_capacity(piece.text.len());
        piece.text.chars().for_each(|c| self.take(c, &mut text));
        next.push(Piece { text, ..piece });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        if self.fused {
            return Single::Text(text);
        }
        let mut alone = Self::new(self.content, self.start, self.stop, false);
        let mut out = String::new();
        text.chars().for_each(|c| alone.take(c, &mut out));
        Single::Text(out)
    }

    fn verbatim(&mut self) {
        if self.fused {
            (self.start, self.stop, self.left, self.held) = (0, 0, 0, 0);
        }
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}
