//! CPU kernels of octavo.
//!
//! Each op is one algorithm, written once over vectors of 16 lanes and compiled for every instruction set
//! ([`Isa`]). All levels add in the same order with the same roundings. No reduction depends on the number of rows, on
//! tiles or on threads. Hence ops are batch-invariant: a row has the same bits on every level, in every batch and for
//! every thread count.
//!
//! A [`Kernels`] value holds the instruction set and the thread pool; it is the first argument of every op. A wrong
//! shape is a bug of the caller: the op panics with a message that names it.

// Loops over rows, panels and lanes index several arrays at once; iterators there hide the arithmetic.
#![allow(clippy::needless_range_loop)]

mod activation;
#[cfg(target_arch = "x86_64")]
pub mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16_dot;
mod context;
mod isa;
mod layer_norm;
mod logits;
mod lora;
mod matmul;
mod norm;
mod packed;
#[cfg(target_arch = "x86_64")]
mod packed_rows;
mod pages;
mod parallel;
mod pointwise;
mod quant_scheme;
mod quantize;
mod region;
mod rope;
mod rotation;
mod simd;
mod threads;

pub use activation::{Activation, activate, activate_and_mul, add_assign, gelu_tanh_and_mul, silu_and_mul};
pub use attention::{
    AttentionParams, AttentionReport, BLOCK_SIZE, BlockNumbers, BlockPart, DynamicParams, KvDtype, KvLayer,
    MlaCache, MlaParams, Mode, OpenDtype, SealedBlock, Selection, Selector, SeqView, mla_attention,
    paged_attention, seal_blocks, write_kv,
};
pub use context::Kernels;
pub use half::{bf16, f16};
pub use isa::{Isa, IsaError};
pub use layer_norm::layer_norm;
pub use logits::{
    PEAK_BLOCK, Peak, SUM_BLOCK, Weighting, argmax, block_peaks, log_sum_exp, peak, weight_sums, weights,
};
pub use lora::{
    LoraModule, LoraRows, LoraRun, LoraStack, forward_gated, forward_lora, forward_lora_quantized,
};
pub use matmul::{ArrayDtype, Linear, PackedArray, WeightDtype, WeightRows};
pub use norm::{RmsNorm, rms_norm, rms_norm_heads};
pub use packed::PackedError;
pub use pointwise::{scale, sigmoid, soft_cap, softmax};
pub use quant_scheme::{GROUP, QuantScheme, Rotation, UnsupportedScheme};
pub use quantize::QuantizedRows;
pub use region::Region;
pub use rope::{RopeLayout, RopeStyle, RopeTable, rope};
pub use threads::{ThreadPool, default_threads};
