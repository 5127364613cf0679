//! Matrix products: y[m, n] = x[m, k] * w[n, k]^T + bias[n], weights packed once at load.
//!
//! Each output element is one chain over k (int8: over groups of 128, exact inside). Hence a row of y has the same bits
//! for every m, number of threads and instruction set.

mod addend;
#[cfg(target_arch = "x86_64")]
mod amx;
mod bf16;
mod driver;
mod f32;
mod gated;
mod int8;
mod int8_pack;
mod linear;
mod packed_arrays;
mod prefetch;
mod weight_rows;

pub(crate) use addend::Addend;
pub(crate) use driver::MatmulOutput;
pub use linear::{Linear, WeightDtype};
pub use packed_arrays::{ArrayDtype, PackedArray};
pub use weight_rows::WeightRows;
