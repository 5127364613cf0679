//! Scores from all 16 bits of a query and all 8 bits of a key.

use std::marker::PhantomData;

use super::super::block_ops::GROUP_ROWS;
use super::super::kv_cache::{Int8Head, PrefetchPtrs};
use super::super::params::BLOCK_SIZE;
use super::dots::IntDots;
use super::rounding::{AllBits, RoundedQueries};
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Scores of one to four rows in a block: `q` is `[rows][padded head_dim]`, `to` is `[rows][32]`.
///
/// `peaks` are raised to the largest |q * step| of each row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn int8_qk(
    kernels: &Kernels,
    rows: usize,
    q: &[[f32; LANES]],
    head: Int8Head<'_>,
    rounded: &mut RoundedQueries,
    prefetch_at: PrefetchPtrs,
    peaks: &mut [f32],
    to: &mut [[f32; BLOCK_SIZE]; GROUP_ROWS],
) {
    let isa = kernels.isa();
    macro_rules! rows {
        ($n:literal) => {
            dispatch(kernels, Int8Qk::<$n> { isa, q, head, rounded, prefetch_at, peaks, to })
        };
    }
    match rows {
        4 => rows!(4),
        3 => rows!(3),
        2 => rows!(2),
        _ => rows!(1),
    }
}

struct Int8Qk<'a, const R: usize> {
    isa: Isa,
    q: &'a [[f32; LANES]],
    head: Int8Head<'a>,
    rounded: &'a mut RoundedQueries,
    prefetch_at: PrefetchPtrs,
    peaks: &'a mut [f32],
    to: &'a mut [[f32; BLOCK_SIZE]; GROUP_ROWS],
}

impl<const R: usize> Op for Int8Qk<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Int8Qk { isa, q, head, rounded, prefetch_at, peaks, to } = self;
        let (heads, prefetch_at) = (&[head], &[prefetch_at]);
        let precision = PhantomData::<AllBits>;
        IntDots::<R, _> {
            isa,
            q,
            q_peaks: &[],
            heads,
            rounded: &mut *rounded,
            prefetch_at,
            peaks,
            precision,
        }
        .run(s);
        let (rows, sums) = (&rounded.rows[0], &rounded.sums[0]);
        for r in 0..R {
            let (unit, base) = (s.splat(rows[r].unit), s.splat(rows[r].base));
            for (sums, to) in sums[r].as_chunks::<LANES>().0.iter().zip(to[r].as_chunks_mut::<LANES>().0) {
                s.store(s.fma(unit, s.load(sums), base), to);
            }
        }
    }
}
