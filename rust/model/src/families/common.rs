//! Shared parts of the families: sizes, activation, and the layers of the Llama layout. A family whose layers differ changes the
//! spec that `llama_layout` gives.

use serde_json::Value;

use super::family::Family;
use super::layer_types::layer_count;
use super::names::{LLAMA_NAMES, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::rope::RopeSpec;
use crate::rope_config::{RopeTraits, rope_spec};
use crate::spec::{
    ActivationKind, AttentionSpec, Dtype, FeedForwardSpec, GqaSpec, LayerSpec, MlpSpec, ModelSpec, NormKind,
    NormPlacement, NormSpec, QkNorm,
};

/// Differences between families of the Llama layout.
pub struct Traits {
    /// Name of the architecture.
    pub architecture: &'static str,
    /// Bias on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub out_bias: bool,
    /// Bias in the feed-forward block.
    pub mlp_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Sliding window of each layer; empty: none anywhere.
    pub windows: Vec<Option<u32>>,
    /// Head size where config.json gives none; None: hidden / heads.
    pub head_dim: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_position: usize,
    /// Default of `rms_norm_eps`.
    pub norm_eps: f64,
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Default of `partial_rotary_factor`; None: the family does not read it.
    pub partial_rotary: Option<f64>,
    /// Neighbouring channels of a head turn together.
    pub interleaved: bool,
    /// Rotary embeddings where the family has read them itself; the first one serves all layers.
    pub ropes: Option<Vec<RopeSpec>>,
    /// Activation where the family has read it itself; None: as `hidden_act` says.
    pub activation: Option<ActivationKind>,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Names of tensors.
    pub names: TensorNames,
}

impl Traits {
    /// Llama's own, under another name.
    pub fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: QkNorm::Off,
            windows: Vec::new(),
            head_dim: None,
            max_position: 2048,
            norm_eps: 1e-6,
            theta: 10_000.0,
            partial_rotary: None,
            interleaved: false,
            ropes: None,
            activation: None,
            tied: false,
            names: LLAMA_NAMES,
        }
    }
}

/// The head sizes of multi-head attention.
#[derive(Clone, Copy)]
pub struct HeadSizes {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// Reads `num_attention_heads`, `num_key_value_heads` and `head_dim`.
pub fn head_sizes(config: &Config<'_>, default_head_dim: Option<usize>) -> Result<HeadSizes, ModelError> {
    let hidden = hidden(config)?;
    let heads = config.need_int("num_attention_heads", 1..=4096)?;
    let kv_heads = config.int("num_key_value_heads", 1..=4096)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        let expected = format!("a divisor of {heads} heads is expected");
        return Err(config.bad("num_key_value_heads", &Value::from(kv_heads), expected));
    }
    let head_dim = match config.int("head_dim", 1..=1024)?.or(default_head_dim) {
        Some(d) => d,
        None if hidden % heads == 0 && hidden / heads <= 1024 => hidden / heads,
        None => {
            let expected = format!("a divisor of hidden_size ({hidden}), or a head_dim, is expected");
            return Err(config.bad("num_attention_heads", &Value::from(heads), expected));
        }
    };
    Ok(HeadSizes { heads, kv_heads, head_dim })
}

/// Width of the residual stream.
pub fn hidden(config: &Config<'_>) -> Result<usize, ModelError> {
    config.need_int("hidden_size", 1..=1 << 17)
}

/// Width of a feed-forward block.
pub fn intermediate(config: &Config<'_>, key: &str) -> Result<usize, ModelError> {
    config.need_int(key, 1..=1 << 20)
}

/// The activation that `hidden_act` names.
pub fn activation(config: &Config<'_>) -> Result<ActivationKind, ModelError> {
    match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(ActivationKind::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(ActivationKind::GeluTanh),
        other => Err(ModelError::Unsupported(format!(
            "hidden_act {other:?}: known are \"silu\" and \"gelu_pytorch_tanh\""
        ))),
    }
}

/// Refuses `key` where it is true.
pub fn refuse_flag(config: &Config<'_>, key: &str) -> Result<(), ModelError> {
    match config.flag(key, false)? {
        true => Err(ModelError::Unsupported(format!("{key} in config.json"))),
        false => Ok(()),
    }
}

fn dtype(config: &Config<'_>) -> Result<Option<Dtype>, ModelError> {
    let name = match config.text("dtype")? {
        Some(d) => Some(d),
        None => config.text("torch_dtype")?,
    };
    match name.map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        None => Ok(None),
        // Doubles are read as singles.
        Some("float32" | "float" | "float64" | "double") => Ok(Some(Dtype::Float32)),
        Some("bfloat16") => Ok(Some(Dtype::Bfloat16)),
        Some("float16" | "half") => Ok(Some(Dtype::Float16)),
        Some("auto") => Ok(None),
        Some(other) => {
            Err(ModelError::Unsupported(format!("dtype {other:?}: known are float32, bfloat16 and float16")))
        }
    }
}

/// Builds a family of the Llama layout.
pub fn llama_layout(config: &Config<'_>, traits: Traits) -> Result<Family, ModelError> {
    let HeadSizes { heads, kv_heads, head_dim } = head_sizes(config, traits.head_dim)?;
    let ropes = match traits.ropes {
        Some(ropes) => ropes,
        None => {
            let Traits { theta, partial_rotary: partial, interleaved, max_position, .. } = traits;
            vec![rope_spec(config, RopeTraits { head_dim, theta, partial, interleaved, max_position })?]
        }
    };
    let mlp = MlpSpec {
        intermediate: intermediate(config, "intermediate_size")?,
        activation: traits.activation.map_or_else(|| activation(config), Ok)?,
        bias: traits.mlp_bias,
    };
    let layers = (0..layer_count(config)?)
        .map(|i| LayerSpec {
            attention: AttentionSpec::Gqa(GqaSpec {
                heads,
                kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: traits.windows.get(i).copied().flatten(),
                softcap: None,
                qkv_bias: traits.qkv_bias,
                out_bias: traits.out_bias,
                qk_norm: traits.qk_norm,
                rope: Some(0),
            }),
            mlp: FeedForwardSpec::Dense(mlp.clone()),
        })
        .collect();
    let eps = config.float("rms_norm_eps", 0.0, 1.0)?.unwrap_or(traits.norm_eps);
    let spec = ModelSpec {
        architecture: traits.architecture.to_string(),
        hidden: hidden(config)?,
        vocab: config.need_int("vocab_size", 1..=1 << 22)?,
        max_position: config.int("max_position_embeddings", 1..=1 << 28)?.unwrap_or(traits.max_position),
        norm: NormSpec { kind: NormKind::Rms, eps: eps as f32, offset: 0.0 },
        norm_placement: NormPlacement::Pre,
        tied_embeddings: config.flag("tie_word_embeddings", traits.tied)?,
        has_head: true,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        layers,
        ropes,
        checkpoint_dtype: dtype(config)?,
    };
    Ok(Family { spec, names: traits.names, packed: None, base: false, warnings: Vec::new() })
}

/// The multi-head attention of every layer, to be changed.
pub fn heads_mut(spec: &mut ModelSpec) -> impl Iterator<Item = &mut GqaSpec> {
    spec.layers.iter_mut().filter_map(|l| match &mut l.attention {
        AttentionSpec::Gqa(heads) => Some(heads),
        AttentionSpec::Mla(_) => None,
    })
}
