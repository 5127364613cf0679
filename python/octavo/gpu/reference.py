"""Plain torch, called as the kernels are, where the references of `octavo.triton_kernels` are called differently."""

from __future__ import annotations

from typing import Any

import torch

from octavo.triton_kernels.int8_matmul import int8_matmul_ref
from octavo.triton_kernels.paged_attention import paged_attention_ref
from octavo.triton_kernels.rms_norm import rms_norm_ref


def rms_norm_in_place(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> Any:
    """As the kernel: a residual is updated, `out` is written."""
    result: Any = rms_norm_ref(x, weight, eps, offset=offset, residual=residual)
    y = result if residual is None else result[0]
    if out is not None:
        y = out.copy_(y)
    return y if residual is None else (y, residual.copy_(result[1]))


def attention(q: torch.Tensor, kv: Any, *arguments: torch.Tensor, **options: Any) -> torch.Tensor:
    """As the kernel, without what only chooses its configuration."""
    meaning = {k: v for k, v in options.items() if k in ("scale", "window", "softcap", "selected")}
    return paged_attention_ref(q, kv, *arguments, **meaning)


def int8_matmul(*arguments: Any, deterministic: bool = False) -> torch.Tensor:
    """As the kernel, without what only chooses its configuration."""
    return int8_matmul_ref(*arguments)
