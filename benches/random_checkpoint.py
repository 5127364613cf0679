"""Checkpoints of real shapes with random bfloat16 weights and a tokenizer of a real size, written without torch."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benches.compare.shapes import Shape

# Matrices of random values all begin somewhere in this many: what the values are plays no part.
_POOL_VALUES = 1 << 24


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """config.json, model.safetensors and tokenizer.json of `shape`, its head tied to the embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [{"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[shape.model_type]],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(shape.vocab_size)))
    _write_tensors(shape, folder / "model.safetensors")


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads = {"q": shape.num_attention_heads, "k": shape.num_key_value_heads, "v": shape.num_key_value_heads}
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for i in range(shape.num_hidden_layers):
        layer = f"model.layers.{i}"
        for name, count in heads.items():
            yield f"{layer}.self_attn.{name}_proj.weight", (count * shape.head_dim, hidden)
            if shape.model_type == "qwen2":
                yield f"{layer}.self_attn.{name}_proj.bias", (count * shape.head_dim,)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, heads["q"] * shape.head_dim)
        for name in ("gate", "up"):
            yield f"{layer}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
        for name in ("input", "post_attention"):
            yield f"{layer}.{name}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def _write_tensors(shape: Shape, path: Path) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, sizes in _tensors(shape):
        end = at + 2 * int(np.prod(sizes))
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    pool = _bfloat16(generator.standard_normal(_POOL_VALUES, dtype=np.float32) * 0.02)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, sizes in _tensors(shape):
            count = int(np.prod(sizes))
            if name.endswith("norm.weight"):
                file.write(_bfloat16(np.ones(count, dtype=np.float32)).tobytes())
                continue
            while count > 0:
                begin = int(generator.integers(_POOL_VALUES // 2))
                part = pool[begin : begin + count]
                file.write(part.tobytes())
                count -= len(part)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _tokenizer(size: int) -> dict[str, object]:
    """A byte-level BPE of `size` tokens whose merges are random: as large as that of a real model."""
    choose = random.Random(0)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    known = set(tokens)
    merges = []
    while len(tokens) < size:
        # Short pieces merge most, as in a real vocabulary.
        left, right = (tokens[int(len(tokens) * choose.random() ** 3)] for _ in range(2))
        if len(left + right) <= 16 and left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append([left, right])
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
