//! Vectors of 16 lanes, one implementation per instruction set, and the dispatch to them.
//!
//! An op implements [`Op`] once, generic over [`Simd`]. [`dispatch`] compiles the op for every level and runs the
//! chosen one. Everything below an op's `run` must be `#[inline(always)]`: code outside the `#[target_feature]` entry
//! is compiled without the features, and then each intrinsic is a call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod math;
mod portable;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use dispatch::{Op, dispatch};
pub(crate) use math::{exp, exp2_rough, gelu_tanh, silu, tanh, weight};
pub(crate) use vector::{LANES, Simd};
