"""Small models with random weights, written to disk by transformers itself."""

from __future__ import annotations

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
    """

    name: str
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    old_spelling: bool = False


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
    config = AutoConfig.for_model(case.model_type, **options)
    torch.manual_seed(sum(map(ord, case.name)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    _spread_weights(model)
    model.save_pretrained(folder)
    if case.old_spelling:
        _spell_as_before(folder / "config.json")
    write_tokenizer(folder, config.vocab_size - 3)
    return model


def _spread_weights(model: PreTrainedModel) -> None:
    """Weights under which every part matters: the usual initialisation gives almost flat logits."""
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.5)
            elif "embed_tokens" in name:
                p.normal_(0.0, 3.0 * p.shape[1] ** -0.5 if tied else 1.0)
            elif "lm_head" in name:
                p.normal_(0.0, 3.0 * p.shape[1] ** -0.5)
            else:
                p.normal_(0.0, 1.3 * p.shape[1] ** -0.5)


def _spell_as_before(file: Path) -> None:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling at the top, torch_dtype, no layer_types."""
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    file.write_text(json.dumps(config))


def write_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of words t0, t1, ... It knows fewer ids than the model has rows, as padded vocabularies do."""
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
