//! Scores by all of a query's 16 bits and all of a key's 8.

use super::super::BLOCK_SIZE;
use super::super::int8::Int8Head;
use super::super::source::Ahead;
use super::super::tile::ROWS;
use super::{Rounded, Sums};
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Scores of at most four rows in a block: `q` is `[rows][padded head_dim]`, a row of `to` a query's scores.
///
/// `ahead` says where lines begin that will be read soon. `peaks` rise to the largest |q * step| of each row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn code_scores(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    head: Int8Head<'_>,
    rounded: &mut Rounded,
    ahead: Ahead,
    peaks: &mut [f32],
    to: &mut [[f32; BLOCK_SIZE]; ROWS],
) {
    let isa = kernels.isa();
    macro_rules! rows {
        ($n:literal) => {
            dispatch(kernels, CodeScores::<$n> { isa, q, head, rounded, ahead, peaks, to })
        };
    }
    match rows {
        4 => rows!(4),
        3 => rows!(3),
        2 => rows!(2),
        _ => rows!(1),
    }
}

struct CodeScores<'a, const R: usize> {
    isa: Isa,
    q: &'a [[f32; LANES]],
    head: Int8Head<'a>,
    rounded: &'a mut Rounded,
    ahead: Ahead,
    peaks: &'a mut [f32],
    to: &'a mut [[f32; BLOCK_SIZE]; ROWS],
}

impl<const R: usize> Op for CodeScores<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CodeScores { isa, q, head, rounded, ahead, peaks, to } = self;
        let (heads, ahead) = (&[head], &[ahead]);
        Sums::<R, true, true> { isa, q, q_peaks: &[], heads, rounded: &mut *rounded, ahead, peaks }.run(s);
        let (rows, sums) = (&rounded.rows[0], &rounded.sums[0]);
        for r in 0..R {
            let (unit, base) = (s.splat(rows[r].unit), s.splat(rows[r].base));
            for (sums, to) in sums[r].as_chunks::<LANES>().0.iter().zip(to[r].as_chunks_mut::<LANES>().0) {
                s.store(s.fma(unit, s.load(sums), base), to);
            }
        }
    }
}
