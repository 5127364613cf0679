"""Random LoRA adapters for any checkpoint: what a load with adapters costs does not depend on their values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from octavo.errors import InvalidRequestError
from octavo.merge.tensor_file import Tensor, TensorFile, from_float32, header_bytes

__all__ = ["write_random_adapters"]

# Projections that every engine adapts; experts, routers and kv_b_proj are not among them.
_PROJECTION = re.compile(
    r"(?P<module>(?:.*\.)?layers\.\d+\.(?:self_attn|mlp|mlp\.shared_experts?)\."
    r"(?:[qkvo]_proj|qkv_proj|q_[ab]_proj|kv_a_proj_with_mqa|gate_proj|up_proj|gate_up_proj|down_proj))\.weight"
)
_SIZE = 0.02


def write_random_adapters(model: Path, folder: Path, rank: int, count: int, seed: int = 0) -> list[Path]:
    """Writes `count` adapters of `rank` on all projections of the checkpoint in `model`, as bfloat16.

    Returns:
        Their folders, in `folder`.

    Raises:
        InvalidRequestError: the model has no projections by their usual names.
    """
    projections = list(_projections(model))
    if not projections:
        raise InvalidRequestError(f"random adapters: there are no projections by their usual names in {model}")
    shapes: list[tuple[str, str, tuple[int, ...]]] = [
        shape
        for module, tensor in projections
        for shape in (
            (f"{module}.lora_A.weight", "BF16", (rank, tensor.shape[1])),
            (f"{module}.lora_B.weight", "BF16", (tensor.shape[0], rank)),
        )
    ]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({module.rpartition(".")[2] for module, _ in projections}),
    }
    folders = []
    for i in range(count):
        made = folder / f"adapter-{i}"
        made.mkdir(parents=True)
        (made / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        draw = np.random.default_rng((seed, i))
        with (made / "adapter_model.safetensors").open("wb") as file:
            file.write(header_bytes(shapes, None)[0])
            for _, dtype, shape in shapes:
                values = draw.standard_normal(shape, np.float32) * np.float32(_SIZE)
                file.write(from_float32(values, dtype).tobytes())
        folders.append(made)
    return folders


def _projections(model: Path) -> Iterator[tuple[str, Tensor]]:
    """Modules by PEFT's names, and their weights."""
    for path in sorted(model.glob("*.safetensors")):
        for tensor in TensorFile(path).tensors.values():
            match = _PROJECTION.fullmatch(tensor.name)
            if match and len(tensor.shape) == 2:
                yield f"base_model.model.{match['module']}", tensor
