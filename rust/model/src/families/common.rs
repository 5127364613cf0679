//! What the families share: sizes, activation, tensor names of the Llama layout.

use serde_json::Value;

use super::{Family, TensorNames};
use crate::ModelError;
use crate::config::Config;
use crate::rope::rope_spec;
use crate::spec::{Activation, AttentionSpec, Dtype, LayerSpec, MlpSpec, ModelSpec};

/// Names of the Llama layout, which all families here use.
const LLAMA_NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens.weight",
    norm: "model.norm.weight",
    head: "lm_head.weight",
    attention_norm: "model.layers.{i}.input_layernorm.weight",
    q: "model.layers.{i}.self_attn.q_proj",
    k: "model.layers.{i}.self_attn.k_proj",
    v: "model.layers.{i}.self_attn.v_proj",
    o: "model.layers.{i}.self_attn.o_proj",
    q_norm: "model.layers.{i}.self_attn.q_norm.weight",
    k_norm: "model.layers.{i}.self_attn.k_norm.weight",
    mlp_norm: "model.layers.{i}.post_attention_layernorm.weight",
    gate: "model.layers.{i}.mlp.gate_proj",
    up: "model.layers.{i}.mlp.up_proj",
    down: "model.layers.{i}.mlp.down_proj",
};

/// What differs between families of the Llama layout.
pub struct Traits {
    /// Name of the architecture.
    pub architecture: &'static str,
    /// Bias on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub out_bias: bool,
    /// Bias in the feed-forward block.
    pub mlp_bias: bool,
    /// Norms on query and key heads.
    pub qk_norm: bool,
    /// Sliding window of each layer; empty: none anywhere.
    pub windows: Vec<Option<u32>>,
    /// Head size where config.json gives none; None: hidden / heads.
    pub head_dim: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_position: usize,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
}

/// Number of layers.
pub fn layer_count(config: &Config<'_>) -> Result<usize, ModelError> {
    config.need_int("num_hidden_layers", 1..=1024)
}

/// The window of each layer for configs with `use_sliding_window`, `max_window_layers` and `layer_types`.
pub fn qwen_windows(config: &Config<'_>) -> Result<Vec<Option<u32>>, ModelError> {
    let layers = layer_count(config)?;
    if !config.flag("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let Some(window) = config.int("sliding_window", 0..=1 << 30)?.filter(|w| *w > 0) else {
        return Ok(vec![None; layers]);
    };
    let window = Some(window as u32);
    if let Some(types) = config.texts("layer_types")? {
        if types.len() != layers {
            let found = Value::from(types.len());
            return Err(config.bad(
                "layer_types",
                &found,
                format!("one entry for each of {layers} layers is expected"),
            ));
        }
        return types
            .iter()
            .map(|t| match *t {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(window),
                other => Err(ModelError::Unsupported(format!("layer type {other:?}"))),
            })
            .collect();
    }
    let first = config.int("max_window_layers", 0..=1 << 20)?.unwrap_or(layers);
    Ok((0..layers).map(|i| if i >= first { window } else { None }).collect())
}

fn activation(config: &Config<'_>) -> Result<Activation, ModelError> {
    match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => Err(ModelError::Unsupported(format!(
            "hidden_act {other:?}: known are \"silu\" and \"gelu_pytorch_tanh\""
        ))),
    }
}

fn dtype(config: &Config<'_>) -> Result<Option<Dtype>, ModelError> {
    let name = match config.text("dtype")? {
        Some(d) => Some(d),
        None => config.text("torch_dtype")?,
    };
    match name {
        None => Ok(None),
        Some("float32") => Ok(Some(Dtype::Float32)),
        Some("bfloat16") => Ok(Some(Dtype::Bfloat16)),
        Some("float16") => Ok(Some(Dtype::Float16)),
        Some(other) => {
            Err(ModelError::Unsupported(format!("dtype {other:?}: known are float32, bfloat16 and float16")))
        }
    }
}

/// Builds a family of the Llama layout.
pub fn llama_layout(config: &Config<'_>, traits: Traits) -> Result<Family, ModelError> {
    let hidden = config.need_int("hidden_size", 1..=1 << 17)?;
    let heads = config.need_int("num_attention_heads", 1..=4096)?;
    let kv_heads = config.int("num_key_value_heads", 1..=4096)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        let found = Value::from(kv_heads);
        return Err(config.bad(
            "num_key_value_heads",
            &found,
            format!("a divisor of {heads} heads is expected"),
        ));
    }
    let head_dim = match config.int("head_dim", 1..=1024)?.or(traits.head_dim) {
        Some(d) => d,
        None if hidden % heads == 0 && hidden / heads <= 1024 => hidden / heads,
        None => {
            let found = Value::from(heads);
            let expected = format!("a divisor of hidden_size ({hidden}), or a head_dim, is expected");
            return Err(config.bad("num_attention_heads", &found, expected));
        }
    };
    let rope = rope_spec(config, head_dim, 10_000.0)?;
    let mlp = MlpSpec {
        intermediate: config.need_int("intermediate_size", 1..=1 << 20)?,
        activation: activation(config)?,
        bias: traits.mlp_bias,
    };
    let layers = (0..layer_count(config)?)
        .map(|i| LayerSpec {
            attention: AttentionSpec {
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
            },
            mlp: mlp.clone(),
        })
        .collect();
    let spec = ModelSpec {
        architecture: traits.architecture.to_string(),
        hidden,
        vocab: config.need_int("vocab_size", 1..=1 << 22)?,
        max_position: config.int("max_position_embeddings", 1..=1 << 28)?.unwrap_or(traits.max_position),
        norm_eps: config.float("rms_norm_eps", 0.0, 1.0)?.unwrap_or(1e-6) as f32,
        tied_embeddings: config.flag("tie_word_embeddings", traits.tied)?,
        layers,
        ropes: vec![rope],
        checkpoint_dtype: dtype(config)?,
    };
    Ok(Family { spec, names: LLAMA_NAMES })
}
