//! The weights of a model in memory: packed for the kernels, nothing of the checkpoint kept.

use octavo_kernels::Linear;

use crate::octavo_file::format::Origin;
use crate::spec::Dtype;
use crate::weight_format::KeptInBf16;

/// A projection with its optional bias.
pub(crate) struct Projection {
    pub weight: Linear,
    pub bias: Option<Vec<f32>>,
}

/// Weights of one decoder layer. Which norms there are follows from their placement.
pub(crate) struct LayerWeights {
    /// Number of the layer.
    pub index: usize,
    pub attention_norm: Option<Vec<f32>>,
    pub attention: AttentionWeights,
    pub attention_post_norm: Option<Vec<f32>>,
    pub mlp_norm: Option<Vec<f32>>,
    pub mlp: FeedForwardWeights,
    pub mlp_post_norm: Option<Vec<f32>>,
}

/// Weights of an attention block.
pub(crate) enum AttentionWeights {
    Gqa(Box<GqaWeights>),
    Mla(Box<MlaWeights>),
}

/// Weights of multi-head attention.
pub(crate) struct GqaWeights {
    /// q, k and v below each other: `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: Projection,
    /// Weights of the norms of queries and keys.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub o: Projection,
}

/// Weights of latent attention in its absorbed form: queries are turned into the space of the latents, and what attention
/// gives is turned into values afterwards.
pub(crate) struct MlaWeights {
    /// The projection to the latent of queries and its norm, where queries have one.
    pub q_a: Option<(Projection, Vec<f32>)>,
    /// `[heads * (qk_nope_head_dim + qk_rope_head_dim), q_lora_rank or hidden]`.
    pub q: Projection,
    /// `[kv_lora_rank + qk_rope_head_dim, hidden]`.
    pub kv_a: Projection,
    pub kv_a_norm: Vec<f32>,
    /// For each head `[kv_lora_rank, qk_nope_head_dim]`.
    pub to_latent: Vec<Linear>,
    /// For each head `[v_head_dim, kv_lora_rank]`.
    pub to_value: Vec<Linear>,
    pub o: Projection,
}

/// Weights of a feed-forward block.
pub(crate) enum FeedForwardWeights {
    Dense(Box<MlpWeights>),
    Experts(Box<MoeWeights>),
}

/// Weights of a gated feed-forward block.
pub(crate) struct MlpWeights {
    /// gate and up below each other: `[2 * intermediate, hidden]`.
    pub gate_up: Projection,
    pub down: Projection,
}

/// Weights of a mixture of experts.
pub(crate) struct MoeWeights {
    /// `[experts, hidden]`, in f32: a rounded router sends tokens elsewhere.
    pub router: Linear,
    /// Added to scores for the choice, `[experts]`.
    pub e_score_correction_bias: Option<Vec<f32>>,
    pub experts: Vec<MlpWeights>,
    /// The shared expert and its gate `[1, hidden]`.
    pub shared: Option<(MlpWeights, Option<Linear>)>,
}

/// All weights of a model.
pub(crate) struct ModelWeights {
    /// `[vocab, hidden]`; None: the head serves.
    pub embed: Option<Linear>,
    pub layers: Vec<LayerWeights>,
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`.
    pub head: Linear,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// The result of loading.
pub(crate) struct Loaded {
    pub weights: ModelWeights,
    /// Element type of the checkpoint's embedding.
    pub stored: Dtype,
    /// Oddities of the files that do not prevent loading.
    pub warnings: Vec<String>,
    /// The tensors that stayed in bfloat16.
    pub kept_in_bf16: Vec<KeptInBf16>,
    /// Origin of the file of `octavo quantize` that holds the weights, if one does.
    pub origin: Option<Origin>,
}
