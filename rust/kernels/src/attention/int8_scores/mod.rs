//! Scores against int8 keys: the query, rounded to 16 bits block by block, times the codes, in integers.
//!
//! With x = q * step of a block and `unit` = the largest |x| over the number of levels,
//!
//! ```text
//!     q . key = q . (lo + 128 step) + unit * sum of round(x / unit) * (code - 128) + error,
//!     |error| <= unit / 2 * 128 * head_dim
//! ```
//!
//! which [`score_error`] bounds. It is a hundredth of the change that quantising the keys makes to a score. Sums of
//! integers are exact in any order, so each instruction set uses its own instructions and order.
//!
//! [`exact`] computes scores from all 16 bits of a query; [`estimate`] computes softmax masses of blocks from 8 of
//! them, with bounds.

mod dots;
mod estimate;
mod exact;
mod rounding;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use estimate::{BlockMasses, MassEstimate};
pub(super) use exact::int8_qk;
pub(super) use rounding::{RoundedQueries, peaks_of, score_error};
