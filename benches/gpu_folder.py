"""Models of the GPU benches: their shapes, and folders and weights that need no download."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0},
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "rope_scaling": LLAMA3_ROPE,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "tie_word_embeddings": False,
        "rope_scaling": None,
    },
}


class RandomCheckpoint:
    """Tensors of any name, drawn on the device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device = device
        self._draw = torch.Generator(device).manual_seed(1)

    def shape(self, name: str) -> None:
        return None

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(list(shape), dtype=torch.bfloat16, device=self._device)
        scale = shape[-1] ** -0.5
        values = torch.randn(list(shape), dtype=torch.bfloat16, device=self._device, generator=self._draw)
        return values.mul_(scale)

    def warnings(self) -> list[str]:
        return []


def write_folder(shape: dict[str, Any], folder: Path) -> None:
    """A model folder whose weights are a hole in a file."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"t{i}": i for i in range(16)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_hollow_weights(shape, folder / "model.safetensors")


def write_hollow_weights(shape: dict[str, Any], file: Path) -> None:
    """The header of a checkpoint, whose tensors are a hole: the reader checks names and sizes, and takes no disk."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    q, kv = (shape[f"num_{heads}_heads"] * shape["head_dim"] for heads in ("attention", "key_value"))
    sizes = {"model.embed_tokens": [shape["vocab_size"], hidden], "model.norm": [hidden]}
    if not shape["tie_word_embeddings"]:
        sizes["lm_head"] = [shape["vocab_size"], hidden]
    matrices = {f"self_attn.{x}_proj": [n, hidden] for x, n in (("q", q), ("k", kv), ("v", kv))}
    matrices |= {"self_attn.o_proj": [hidden, q], "mlp.down_proj": [hidden, inner]}
    matrices |= {f"mlp.{x}_proj": [inner, hidden] for x in ("gate", "up")}
    norms = {f"{x}_layernorm": [hidden] for x in ("input", "post_attention")}
    for i in range(shape["num_hidden_layers"]):
        sizes |= {f"model.layers.{i}.{name}": size for name, size in (matrices | norms).items()}
    header, end = {}, 0
    for name, size in sizes.items():
        begin, end = end, end + 2 * math.prod(size)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
