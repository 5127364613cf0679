//! What computes the products of a task's rows with blocks.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::rows::TILE_DEPTH;
use crate::amx::ROWS;
use crate::simd::LANES;

/// Blocks that are gone through at once.
pub(super) const BLOCKS: usize = 2;
/// The exponent of bf16: all ones in an infinity and in NaN.
const EXPONENT: i16 = 0x7f80;

/// 32 numbers of bf16, in sixteen pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; TILE_DEPTH]);

impl Line {
    pub(super) const ZERO: Line = Line([0; TILE_DEPTH]);
}

/// Sixteen sums.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [f32; LANES]);

/// Products of sixteen rows at a time with the blocks that are held, summed as [`Tiles::dot_bf16`](crate::amx::Tiles::dot_bf16) does.
///
/// A line of queries or of weights has a row's numbers for 32 places in sixteen pairs, as the blocks' lines have theirs.
pub(super) trait Products<'a> {
    /// Takes in what all rows of a task have: queries, `[tiles of rows][chunks of 32 channels][16 rows]`.
    fn start(&mut self, _queries: &mut [Line]) {}

    /// Takes up to [`BLOCKS`] blocks in place of those before.
    fn hold(&mut self, blocks: &[Block<'a>]);

    /// Queries times the keys of the first `count` blocks held: `queries` `[chunks][16 rows]`, of which `rows` matter; sums `[block][half][16 rows]`.
    fn scores(&self, queries: &[Line], rows: usize, count: usize, to: &mut [Sums]);

    /// acc += weights times the values of some of the blocks held, in order: `weights` `[block][16 rows]`, of which `rows` matter; acc
    /// `[16 rows][padded head_dim]`.
    fn weigh(&self, weights: &[Line], rows: usize, blocks: Range<usize>, acc: &mut [[f32; LANES]]);
}

/// A block of keys and values as they lie in the cache.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// `[chunks of 32 channels][16 pairs of channels][2 halves]`: for each of 16 tokens two channels.
    pub(super) keys: &'a [[u16; LANES]],
    /// `[16 pairs of tokens][padded head_dim / 16]`: for each of 16 channels two tokens.
    pub(super) values: &'a [[u16; LANES]],
}

impl Block<'_> {
    /// No block.
    pub(super) const NONE: Block<'static> = Block { keys: &[], values: &[] };

    /// Whether no value is infinite or not a number.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn is_finite(&self) -> bool {
        let exponent = _mm512_set1_epi16(EXPONENT);
        let mut faults = 0;
        for pair in self.values.as_chunks::<2>().0 {
            // SAFETY: 64 bytes are read.
            let values = unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) };
            faults |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
        }
        faults == 0
    }
}

const _: () = assert!(ROWS == LANES);
