//! What one token adds to a text: bytes, and a text for people.

use std::sync::Arc;

/// The text and the bytes of a token. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText(Arc<Parts>);

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    text: String,
    /// None: those of the text.
    bytes: Option<Vec<u8>>,
}

impl TokenText {
    /// A token with these bytes, which may be a part of a character: the text then has U+FFFD.
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        let parts = match String::from_utf8(bytes) {
            Ok(text) => Parts { text, bytes: None },
            Err(e) => {
                let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
                Parts { text, bytes: Some(e.into_bytes()) }
            }
        };
        Self(Arc::new(parts))
    }

    /// A token that adds no bytes, under its name.
    pub fn of_name(text: String) -> Self {
        Self(Arc::new(Parts { text, bytes: Some(Vec::new()) }))
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes.as_deref().unwrap_or(self.0.text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_keeps_its_bytes() {
        let half = TokenText::of_bytes(vec![b'a', 0xC3]);
        assert_eq!((half.text(), half.bytes()), ("a\u{FFFD}", &[b'a', 0xC3][..]));
        let whole = TokenText::of_bytes("é".into());
        assert_eq!((whole.text(), whole.bytes()), ("é", "é".as_bytes()));
        // This character itself is no part of another one.
        let real = TokenText::of_bytes("\u{FFFD}".into());
        assert_eq!((real.text(), real.bytes()), ("\u{FFFD}", "\u{FFFD}".as_bytes()));
        let none = TokenText::of_name("[UNK]".into());
        assert_eq!((none.text(), none.bytes()), ("[UNK]", &[][..]));
    }
}
