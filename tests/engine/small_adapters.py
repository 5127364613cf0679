"""Small PEFT folders for the embedded model, written without peft."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from octavo.hub import embedded_model
from safetensors.numpy import save_file


def write_small(folder: Path, seed: int, rank: int = 4, scale: float = 1.0) -> Path:
    """An adapter of random values on the projections of attention and MLP of every layer."""
    config = json.loads((embedded_model() / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (rows, columns) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = draw.normal(0, columns**-0.5, (rank, columns)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = draw.normal(0, 0.3 * scale * rank**-0.5, (rows, rank)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(module.split(".")[1] for module in shapes),
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder
