//! Estimates of a block's softmax mass for a query from the high byte of the query's 16 bits, with bounds.
//!
//! With x = q * step of a block in integers w = 256 high + low, as for scores,
//!
//! ```text
//!     score = q . (lo + 128 step) + unit * sum of 256 high * (code - 128) + rest,
//!     |rest| <= 128 * unit * sum of |low|
//! ```
//!
//! beside the rounding to w, which [`score_error`](super::score_error) bounds. An estimate from the high nibbles of
//! the codes alone, `code = 16 nibble + 7.5 +- 7.5`, adds `7.5 * unit * sum of |256 high|`. So the mass of a block,
//! the sum of e^score, is within a factor of e^log_error of the estimate, either way.
//!
//! Queries are shortened before keys. 8 bits of a query are 256 steps of each channel's part of a score; 4 bits of a
//! key are 16 steps. Instructions for products of bytes take as long for either.

use std::marker::PhantomData;

use super::super::block_ops::{GROUP_BLOCKS, GROUP_ROWS};
use super::super::kv_cache::{Int8Head, PrefetchPtrs};
use super::dots::IntDots;
use super::rounding::{CENTRE, HighQuery, HighQueryHighKey, Precision, RoundedQueries};
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// The middle of the low nibble's range.
const MIDDLE: f32 = 7.5;

/// Softmax masses of some blocks, `[rows][blocks]`.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct BlockMasses {
    /// Estimate of the sum of e^(score - reference) over a block's tokens.
    pub(crate) masses: [[f32; GROUP_BLOCKS]; GROUP_ROWS],
    /// Logarithm of the factor by which each estimate may be off.
    pub(crate) log_errors: [[f32; GROUP_BLOCKS]; GROUP_ROWS],
}

/// Estimate of the masses of at most [`GROUP_BLOCKS`] blocks for one to four rows of q, `[rows][padded head_dim]`.
pub(crate) struct MassEstimate<'a> {
    pub(crate) rows: usize,
    pub(crate) q: &'a [[f32; LANES]],
    /// [`peaks_of`](super::peaks_of) each row.
    pub(crate) q_peaks: &'a [[f32; LANES]],
    pub(crate) heads: &'a [Int8Head<'a>],
    pub(crate) rounded: &'a mut RoundedQueries,
    /// For each block, addresses to prefetch.
    pub(crate) prefetch_at: &'a [PrefetchPtrs],
    /// Largest |q * step| of each row, raised.
    pub(crate) peaks: &'a mut [f32],
    /// Score to which each row's masses are relative.
    pub(crate) references: &'a [f32],
    pub(crate) softcap: Option<f32>,
    /// Whether the low nibbles of the codes are read.
    pub(crate) low_nibbles: bool,
    pub(crate) to: &'a mut BlockMasses,
}

impl MassEstimate<'_> {
    #[inline(always)]
    pub(crate) fn run(self, kernels: &Kernels) {
        macro_rules! rows {
            ($n:literal) => {
                match self.low_nibbles {
                    true => dispatch(
                        kernels,
                        EstimateOp::<$n, HighQuery> {
                            isa: kernels.isa(),
                            estimate: self,
                            precision: PhantomData,
                        },
                    ),
                    false => dispatch(
                        kernels,
                        EstimateOp::<$n, HighQueryHighKey> {
                            isa: kernels.isa(),
                            estimate: self,
                            precision: PhantomData,
                        },
                    ),
                }
            };
        }
        match self.rows {
            4 => rows!(4),
            3 => rows!(3),
            2 => rows!(2),
            _ => rows!(1),
        }
    }
}

struct EstimateOp<'a, const R: usize, P> {
    isa: Isa,
    estimate: MassEstimate<'a>,
    precision: PhantomData<P>,
}

impl<const R: usize, P: Precision> Op for EstimateOp<'_, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let MassEstimate { q, q_peaks, heads, rounded, prefetch_at, peaks, references, softcap, to, .. } =
            self.estimate;
        let (isa, precision) = (self.isa, self.precision);
        assert!(heads.len() <= GROUP_BLOCKS && references.len() == R);
        IntDots::<R, P> { isa, q, q_peaks, heads, rounded: &mut *rounded, prefetch_at, peaks, precision }
            .run(s);
        for (n, (rows, sums)) in rounded.rows.iter().zip(&rounded.sums).enumerate().take(heads.len()) {
            let mut masses = [s.zero(); R];
            for r in 0..R {
                let mut base = rows[r].base;
                let mut log_error = CENTRE * rows[r].low as f32;
                if !P::LOW_KEY {
                    base += rows[r].unit * MIDDLE * rows[r].sum as f32;
                    log_error += 256.0 * MIDDLE * rows[r].high as f32;
                }
                to.log_errors[r][n] = rows[r].unit * log_error;
                let log = std::f32::consts::LOG2_E;
                let (unit, base, reference) = (rows[r].unit, base, references[r]);
                for sums in sums[r].as_chunks::<LANES>().0 {
                    let power = match softcap {
                        None => s.fma(s.splat(unit * log), s.load(sums), s.splat((base - reference) * log)),
                        Some(cap) => {
                            let score = s.fma(s.splat(unit), s.load(sums), s.splat(base));
                            let score = s.mul(s.splat(cap), simd::tanh(s, s.div(score, s.splat(cap))));
                            s.mul(s.sub(score, s.splat(reference)), s.splat(log))
                        }
                    };
                    masses[r] = s.add(masses[r], simd::exp2_rough(s, power));
                }
            }
            let masses = s.reduce_add_each(masses);
            (0..R).for_each(|r| to.masses[r][n] = masses[r]);
        }
    }
}
