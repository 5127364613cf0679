//! Where attention finds keys and values: a layer, a block of a head in it, and what to ask for ahead of time.

use super::int8::{Int8Blocks, Int8Head};
use super::kv::Pair;
use super::rows::Element;
use crate::simd::LANES;

/// Where the keys and values of a layer lie.
#[derive(Clone, Copy)]
pub(super) enum Source<'a, E> {
    /// All blocks as floats.
    Float(&'a Pair<E>),
    /// Each query's own block in an open block, every block before it in int8.
    Int8 { blocks: &'a Int8Blocks, open_blocks: &'a [Pair<E>] },
}

/// One block of one KV head, in the form in which some rows read it.
#[derive(Clone, Copy)]
pub(super) enum Held<'a, E> {
    Float { keys: &'a [[E; LANES]], values: &'a [[E; LANES]] },
    Int8(Int8Head<'a>),
}

impl<'a, E> Held<'a, E> {
    /// Block and head `place` of `pair`.
    #[inline(always)]
    pub(super) fn float(pair: &'a Pair<E>, place: usize, head_dim: usize) -> Self
    where
        E: Element,
    {
        let (keys, values) = pair.head(place, head_dim);
        Held::Float { keys, values }
    }
}

/// Where lines begin that are asked for while a block is computed.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) keys: *const u8,
    pub(super) values: *const u8,
}
