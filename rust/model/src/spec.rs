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
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// Multi-head attention of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionSpec {
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
    /// RMS norm of each query and key head before rope.
    pub qk_norm: bool,
    /// Index into `ModelSpec::ropes`; None: no rotary embedding.
    pub rope: Option<usize>,
}

/// The gated feed-forward block of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MlpSpec {
    /// Width between the projections.
    pub intermediate: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Bias on all three projections.
    pub bias: bool,
}

/// One decoder layer: norm, attention, residual, norm, feed-forward, residual.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSpec {
    /// The attention block.
    pub attention: AttentionSpec,
    /// The feed-forward block.
    pub mlp: MlpSpec,
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
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// Rotary embeddings that layers refer to.
    pub ropes: Vec<RopeSpec>,
    /// Element type that config.json declares.
    pub checkpoint_dtype: Option<Dtype>,
}

impl ModelSpec {
    /// Number of weights, the tied head counted once.
    pub fn parameters(&self) -> usize {
        let heads: usize = if self.tied_embeddings { 1 } else { 2 };
        let mut n = heads * self.vocab * self.hidden + self.hidden;
        for layer in &self.layers {
            let a = &layer.attention;
            let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
            n += 2 * self.hidden + (2 * q + 2 * kv) * self.hidden + 3 * self.hidden * layer.mlp.intermediate;
            n += if a.qkv_bias { q + 2 * kv } else { 0 } + if a.out_bias { self.hidden } else { 0 };
            n += if a.qk_norm { 2 * a.head_dim } else { 0 };
            n += if layer.mlp.bias { 2 * layer.mlp.intermediate + self.hidden } else { 0 };
        }
        n
    }

    /// Elements of K and V that one token leaves in the cache, all layers together.
    pub fn kv_elements_per_token(&self) -> usize {
        self.layers.iter().map(|l| 2 * l.attention.kv_heads * l.attention.head_dim).sum()
    }
}
