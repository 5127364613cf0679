//! The interface of matrix units: products of sixteen rows with two blocks.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::kv_cache::MATRIX_DEPTH;
use crate::amx::ROWS;
use crate::simd::LANES;

/// Blocks that are computed at once.
pub(super) const PAIR_BLOCKS: usize = 2;
/// The exponent of bf16: all ones in an infinity and in NaN.
const EXPONENT: i16 = 0x7f80;

/// Sixteen pairs of bf16 numbers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct PairLine(pub(super) [u16; MATRIX_DEPTH]);

impl PairLine {
    pub(super) const ZERO: PairLine = PairLine([0; MATRIX_DEPTH]);
}

/// Sixteen scores.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct ScoreLine(pub(super) [f32; LANES]);

/// Products of sixteen rows at a time with the loaded blocks, summed in the order of
/// [`Tiles::dot_bf16`](crate::amx::Tiles::dot_bf16).
///
/// A line of queries or weights is a row's numbers for 32 channels or tokens, in the pairs of the blocks' lines.
pub(super) trait BlockProducts<'a> {
    /// Prepares the queries of a task, `[tiles of rows][chunks of 32 channels][16 rows]`.
    fn start(&mut self, _queries: &mut [PairLine]) {}

    /// Loads up to [`PAIR_BLOCKS`] blocks in place of those before.
    fn load_blocks(&mut self, blocks: &[Bf16Block<'a>]);

    /// Queries times the keys of the first `count` loaded blocks: `queries` is `[chunks][16 rows]`, of which the
    /// first `rows` are used; `to` is `[block][half][16 rows]`.
    fn qk(&self, queries: &[PairLine], rows: usize, count: usize, to: &mut [ScoreLine]);

    /// acc += weights times the values of some loaded blocks, in order: `weights` is `[block][16 rows]`, of which the
    /// first `rows` are used; `acc` is `[16 rows][padded head_dim]`.
    fn accumulate_pv(
        &self,
        weights: &[PairLine],
        rows: usize,
        blocks: Range<usize>,
        acc: &mut [[f32; LANES]],
    );
}

/// Keys and values of a block in the cache.
#[derive(Clone, Copy)]
pub(super) struct Bf16Block<'a> {
    /// `[chunks of 32 channels][16 pairs of channels][2 halves]`: for each of 16 tokens two channels.
    pub(super) keys: &'a [[u16; LANES]],
    /// `[16 pairs of tokens][padded head_dim / 16]`: for each of 16 channels two tokens.
    pub(super) values: &'a [[u16; LANES]],
}

impl Bf16Block<'_> {
    /// No block.
    pub(super) const NONE: Bf16Block<'static> = Bf16Block { keys: &[], values: &[] };

    /// Whether all values are finite.
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
