"""The torch executor where no GPU is at hand: its ops in plain torch, or its kernels in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from octavo import LLM
from octavo.gpu import engine
from octavo.gpu.ops import torch_ops

WISHES = {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_queue", "kv_cache_bytes", "kv_cache_fraction"}


def torch_llm(folder: Path, place: engine.Place | None = None, **options: Any) -> LLM:
    """`LLM` over the torch executor on tensors of the CPU, in float32 unless asked otherwise."""
    wishes = {name: options.pop(name) for name in WISHES & options.keys()}
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "kv_cache_bytes": 4 << 20}
    options = {"dtype": "float32", "quantization": None, **options}
    chosen = engine.Options(wishes=engine.sizes.Wishes(**{**defaults, **wishes}), **options)
    return LLM._over(engine.start(folder, chosen, place or torch_place()), folder)


def torch_place() -> engine.Place:
    return engine.Place(torch.device("cpu"), torch_ops())
