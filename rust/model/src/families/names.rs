//! Names under which checkpoints store tensors.

use serde::Serialize;

/// Names of tensors; `{i}` stands for the index of the layer, `{e}` for that of an expert. Projections are named without
/// `.weight`. A list of names means matrices that are packed below each other; a single name in it, one that already is.
#[derive(Clone, Copy, Serialize)]
pub struct TensorNames {
    /// Embedding `[vocab, hidden]`.
    pub embed: &'static str,
    /// Last norm `[hidden]`.
    pub norm: &'static str,
    /// Output head `[vocab, hidden]`, where it is not tied.
    pub head: &'static str,
    /// Norm before attention `[hidden]`.
    pub attention_norm: &'static str,
    /// Norm after attention `[hidden]`.
    pub attention_post_norm: &'static str,
    /// Query, key and value projections `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: &'static [&'static str],
    /// Output projection `[hidden, heads * head_dim]`.
    pub o: &'static str,
    /// Norm of queries.
    pub q_norm: &'static str,
    /// Norm of keys.
    pub k_norm: &'static str,
    /// Latent attention.
    pub mla: MlaNames,
    /// Norm before the feed-forward block `[hidden]`.
    pub mlp_norm: &'static str,
    /// Norm after the feed-forward block `[hidden]`.
    pub mlp_post_norm: &'static str,
    /// Gate and up projections `[2 * intermediate, hidden]`.
    pub gate_up: &'static [&'static str],
    /// Down projection `[hidden, intermediate]`.
    pub down: &'static str,
    /// Mixture of experts.
    pub experts: ExpertNames,
}

/// Names of latent attention's tensors.
#[derive(Clone, Copy, Serialize)]
pub struct MlaNames {
    /// Query projection from the residual stream.
    pub q: &'static str,
    /// Projection to the latent of queries.
    pub q_a: &'static str,
    /// Its norm.
    pub q_a_norm: &'static str,
    /// Projection from the latent to queries.
    pub q_b: &'static str,
    /// Projection to the latent of keys and values, and the shared key part with rope.
    pub kv_a: &'static str,
    /// Norm of that latent.
    pub kv_a_norm: &'static str,
    /// Projection from the latent to keys without rope and values, head by head.
    pub kv_b: &'static str,
}

/// Names of a mixture of experts.
#[derive(Clone, Copy, Serialize)]
pub struct ExpertNames {
    /// Router `[experts, hidden]`.
    pub router: &'static str,
    /// Bias of the choice `[experts]`.
    pub e_score_correction_bias: &'static str,
    /// Gate and up projections of an expert.
    pub gate_up: &'static [&'static str],
    /// Down projection of an expert.
    pub down: &'static str,
    /// Gate and up projections of the shared expert.
    pub shared_gate_up: &'static [&'static str],
    /// Down projection of the shared expert.
    pub shared_down: &'static str,
    /// Gate `[1, hidden]` on the shared expert's output.
    pub shared_gate: &'static str,
}

/// The Llama layout, which all families follow but for a few names.
pub const LLAMA_NAMES: TensorNames = TensorNames {
    embed: "model.embed_tokens.weight",
    norm: "model.norm.weight",
    head: "lm_head.weight",
    attention_norm: "model.layers.{i}.input_layernorm.weight",
    attention_post_norm: "model.layers.{i}.post_attention_layernorm.weight",
    qkv: &[
        "model.layers.{i}.self_attn.q_proj",
        "model.layers.{i}.self_attn.k_proj",
        "model.layers.{i}.self_attn.v_proj",
    ],
    o: "model.layers.{i}.self_attn.o_proj",
    q_norm: "model.layers.{i}.self_attn.q_norm.weight",
    k_norm: "model.layers.{i}.self_attn.k_norm.weight",
    mla: MlaNames {
        q: "model.layers.{i}.self_attn.q_proj",
        q_a: "model.layers.{i}.self_attn.q_a_proj",
        q_a_norm: "model.layers.{i}.self_attn.q_a_layernorm.weight",
        q_b: "model.layers.{i}.self_attn.q_b_proj",
        kv_a: "model.layers.{i}.self_attn.kv_a_proj_with_mqa",
        kv_a_norm: "model.layers.{i}.self_attn.kv_a_layernorm.weight",
        kv_b: "model.layers.{i}.self_attn.kv_b_proj",
    },
    mlp_norm: "model.layers.{i}.post_attention_layernorm.weight",
    mlp_post_norm: "model.layers.{i}.post_feedforward_layernorm.weight",
    gate_up: &["model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"],
    down: "model.layers.{i}.mlp.down_proj",
    experts: ExpertNames {
        router: "model.layers.{i}.mlp.gate",
        e_score_correction_bias: "model.layers.{i}.mlp.gate.e_score_correction_bias",
        gate_up: &["model.layers.{i}.mlp.experts.{e}.gate_proj", "model.layers.{i}.mlp.experts.{e}.up_proj"],
        down: "model.layers.{i}.mlp.experts.{e}.down_proj",
        shared_gate_up: &[
            "model.layers.{i}.mlp.shared_experts.gate_proj",
            "model.layers.{i}.mlp.shared_experts.up_proj",
        ],
        shared_down: "model.layers.{i}.mlp.shared_experts.down_proj",
        shared_gate: "model.layers.{i}.mlp.shared_expert_gate",
    },
};
