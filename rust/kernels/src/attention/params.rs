//! Parameters of attention and the sequences of a step.

/// Tokens in a KV block.
pub const BLOCK_SIZE: usize = 32;

/// Attention parameters of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// KV heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of the scores, such as 1 / sqrt(head_dim).
    pub scale: f32,
    /// A query at position p sees keys at p - window + 1 ..= p; None: all up to p.
    pub window: Option<u32>,
    /// Scores s become cap * tanh(s / cap) before the mask.
    pub softcap: Option<f32>,
}

/// One sequence of a step.
///
/// ```text
///     tokens        0 ............................ context_len
///                   | cached before | query_len new tokens |
///     blocks        [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ]      of 32 tokens
///     block_table     b0   b1   b2   b3   b4   b5   b6
///     open_blocks                    o0   o1   o2   o3       int8 layers only
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SeqView<'a> {
    /// Its first row in q and out.
    pub query_start: usize,
    /// Its rows in this step.
    pub query_len: usize,
    /// Its tokens after this step; query i is at position context_len - query_len + i.
    pub context_len: usize,
    /// Its blocks in order of position, at least ceil(context_len / 32). Blocks before every window are not read.
    pub block_table: &'a [u32],
    /// Of an int8 layer: the open blocks of its blocks, from the block of its first new token on. Else empty.
    pub open_blocks: &'a [u32],
}

impl SeqView<'_> {
    /// Index of `block` of the sequence for one KV head, `[block][kv head]`.
    pub(super) fn block_head(&self, block: usize, params: &AttentionParams, kv_head: usize) -> usize {
        self.block_table[block] as usize * params.kv_heads + kv_head
    }

    /// The block of its first new token.
    pub(super) fn first_new_block(&self) -> usize {
        (self.context_len - self.query_len) / BLOCK_SIZE
    }
}

/// The first position that a query at `position` sees.
pub(super) fn first_visible(position: usize, window: Option<u32>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
}
