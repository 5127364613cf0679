//! Numbers that follow from a `ModelSpec`: weights, cache, buffers, the longest context.

use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormPlacement, QkNorm};

/// Longest context of any model, in tokens.
const MAX_CONTEXT: usize = 1 << 28;

impl NormPlacement {
    /// Norm weights of one layer, in rows of `hidden`.
    fn count(self) -> usize {
        match self {
            NormPlacement::Pre | NormPlacement::Post => 2,
            NormPlacement::Sandwich => 4,
            NormPlacement::Parallel => 1,
        }
    }
}

impl AttentionSpec {
    fn parameters(&self, hidden: usize) -> usize {
        match self {
            AttentionSpec::Gqa(a) => {
                let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                let bias = if a.qkv_bias { q + 2 * kv } else { 0 } + if a.out_bias { hidden } else { 0 };
                let norms = match a.qk_norm {
                    QkNorm::Off => 0,
                    QkNorm::Heads => 2 * a.head_dim,
                    QkNorm::Whole => q + kv,
                };
                (2 * q + 2 * kv) * hidden + bias + norms
            }
            AttentionSpec::Mla(a) => {
                let q = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
                let q = a.q_lora_rank.map_or(q * hidden, |rank| rank * (hidden + 1 + q));
                let kv = (a.kv_lora_rank + a.qk_rope_head_dim) * hidden
                    + a.kv_lora_rank * (1 + a.heads * (a.qk_nope_head_dim + a.v_head_dim));
                let bias = if a.bias {
                    a.q_lora_rank.unwrap_or(0) + a.kv_lora_rank + a.qk_rope_head_dim + hidden
                } else {
                    0
                };
                q + kv + a.heads * a.v_head_dim * hidden + bias
            }
        }
    }

    /// Elements that one token leaves in the cache.
    fn kv_elements(&self) -> usize {
        match self {
            AttentionSpec::Gqa(a) => 2 * a.kv_heads * a.head_dim,
            AttentionSpec::Mla(a) => a.kv_lora_rank + a.qk_rope_head_dim,
        }
    }

    /// Values that the block holds for one token while it runs, beside the residual stream.
    fn step_values(&self) -> usize {
        match self {
            AttentionSpec::Gqa(a) => (2 * a.heads + 2 * a.kv_heads) * a.head_dim,
            AttentionSpec::Mla(a) => {
                let q = a.heads * (a.qk_nope_head_dim + 2 * a.qk_rope_head_dim) + a.q_lora_rank.unwrap_or(0);
                let latents = (a.kv_lora_rank + a.qk_rope_head_dim)
                    + a.heads * (2 * a.kv_lora_rank + a.qk_rope_head_dim);
                q + latents + a.heads * a.v_head_dim + a.qk_nope_head_dim + a.kv_lora_rank
            }
        }
    }
}

impl FeedForwardSpec {
    fn parameters(&self, hidden: usize) -> usize {
        let gated = |inner: usize| 3 * hidden * inner;
        match self {
            FeedForwardSpec::Dense(m) => {
                gated(m.intermediate) + if m.bias { 2 * m.intermediate + hidden } else { 0 }
            }
            FeedForwardSpec::Experts(m) => {
                let router = m.experts * (hidden + usize::from(m.e_score_correction_bias));
                let shared = m.shared.as_ref();
                let shared = shared.map_or(0, |s| gated(s.intermediate) + if s.gated { hidden } else { 0 });
                m.experts * gated(m.intermediate) + router + shared
            }
        }
    }

    fn step_values(&self, hidden: usize) -> usize {
        match self {
            FeedForwardSpec::Dense(m) => 3 * m.intermediate,
            FeedForwardSpec::Experts(m) => {
                let widest = m.shared.as_ref().map_or(0, |s| s.intermediate).max(m.intermediate);
                3 * widest + m.experts + 2 * hidden
            }
        }
    }
}

impl ModelSpec {
    /// Number of weights, the tied head counted once.
    pub fn parameters(&self) -> usize {
        let heads: usize = if self.tied_embeddings || !self.has_head { 1 } else { 2 };
        let norms = (self.norm_placement.count() * self.layers.len() + 1) * self.hidden;
        let layer = |l: &LayerSpec| l.attention.parameters(self.hidden) + l.mlp.parameters(self.hidden);
        heads * self.vocab * self.hidden + norms + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Elements of the cache that one token takes, all layers together.
    pub fn kv_elements_per_token(&self) -> usize {
        self.layers.iter().map(|l| l.attention.kv_elements()).sum()
    }

    /// Values that the forward pass holds for each token of a step.
    pub fn step_values_per_token(&self) -> usize {
        let layer = |l: &LayerSpec| l.attention.step_values().max(l.mlp.step_values(self.hidden));
        3 * self.hidden + self.layers.iter().map(layer).max().unwrap_or(0)
    }

    /// Maximum number of query heads of one KV head in any layer; 1 for MLA.
    pub fn largest_group(&self) -> usize {
        let group = |l: &LayerSpec| match &l.attention {
            AttentionSpec::Gqa(a) => a.heads / a.kv_heads.max(1),
            AttentionSpec::Mla(_) => 1,
        };
        self.layers.iter().map(group).max().unwrap_or(1)
    }

    /// Longest context that can be asked for, in tokens: beyond `max_position` where rope stretches to what is asked.
    pub fn longest_context(&self) -> usize {
        let stretched = self.ropes.iter().filter_map(|r| match r.scaling {
            RopeScaling::Dynamic { factor, .. } => Some(self.max_position as f32 * factor),
            _ => r.scaling.stretched(),
        });
        stretched.map(|tokens| tokens as usize).max().unwrap_or(0).clamp(self.max_position, MAX_CONTEXT)
    }

    /// The context that rope scaling gives to a model whose config.json says `max_position`: factor times the context of the
    /// training, as vLLM derives it. Some configs have the product in `max_position_embeddings` already.
    pub(crate) fn scaled_context(&self) -> usize {
        let max_position = self.max_position as f32;
        let of = |rope: &RopeSpec| match rope.scaling {
            // Beside another rope (Gemma 3) the number is that of the whole model.
            RopeScaling::Linear { factor } if self.ropes.len() == 1 => Some(max_position * factor),
            RopeScaling::Yarn { .. } => rope.scaling.stretched(),
            RopeScaling::Llama3 { original_max_position, .. }
            | RopeScaling::Longrope { original_max_position, .. }
                if max_position <= original_max_position =>
            {
                rope.scaling.stretched()
            }
            _ => None,
        };
        let longest = self.ropes.iter().filter_map(of).fold(max_position, f32::max);
        if longest > max_position { (longest as usize).min(MAX_CONTEXT) } else { self.max_position }
    }
}
