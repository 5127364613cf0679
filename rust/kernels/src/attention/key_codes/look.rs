//! A look at keys: a block's softmax mass for a query, within known limits, by half of the query's 16 bits.
//!
//! With x = q * step of a block in whole numbers w = 256 high + low, as for scores,
//!
//! ```text
//!     score = q . (lo + 128 step) + unit * sum of 256 high * (code - 128) + rest,
//!     |rest| <= 128 * unit * sum of |low|
//! ```
//!
//! beside what rounding to w does, which [`score_error`](super::score_error) bounds. A look at the high halves of the codes alone,
//! `code = 16 nibble + 7.5 +- 7.5`, adds `7.5 * unit * sum of |256 high|`. So the mass of a block, the sum of e^score, is within a
//! factor of e^doubt of what the look gives, either way.
//!
//! Queries rather than keys are cut short first: 8 bits of a query are 256 steps of each channel's share of a score, where 4 bits of
//! a key are 16, and instructions for products of bytes take as long for either.

use super::super::int8::Int8Head;
use super::super::source::Ahead;
use super::super::tile::ROWS;
use super::{BLOCKS, CENTRE, Rounded, Sums};
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{self, LANES, Op, Simd, dispatch};

/// The middle of what the low half of a code can be.
const MIDDLE: f32 = 7.5;

/// What a look tells of some blocks, `[rows][blocks]`.
#[derive(Debug, Default, Clone, Copy)]
pub(in super::super) struct Seen {
    /// The sum of e^(score - reference) over a block's tokens, about.
    pub(in super::super) masses: [[f32; BLOCKS]; ROWS],
    /// The logarithm of the factor by which each may be off.
    pub(in super::super) doubts: [[f32; BLOCKS]; ROWS],
}

/// At most four rows of q, `[rows][padded head_dim]`, and at most [`BLOCKS`] blocks.
pub(in super::super) struct Look<'a> {
    pub(in super::super) rows: usize,
    pub(in super::super) q: &'a [[f32; LANES]],
    /// `[rows]`, as [`peaks_of`](super::peaks_of) gives them.
    pub(in super::super) q_peaks: &'a [[f32; LANES]],
    pub(in super::super) heads: &'a [Int8Head<'a>],
    pub(in super::super) rounded: &'a mut Rounded,
    /// For each block where lines begin that will be read soon.
    pub(in super::super) ahead: &'a [Ahead],
    /// Rise to the largest |q * step| of each row.
    pub(in super::super) peaks: &'a mut [f32],
    /// The score that each row's masses are relative to.
    pub(in super::super) references: &'a [f32],
    pub(in super::super) softcap: Option<f32>,
    /// Whether the low halves of the codes are read.
    pub(in super::super) keys: bool,
    pub(in super::super) to: &'a mut Seen,
}

impl Look<'_> {
    #[inline(always)]
    pub(in super::super) fn run(self, kernels: &Kernels) {
        macro_rules! rows {
            ($n:literal) => {
                match self.keys {
                    true => dispatch(kernels, Rows::<$n, true> { isa: kernels.isa(), look: self }),
                    false => dispatch(kernels, Rows::<$n, false> { isa: kernels.isa(), look: self }),
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

struct Rows<'a, const R: usize, const KEYS: bool> {
    isa: Isa,
    look: Look<'a>,
}

impl<const R: usize, const KEYS: bool> Op for Rows<'_, R, KEYS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Look { q, q_peaks, heads, rounded, ahead, peaks, references, softcap, to, .. } = self.look;
        let isa = self.isa;
        assert!(heads.len() <= BLOCKS && references.len() == R);
        Sums::<R, false, KEYS> { isa, q, q_peaks, heads, rounded: &mut *rounded, ahead, peaks }.run(s);
        for (n, (rows, sums)) in rounded.rows.iter().zip(&rounded.sums).enumerate().take(heads.len()) {
            let mut masses = [s.zero(); R];
            for r in 0..R {
                let mut base = rows[r].base;
                let mut doubt = CENTRE * rows[r].low as f32;
                if !KEYS {
                    base += rows[r].unit * MIDDLE * rows[r].sum as f32;
                    doubt += 256.0 * MIDDLE * rows[r].high as f32;
                }
                to.doubts[r][n] = rows[r].unit * doubt;
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
