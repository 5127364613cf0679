//! Low-rank adapters of a projection: y += B (A x), row by row, for rows that have an adapter.
//!
//! ```text
//! shrink  h = A x       one Linear for all modules that read x (as q, k, v): their ranks below each other
//! expand  y += B h      each module adds to its own columns of y; each job of the base product, while its y is in the cache
//! ```
//!
//! Each value of y gets one chain over the rank, which begins at zero, and one sum. Tiles, jobs, threads and other rows
//! change no bit. Rows without an adapter are not touched.

mod expand;
mod product;
mod stack;
mod update;

use std::ops::Range;

pub use product::{forward_gated, forward_lora, forward_lora_quantized};
pub use stack::LoraStack;

/// What an adapter adds to one module.
#[derive(Debug, Clone, Copy)]
pub struct LoraModule<'a> {
    /// B `[columns, rank]`, row-major. It contains the adapter's scale.
    pub b: &'a [f32],
    /// Rows of A that belong to this module.
    pub rank: usize,
    /// The module's first column of y.
    pub column: usize,
    /// Added behind the product `[columns]`. It contains the adapter's scale.
    pub bias: Option<&'a [f32]>,
    /// DoRA: y = gain * (W x + delta) + bias of the base `[columns]`.
    pub gain: Option<&'a [f32]>,
}

/// Rows of a step that one adapter changes.
#[derive(Debug, Clone)]
pub struct LoraRun<'a> {
    /// The adapter's matrices for this projection.
    pub stack: &'a LoraStack,
    /// Rows of x and y.
    pub rows: Range<usize>,
}

/// The adapters of a product, and reused memory for A x.
#[derive(Debug)]
pub struct LoraRows<'a> {
    /// In order of their rows; no two overlap.
    pub runs: &'a [LoraRun<'a>],
    /// Reused memory.
    pub h: &'a mut Vec<f32>,
}
