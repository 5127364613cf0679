//! The weights of a model in memory: packed for the kernels, nothing of the checkpoint kept.

use std::path::Path;

use octavo_kernels::Linear;

use crate::ModelError;
use crate::config::{Config, read_json};
use crate::families::{self, Family};

/// A projection with its optional bias.
pub(crate) struct Projection {
    pub weight: Linear,
    pub bias: Option<Vec<f32>>,
}

/// Weights of one decoder layer. Which norms there are follows from their placement.
pub(crate) struct LayerWeights {
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
    Dense(MlpWeights),
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
pub(crate) struct Weights {
    /// `[vocab, hidden]`; None: the head serves.
    pub embed: Option<Linear>,
    pub layers: Vec<LayerWeights>,
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`.
    pub head: Linear,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// Reads config.json of a model folder.
///
/// # Errors
/// `NotFound` without the folder or config.json; else as `families::read`.
pub fn read_family(folder: &Path) -> Result<Family, ModelError> {
    let missing = |what: &str| ModelError::NotFound { path: folder.to_path_buf(), what: what.into() };
    if !folder.is_dir() {
        return Err(missing("there is no such folder"));
    }
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(missing("there is no config.json in it"));
    }
    families::read(&Config::new(&read_json(&config)?))
}
