//! Bytes of tokens: the alphabet of byte-level tokenizers, byte tokens, and UTF-8 that arrives in parts.

/// Stands for bytes that are no character.
pub(super) const BROKEN: char = '\u{FFFD}';

/// A part of the text of a byte sequence.
pub(super) enum Part<'a> {
    Text(&'a str),
    /// This many bytes that are no character.
    Broken(usize),
}

/// UTF-8 that arrives in parts. It keeps the bytes of a character that is not complete.
#[derive(Clone, Debug, Default)]
pub(super) struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes `bytes`; gives what is certain.
    pub fn push(&mut self, bytes: &[u8], mut give: impl FnMut(Part<'_>)) {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while start < self.pending.len() {
            let rest = &self.pending[start..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    give(Part::Text(text));
                    start = self.pending.len();
                }
                Err(e) => {
                    match std::str::from_utf8(&rest[..e.valid_up_to()]) {
                        Ok(text) if !text.is_empty() => give(Part::Text(text)),
                        _ => {}
                    }
                    start += e.valid_up_to();
                    let Some(broken) = e.error_len() else { break };
                    give(Part::Broken(broken));
                    start += broken;
                }
            }
        }
        self.pending.drain(..start);
    }

    /// Gives up waiting: the number of bytes that stay no character.
    pub fn finish(&mut self) -> usize {
        std::mem::take(&mut self.pending).len()
    }
}

/// The byte that a character of GPT-2's byte alphabet stands for. Printable bytes stand for themselves, the others for
/// characters from 256 on.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        b @ (33..=126 | 161..=172 | 174..=255) => Some(b as u8),
        n @ 256..=288 => Some((n - 256) as u8),
        n @ 289..=322 => Some((n - 289 + 127) as u8),
        323 => Some(173),
        _ => None,
    }
}

/// The bytes of a token of a byte-level tokenizer. A token with other characters stands for its own text.
pub(super) fn byte_level(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a token such as `<0xE4>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
