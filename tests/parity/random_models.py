"""Small models with random weights, written to disk by transformers itself."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Case:
    """One architecture with a shape.

    Attributes:
        name: id of the test.
        model_type: as in config.json.
        options: what differs from the base shape.
        old_spelling: rewrite config.json as transformers 4 wrote it.
        limits: arguments of `LLM` that the case needs.
    """

    name: str
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    old_spelling: bool = False
    limits: dict[str, Any] = field(default_factory=dict)


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """Options of a case with one rope for all layers."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **options}}


LONGROPE = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.2, 2.0, 5.0, 9.0]}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
BY_LAYER_TYPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }
}
FOUR_LAYERS = {"num_hidden_layers": 4, "sliding_window": 11}
QWEN2_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK_YARN = {**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.9}
DEEPSEEK_V3 = {**LATENT, "n_group": 4, "topk_group": 2}


CASES = [
    Case("llama", "llama"),
    Case("llama-old-config", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, True),
    Case("llama3-rope", "llama", {"rope_parameters": LLAMA3_ROPE}),
    Case("llama3-rope-old-config", "llama", {"rope_parameters": LLAMA3_ROPE}, True),
    Case(
        "llama-linear-rope",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    Case(
        "llama-head-30",
        "llama",
        {"head_dim": 30, "hidden_size": 90, "num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    Case(
        "llama-head-48-group-7",
        "llama",
        {"hidden_size": 70, "head_dim": 48, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
    Case(
        "llama-odd-sizes",
        "llama",
        {
            "hidden_size": 105,
            "head_dim": 22,
            "intermediate_size": 157,
            "vocab_size": 263,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
        },
    ),
    Case("llama-one-layer-head-96", "llama", {"num_hidden_layers": 1, "head_dim": 96, "num_key_value_heads": 1}),
    Case("llama-tied", "llama", {"tie_word_embeddings": True}),
    Case("llama-all-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama-gelu", "llama", {"hidden_act": "gelu_pytorch_tanh"}),
    Case("llama-wide", "llama", {"hidden_size": 320, "intermediate_size": 500, "head_dim": 64}),
    Case("mistral-window", "mistral", {"sliding_window": 17}),
    Case("mistral-window-old-config", "mistral", {"sliding_window": 33}, True),
    Case("mistral-odd-hidden", "mistral", {"hidden_size": 101, "head_dim": 24, "sliding_window": None}),
    Case("mistral-no-window", "mistral", {"sliding_window": None}),
    Case("qwen2", "qwen2"),
    Case("qwen2-tied-old-config", "qwen2", {"tie_word_embeddings": True}, True),
    Case("qwen2-upper-window", "qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    Case(
        "qwen2-upper-window-old-config",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        True,
    ),
    Case("qwen3", "qwen3", {"head_dim": 40}),
    Case("qwen3-tied-old-config", "qwen3", {"head_dim": 16, "tie_word_embeddings": True}, True),
    Case(
        "qwen3-bias-window",
        "qwen3",
        {
            "head_dim": 32,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 21,
            "max_window_layers": 0,
        },
    ),
    Case(
        "llama-dynamic-rope",
        "llama",
        {"max_position_embeddings": 64, **rope("dynamic", factor=4.0)},
        False,
        {"max_model_len": 139},
    ),
    Case("llama-dynamic-rope-short", "llama", rope("dynamic", factor=4.0), True),
    Case("llama-yarn", "llama", rope("yarn", **YARN)),
    Case("llama-yarn-old-config", "llama", rope("yarn", **YARN, attention_factor=0.8, beta_fast=8, beta_slow=2), True),
    Case("llama-yarn-untruncated", "llama", rope("yarn", **YARN, truncate=False)),
    Case("smollm3", "smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    Case("smollm3-old-config", "smollm3", {"no_rope_layers": [0, 1]}, True),
    Case("smollm3-window", "smollm3", {**FOUR_LAYERS, "use_sliding_window": True, "no_rope_layer_interval": 2}),
    Case("olmo2", "olmo2"),
    Case("olmo2-bias-old-config", "olmo2", {"attention_bias": True, "num_key_value_heads": 4}, True),
    Case("olmo3", "olmo3", {**FOUR_LAYERS, **BY_LAYER_TYPE}),
    Case(
        "olmo3-yarn",
        "olmo3",
        {**FOUR_LAYERS, "rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 5e5, **YARN}}},
    ),
    Case(
        "olmo3-yarn-old-config",
        "olmo3",
        {**FOUR_LAYERS, "rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 5e5, **YARN}}},
        True,
    ),
    Case(
        "granite",
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
            "logits_scaling": 0.4,
        },
    ),
    Case("granite-bias-old-config", "granite", {"attention_bias": True, "mlp_bias": True}, True),
    Case("phi3", "phi3", {"sliding_window": 30}),
    Case("phi3-partial-rotary", "phi3", rope("default", partial_rotary_factor=0.5)),
    Case(
        "phi3-longrope-long",
        "phi3",
        {"original_max_position_embeddings": 64, **rope("longrope", partial_rotary_factor=0.5, **LONGROPE)},
    ),
    Case(
        "phi3-longrope-short",
        "phi3",
        {"original_max_position_embeddings": 256, **rope("longrope", partial_rotary_factor=0.5, **LONGROPE)},
        False,
        {"max_model_len": 256},
    ),
    Case(
        "phi3-longrope-old-config",
        "phi3",
        {"original_max_position_embeddings": 64, **rope("longrope", partial_rotary_factor=0.5, **LONGROPE)},
        True,
    ),
    Case("gemma", "gemma", {"head_dim": 24, "tie_word_embeddings": True}),
    Case("gemma-old-config", "gemma", {"head_dim": 32, "hidden_act": "gelu", "tie_word_embeddings": True}, True),
    Case(
        "gemma2",
        "gemma2",
        {**FOUR_LAYERS, "head_dim": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    Case(
        "gemma2-no-caps-old-config",
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 20,
            "tie_word_embeddings": True,
        },
        True,
    ),
    Case("gemma3", "gemma3_text", {**FOUR_LAYERS, **BY_LAYER_TYPE, "head_dim": 24, "sliding_window_pattern": 2}),
    Case(
        "gemma3-old-config",
        "gemma3_text",
        {**FOUR_LAYERS, **BY_LAYER_TYPE, "head_dim": 32, "sliding_window_pattern": 3, "final_logit_softcapping": 9.0},
        True,
    ),
    Case("glm4", "glm4", {"head_dim": 24}),
    Case("glm4-old-config", "glm4", {"head_dim": 32, "attention_bias": False}, True),
    Case("cohere2", "cohere2", {**FOUR_LAYERS, "tie_word_embeddings": True, "logit_scale": 0.5}),
    Case(
        "cohere2-bias-old-config",
        "cohere2",
        {**FOUR_LAYERS, "sliding_window_pattern": 2, "attention_bias": True, "logit_scale": 1.5},
        True,
    ),
    Case("mixtral", "mixtral", {"num_local_experts": 5}),
    Case("mixtral-window-old-config", "mixtral", {"num_local_experts": 4, "sliding_window": 19}, True),
    Case("qwen2-moe", "qwen2_moe", {**QWEN2_MOE, "shared_expert_intermediate_size": 56}),
    Case(
        "qwen2-moe-mixed-old-config",
        "qwen2_moe",
        {
            **QWEN2_MOE,
            "shared_expert_intermediate_size": 24,
            "norm_topk_prob": True,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 13,
            "max_window_layers": 3,
            "qkv_bias": False,
        },
        True,
    ),
    Case("qwen3-moe", "qwen3_moe", {**QWEN2_MOE, "head_dim": 24, "norm_topk_prob": True}),
    Case(
        "qwen3-moe-window-old-config",
        "qwen3_moe",
        {**QWEN2_MOE, "head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 21},
        True,
    ),
    Case("deepseek-v2", "deepseek_v2", {**LATENT, **rope("yarn", **DEEPSEEK_YARN)}),
    Case("deepseek-v2-no-query-latent", "deepseek_v2", {**LATENT, "q_lora_rank": None, "attention_bias": True}),
    Case(
        "deepseek-v2-groups-old-config",
        "deepseek_v2",
        {
            **LATENT,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            **rope("yarn", **DEEPSEEK_YARN),
        },
        True,
    ),
    Case("deepseek-v3", "deepseek_v3", {**DEEPSEEK_V3, **rope("yarn", **DEEPSEEK_YARN)}),
    Case(
        "deepseek-v3-half-rope-old-config",
        "deepseek_v3",
        {**DEEPSEEK_V3, "rope_interleave": False, "norm_topk_prob": False, "q_lora_rank": None, "attention_bias": True},
        True,
    ),
    Case(
        "deepseek-v3-many-heads", "deepseek_v3", {**DEEPSEEK_V3, "num_attention_heads": 64, "num_key_value_heads": 64}
    ),
]


def write_model(case: Case, folder: Path) -> PreTrainedModel:
    """Writes the model of `case` to `folder`; returns it as transformers has it."""
    options = {
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **case.options,
    }
    config = AutoConfig.for_model(case.model_type, **copy.deepcopy(options))
    torch.manual_seed(sum(map(ord, case.name)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    _spread_weights(model)
    model.save_pretrained(folder)
    if case.old_spelling:
        _spell_as_before(folder / "config.json", case.options.get("sliding_window_pattern"))
    write_tokenizer(folder, config.vocab_size - 3)
    return model


def _spread_weights(model: PreTrainedModel) -> None:
    """Weights under which every part matters: the usual initialisation gives almost flat logits."""
    tied = model.config.tie_word_embeddings
    # Norms by (1 + w) store weights around 0.
    low = -0.5 if model.config.model_type.startswith("gemma") else 0.5
    with torch.no_grad():
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.normal_(0.0, 0.3)
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(low, low + 1.0)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.5)
            elif "embed_tokens" in name:
                p.normal_(0.0, 3.0 * p.shape[1] ** -0.5 if tied else 1.0)
            elif "lm_head" in name:
                p.normal_(0.0, 3.0 * p.shape[1] ** -0.5)
            else:
                # Experts are stacked: [experts, rows, columns].
                p.normal_(0.0, 1.3 * p.shape[-1] ** -0.5)


def _spell_as_before(file: Path, pattern: int | None) -> None:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling at the top, torch_dtype, no layer_types."""
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if pattern is not None:
        config["sliding_window_pattern"] = pattern
    file.write_text(json.dumps(config))


def write_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of words t0, t1, ... It knows fewer ids than the model has rows, as padded vocabularies do."""
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
