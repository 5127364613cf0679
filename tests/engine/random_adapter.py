"""Random LoRA adapters for the embedded model, written with numpy alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
PREFIX = "base_model.model.model.layers."
HIDDEN, INNER, LAYERS = 192, 512, 6
# Outputs and inputs of the projections of a layer.
SHAPES = {
    "self_attn.q_proj": (192, HIDDEN),
    "self_attn.k_proj": (64, HIDDEN),
    "self_attn.v_proj": (64, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 192),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def random_tensors(
    seed: int, rank: int, modules: Sequence[str] = tuple(SHAPES), layers: Sequence[int] = range(LAYERS)
) -> dict[str, np.ndarray[Any, Any]]:
    """Pairs of matrices, large enough to change what the model says."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        for module in modules:
            outputs, inputs = SHAPES[module]
            name = f"{PREFIX}{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = draw.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = draw.normal(0, 0.3 * rank**-0.5, (outputs, rank)).astype(np.float32)
    return tensors


def config(rank: int, **fields: Any) -> dict[str, Any]:
    """The fields of adapter_config.json that matter."""
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear", **fields}


def file_bytes(tensors: Arrays) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_random(folder: Path, seed: int, rank: int = 8, tensors: Arrays | None = None, **fields: Any) -> Path:
    """Writes an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config(rank, **fields)))
    content = random_tensors(seed, rank) if tensors is None else tensors
    (folder / "adapter_model.safetensors").write_bytes(file_bytes(content))
    return folder
