//! Stages that make characters of bytes.

use super::stage::{Piece, Single, Stage};
use super::utf8::{BROKEN, Part, Utf8Stream, byte_level, byte_token};

/// Characters of GPT-2's alphabet stand for bytes. The text is one token.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteLevel {
    bytes: Utf8Stream,
    begun: bool,
}

impl Stage for ByteLevel {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        let mut text = String::new();
        self.bytes.push(&byte_level(&piece.text), |part| match part {
            Part::Text(valid) => text.push_str(valid),
            Part::Broken(_) => text.push(BROKEN),
        });
        next.push(Piece { text, first: !std::mem::replace(&mut self.begun, true), last: false });
        Ok(())
    }

    fn finish(&mut self, next: &mut Vec<Piece>) -> Result<(), String> {
        let text = if self.bytes.finish() > 0 { BROKEN.to_string() } else { String::new() };
        next.push(Piece { text, first: !self.begun, last: true });
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        Single::Bytes(byte_level(&text))
    }

    fn forget_bytes(&mut self) {
        self.bytes.finish();
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

/// Tokens such as `<0xE4>` are bytes. Each byte that is no character becomes a U+FFFD.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteFallback {
    bytes: Utf8Stream,
    /// Byte tokens came last.
    in_run: bool,
}

impl ByteFallback {
    fn end_run(&mut self, next: &mut Vec<Piece>) {
        let text = BROKEN.to_string().repeat(self.bytes.finish());
        if std::mem::replace(&mut self.in_run, false) {
            next.push(Piece { text, first: false, last: true });
        }
    }
}

impl Stage for ByteFallback {
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String> {
        let byte = if piece.first && piece.last { byte_token(&piece.text) } else { None };
        let Some(byte) = byte else {
            self.end_run(next);
            next.push(piece);
            return Ok(());
        };
        let mut text = String::new();
        self.bytes.push(&[byte], |part| match part {
            Part::Text(valid) => text.push_str(valid),
            Part::Broken(count) => text.extend(std::iter::repeat_n(BROKEN, count)),
        });
        next.push(Piece { text, first: !std::mem::replace(&mut self.in_run, true), last: false });
        Ok(())
    }

    fn finish(&mut self, next: &mut Vec<Piece>) -> Result<(), String> {
        self.end_run(next);
        Ok(())
    }

    fn single(&self, text: String) -> Single {
        byte_token(&text).map_or(Single::Text(text), |byte| Single::Bytes(vec![byte]))
    }

    fn forget_bytes(&mut self) {
        self.bytes.finish();
    }

    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}
