//! Kernel throughput beside the limits of the machine: memory reads and products of int8, bf16 and f32.
//!
//! `octavo bench kernels` and `octavo bench attention` run these functions. The bench targets of this crate measure
//! kernels, sampling and scheduler steps: `cargo bench -p octavo-bench --bench kernels|limits|sampling|step`.

mod attention;
mod cases;
mod kernels;
mod limits;
mod model_shapes;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{AttentionBenchPlan, AttentionReading, bench_attention};
pub use kernels::{KernelBenchPlan, KernelReading, bench_kernels};
pub use limits::{MachineLimits, PeakRate, Rate};
