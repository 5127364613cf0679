//! What one decoder of the tokenizers crate does with a list of tokens, done token by token.

use std::fmt::Debug;

/// Text of a token, or a part of it.
#[derive(Debug)]
pub(super) struct Piece {
    pub text: String,
    /// A token begins here.
    pub first: bool,
    /// A token ends here.
    pub last: bool,
}

/// What a stage makes of a single token in the middle of a text.
pub(super) enum Single {
    Text(String),
    Bytes(Vec<u8>),
    /// That depends on other tokens.
    Unknown,
}

/// A stage of a text decoder, and what it waits for.
pub(super) trait Stage: Debug + Send + Sync {
    /// Takes a piece; what is certain goes to `next`.
    ///
    /// # Errors
    /// A regular expression that gives up.
    fn push(&mut self, piece: Piece, next: &mut Vec<Piece>) -> Result<(), String>;

    /// The end of the tokens: what is held goes to `next`.
    ///
    /// # Errors
    /// As `push`.
    fn finish(&mut self, _next: &mut Vec<Piece>) -> Result<(), String> {
        Ok(())
    }

    /// What the token `text` becomes behind others.
    fn single(&self, text: String) -> Single;

    /// From here on nothing at the beginning or the end is taken away or left out.
    fn verbatim(&mut self) {}

    /// Forgets a character whose first bytes have come.
    fn forget_bytes(&mut self) {}

    /// A copy.
    fn boxed(&self) -> Box<dyn Stage>;
}

impl Clone for Box<dyn Stage> {
    fn clone(&self) -> Self {
        self.as_ref().boxed()
    }
}

/// How many tokens have begun: none, one, or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Begun {
    #[default]
    None,
    One,
    More,
}

impl Begun {
    /// Counts `piece`; whether it belongs to the first token.
    pub fn is_first(&mut self, piece: &Piece) -> bool {
        if piece.first {
            *self = if *self == Self::None { Self::One } else { Self::More };
        }
        *self != Self::More
    }

    /// Counts as if tokens had come before.
    pub fn skip(&mut self) {
        if *self == Self::None {
            *self = Self::One;
        }
    }
}
