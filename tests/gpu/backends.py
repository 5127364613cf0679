"""Makes an `LLM` over the torch executor, wherever it computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from octavo import LLM
from octavo.config import EngineConfig
from octavo.gpu import load
from octavo.gpu.ops import torch_ops

BLOCK_BYTES = 2 * 2 * 32 * 16 * 2 * 4
"""A block of the fixture `tiny`: keys and values of 2 layers, 32 tokens, 2 heads of 16 channels, float32."""


def cpu_tensors() -> load.Backend:
    return load.Backend(torch.device("cpu"), torch_ops())


def gpu() -> load.Backend:
    return load.gpu()


BACKENDS: list[Callable[[], load.Backend]] = [cpu_tensors, *([gpu] if torch.cuda.is_available() else [])]


def torch_llm(folder: Path, backend: load.Backend | None = None, **options: Any) -> LLM:
    """In float32 unless asked otherwise."""
    memory = options.pop("kv_cache_bytes", 4 << 20)
    defaults = {"dtype": "float32", "quantization": None, "max_num_seqs": 8, "max_num_batched_tokens": 256}
    config = EngineConfig.from_arguments({**defaults, "kv_cache_memory": memory, **options})
    return LLM._over(load.start(folder, config.for_engine(), backend or cpu_tensors()), folder)
