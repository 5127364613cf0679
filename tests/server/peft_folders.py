"""Random adapters for the embedded model, in the files that peft writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from octavo.hub import embedded_model
from safetensors.numpy import save_file

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder: Path, seed: int, *, rank: int = 4, strength: float = 0.3, **config: Any) -> Path:
    """A folder with a random LoRA of every projection.

    Args:
        strength: size of the change relative to a typical weight.
        config: further keys of adapter_config.json.
    """
    sizes = json.loads((embedded_model() / "config.json").read_text())
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    query, key = (sizes[n] * sizes["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    shapes = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(sizes["num_hidden_layers"]):
        for module, (rows, columns) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = random.normal(0, columns**-0.5, (rank, columns)).astype("float32")
            tensors[f"{name}.lora_B.weight"] = random.normal(0, strength, (rows, rank)).astype("float32")
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"), {"format": "pt"})
    known = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(_MODULES), "bias": "none"}
    known |= {"base_model_name_or_path": "octavo-embedded", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    return folder
