//! The memory that a forward pass computes in.

use octavo_kernels::{QuantizedRows, Selector};

use super::adapters::ProjectionBuffers;
use super::router::Router;
use crate::rope::RopeAngles;

/// Reusable memory of the forward pass; grows to the largest step.
#[derive(Default)]
pub struct Scratch {
    /// Residual stream `[T, hidden]`; after `forward` the output of the last layer.
    pub(super) x: Vec<f32>,
    /// Input of a block, normed.
    pub(super) normed: Vec<f32>,
    /// What a block adds to the residual stream `[T, hidden]`.
    pub(super) block_out: Vec<f32>,
    /// `[T, (heads + 2 kv_heads) * head_dim]`, then gate and up.
    pub(super) qkv_gate_up: Vec<f32>,
    /// Attention or activation output.
    pub(super) intermediate: Vec<f32>,
    pub(super) rows: Vec<u32>,
    pub(super) ropes: Vec<RopeAngles>,
    pub(super) projection: ProjectionBuffers,
    /// The activated rows between the projections of a feed-forward block.
    pub(super) activated: QuantizedRows,
    pub(super) mla: MlaBuffers,
    pub(super) moe: MoeBuffers,
    /// Selects the blocks that queries read from an int8 pool; None: all. Its step begins before `forward`.
    pub selector: Option<Selector>,
}

impl Scratch {
    /// Empty memory, with a selector.
    pub fn new(selector: Option<Selector>) -> Self {
        Self { selector, ..Self::default() }
    }
}

/// Memory of an MLA block.
#[derive(Default)]
pub(super) struct MlaBuffers {
    /// Latents of queries `[T, q_lora_rank]`.
    pub(super) q_latent: Vec<f32>,
    /// New rows of the cache `[T, kv_lora_rank + qk_rope_head_dim]`.
    pub(super) new: Vec<f32>,
    /// Parts of queries with rope `[T, heads, qk_rope_head_dim]`.
    pub(super) rotated: Vec<f32>,
    /// Queries in the space of the cache `[T, heads, kv_lora_rank + qk_rope_head_dim]`.
    pub(super) q: Vec<f32>,
    /// What attention gives `[T, heads, kv_lora_rank]`.
    pub(super) out: Vec<f32>,
    /// One head of all rows.
    pub(super) head: Vec<f32>,
}

/// Memory of a mixture of experts.
#[derive(Default)]
pub(super) struct MoeBuffers {
    /// Router scores `[T, experts]`.
    pub(super) scores: Vec<f32>,
    /// For each expert the rows that use it, with their weights.
    pub(super) chosen: Vec<Vec<(u32, f32)>>,
    /// Rows of one expert, before and after it.
    pub(super) gathered: Vec<f32>,
    pub(super) expert_out: Vec<f32>,
    pub(super) router: Router,
}

/// The first `len` elements of `buffer`, grown if needed. Their old content is not cleared.
pub(super) fn take(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
