//! `ModelSpec`: a decoder as data. Both executors interpret the same spec; no code names a model family beyond
//! `families`.

use serde::Serialize;

use crate::rope::RopeSpec;

/// Element type of a checkpoint or of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision.
    Float32,
    /// The upper half of a single.
    Bfloat16,
    /// IEEE half precision. Stored on disk only: the CPU computes in the other two.
    Float16,
}

impl Dtype {
    /// The name that PyTorch and Hugging Face use.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Float32 => 4,
            Dtype::Bfloat16 | Dtype::Float16 => 2,
        }
    }
}

/// The function between gate and up projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationKind {
    /// x * sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// Normalisation of a row, before the product with the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Divides by the root of the mean square.
    Rms,
    /// Subtracts the mean, then divides by the standard deviation. It has no bias.
    Layer,
}

/// All norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NormSpec {
    /// The kind.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// Added to every weight: 1 where checkpoints store weight - 1.
    pub offset: f32,
}

/// Position of the norms of a layer; f is the attention or the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// x += f(norm(x)).
    Pre,
    /// x += norm(f(x)).
    Post,
    /// x += norm(f(norm(x))).
    Sandwich,
    /// y = norm(x); x += attention(y) + feed_forward(y).
    Parallel,
}

/// Norms of queries and keys before rope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    Off,
    /// Each head by itself, with the same weights `[head_dim]`.
    Heads,
    /// All heads of a token together, weights `[heads * head_dim]`.
    Whole,
}

/// Grouped-query attention (GQA) of one layer; with `kv_heads == heads` multi-head attention.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GqaSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor on q.k before the softmax.
    pub scale: f32,
    /// A query at position p sees keys in (p - window, p].
    pub window: Option<u32>,
    /// Logits become cap * tanh(logits / cap).
    pub softcap: Option<f32>,
    /// Bias on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Index into `ModelSpec::ropes`; None: no rotary embedding.
    pub rope: Option<usize>,
}

/// Multi-head latent attention of one layer (DeepSeek-V2, arXiv 2405.04434). Keys and values of all heads come from one
/// latent per token, which is what the cache holds, beside a key part with rope that the heads share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MlaSpec {
    /// Query heads.
    pub heads: usize,
    /// Width of the latent that queries come from; None: they come from the residual stream at once.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_lora_rank: usize,
    /// Channels of a head that have no rope.
    pub qk_nope_head_dim: usize,
    /// Channels of a head that have rope.
    pub qk_rope_head_dim: usize,
    /// Channels of a head's values.
    pub v_head_dim: usize,
    /// Factor on q.k before the softmax.
    pub scale: f32,
    /// Bias on the projections from and to the residual stream, the direct query projection excepted.
    pub bias: bool,
    /// Epsilon of the norms of both latents.
    pub norm_eps: f32,
    /// Index into `ModelSpec::ropes`.
    pub rope: usize,
}

/// The attention block of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AttentionSpec {
    /// Grouped-query attention: keys and values for each KV head.
    Gqa(GqaSpec),
    /// Multi-head latent attention: one latent for all heads.
    Mla(MlaSpec),
}

/// A gated feed-forward block: down(act(gate(x)) * up(x)).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MlpSpec {
    /// Width between the projections.
    pub intermediate: usize,
    /// Activation of the gate.
    pub activation: ActivationKind,
    /// Bias on all three projections.
    pub bias: bool,
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Over all experts.
    Softmax,
    /// Each expert by itself.
    Sigmoid,
}

/// Experts in groups of equal size, of which a token uses only the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Number of groups.
    pub count: usize,
    /// Groups that a token may use.
    pub chosen: usize,
    /// A group counts by the sum of its best scores, this many.
    pub best: usize,
}

/// An expert that every token uses, added to the routed ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SharedExpertSpec {
    /// Width between its projections.
    pub intermediate: usize,
    /// Its output is multiplied by sigmoid(w . x).
    pub gated: bool,
}

/// A mixture of experts: each token goes to the `num_experts_per_tok` experts that its router scores highest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoeSpec {
    /// Number of routed experts.
    pub experts: usize,
    /// Experts of one token.
    pub num_experts_per_tok: usize,
    /// Width between an expert's projections.
    pub intermediate: usize,
    /// Activation of the gates.
    pub activation: ActivationKind,
    /// Logits to scores.
    pub scoring: Scoring,
    /// A bias per expert is added to scores for the choice, not for the weights.
    pub e_score_correction_bias: bool,
    /// Restriction to some groups.
    pub groups: Option<ExpertGroups>,
    /// Weights of a token's experts are divided by their sum.
    pub normalize: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// The shared expert.
    pub shared: Option<SharedExpertSpec>,
}

/// The feed-forward block of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FeedForwardSpec {
    /// One block for all tokens.
    Dense(MlpSpec),
    /// A mixture of experts.
    Experts(MoeSpec),
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSpec {
    /// The attention block.
    pub attention: AttentionSpec,
    /// The feed-forward block.
    pub mlp: FeedForwardSpec,
}

/// A decoder-only transformer, described by data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Name from config.json's `architectures`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
    /// Longest context that the model was made for, in tokens.
    pub max_position: usize,
    /// Every norm but those of latents.
    pub norm: NormSpec,
    /// Position of the norms of layers.
    pub norm_placement: NormPlacement,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    /// There is an output head; a base model without one makes embeddings only.
    pub has_head: bool,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// Logits become cap * tanh(logits / cap).
    pub logit_softcap: Option<f32>,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// Rotary embeddings that layers refer to.
    pub ropes: Vec<RopeSpec>,
    /// Element type that config.json declares.
    pub checkpoint_dtype: Option<Dtype>,
}
