//! Input of one step.

use octavo_kernels::{SealedBlock, SeqView};

use super::adapters::AdapterRows;

/// The tokens of one step.
pub struct Batch<'a> {
    /// Token ids `[T]`.
    pub tokens: &'a [u32],
    /// Their positions `[T]`.
    pub positions: &'a [u32],
    /// Cache slots of their keys and values `[T]`: `block * 32 + offset`; in an int8 pool `open block * 32 + offset`.
    pub slots: &'a [u32],
    /// The sequences, in order of their rows.
    pub seqs: &'a [SeqView<'a>],
    /// Blocks of an int8 pool that this step fills: they are quantised when a layer's keys and values are written.
    pub sealed: &'a [SealedBlock],
    /// The rows that have an adapter, in order; rows of sequences without one are in none of them.
    pub adapters: &'a [AdapterRows<'a>],
}

impl<'a> Batch<'a> {
    /// A step that seals no block and has no adapters.
    pub fn new(tokens: &'a [u32], positions: &'a [u32], slots: &'a [u32], seqs: &'a [SeqView<'a>]) -> Self {
        Self { tokens, positions, slots, seqs, sealed: &[], adapters: &[] }
    }
}
