//! What queries may leave out, and what they say of it.

use super::int8::{bytes_per_head, value_bytes_per_head};
use super::{AttentionParams, SeqView};

/// How much a query may leave out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicParams {
    /// Most softmax mass that a query head may leave out, 0 to 1.
    pub error_bound: f32,
    /// Queries that see fewer tokens read everything.
    pub min_context: usize,
    /// First blocks of the sequence that are always read.
    pub sink_blocks: usize,
    /// Blocks before the query's own that are always read.
    pub local_blocks: usize,
}

impl DynamicParams {
    /// How many of a sequence's queries see too few tokens to choose: the first ones.
    pub(super) fn dense_queries(&self, seq: &SeqView<'_>, params: &AttentionParams) -> usize {
        if params.window.is_some_and(|window| (window as usize) < self.min_context) {
            return seq.query_len;
        }
        // The query at position p sees p + 1 tokens.
        self.min_context.saturating_sub(seq.context_len - seq.query_len + 1).min(seq.query_len)
    }
}

/// What queries read and left out. A *call* is one query of one query head in one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AttentionReport {
    /// Calls.
    pub calls: u64,
    /// Those of them that read everything.
    pub dense_calls: u64,
    /// int8 blocks that queries saw, over queries and KV heads.
    pub blocks: u64,
    /// Those of them whose values were read.
    pub value_blocks: u64,
    /// Bytes of keys and values that were read of these blocks.
    pub bytes_read: u64,
    /// Bytes that reading everything would have taken.
    pub bytes_dense: u64,
    /// Largest bound on the omitted mass of a call.
    pub max_omitted_mass: f32,
    /// Sum of those bounds.
    pub sum_omitted_mass: f64,
    /// Largest bound on the error of an output, as the norm of its difference from the exact one.
    pub max_output_error: f32,
}

impl AttentionReport {
    /// Counts a query of `group` heads that saw `blocks` blocks and read the values of some.
    pub(super) fn count(&mut self, group: usize, blocks: usize, value_blocks: usize, head_dim: usize) {
        let (all, values) = (bytes_per_head(head_dim), value_bytes_per_head(head_dim));
        self.calls += group as u64;
        self.blocks += blocks as u64;
        self.value_blocks += value_blocks as u64;
        self.bytes_read += (blocks * (all - values) + value_blocks * values) as u64;
        self.bytes_dense += (blocks * all) as u64;
    }

    /// Takes `other` in.
    pub fn add(&mut self, other: &AttentionReport) {
        self.calls += other.calls;
        self.dense_calls += other.dense_calls;
        self.blocks += other.blocks;
        self.value_blocks += other.value_blocks;
        self.bytes_read += other.bytes_read;
        self.bytes_dense += other.bytes_dense;
        self.max_omitted_mass = self.max_omitted_mass.max(other.max_omitted_mass);
        self.sum_omitted_mass += other.sum_omitted_mass;
        self.max_output_error = self.max_output_error.max(other.max_output_error);
    }
}
