"""The ops that a step is made of: Triton kernels on a GPU (and in Triton's interpreter), torch references elsewhere.

Both sides have one meaning; `octavo.triton_kernels` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Op = Callable[..., Any]


@dataclass(frozen=True)
class Ops:
    """Each as in `octavo.triton_kernels`. `rms_norm` with a residual updates it in place."""

    rms_norm: Op
    rope_and_cache: Op
    paged_attention: Op
    act_and_mul: Op
    quantize_rows: Op
    int8_matmul: Op
    copy_blocks: Op
    quantize_blocks: Op
    lora_shrink: Op
    lora_expand: Op
    kernels: bool


def kernel_ops() -> Ops:
    """The Triton kernels: for CUDA tensors, or for CPU tensors in the interpreter."""
    from octavo.triton_kernels.activation import act_and_mul
    from octavo.triton_kernels.block_ops import copy_blocks, quantize_blocks
    from octavo.triton_kernels.int8_matmul import int8_matmul
    from octavo.triton_kernels.lora_expand import lora_expand
    from octavo.triton_kernels.lora_shrink import lora_shrink
    from octavo.triton_kernels.paged_attention import paged_attention
    from octavo.triton_kernels.quantize import quantize_rows
    from octavo.triton_kernels.rms_norm import rms_norm
    from octavo.triton_kernels.rope_cache import rope_and_cache

    return Ops(
        rms_norm=rms_norm,
        rope_and_cache=rope_and_cache,
        paged_attention=paged_attention,
        act_and_mul=act_and_mul,
        quantize_rows=quantize_rows,
        int8_matmul=int8_matmul,
        copy_blocks=copy_blocks,
        quantize_blocks=quantize_blocks,
        lora_shrink=lora_shrink,
        lora_expand=lora_expand,
        kernels=True,
    )


def torch_ops() -> Ops:
    """Plain torch, for any device: slow, and what the kernels are compared with."""
    from octavo.gpu import reference
    from octavo.triton_kernels.activation import act_and_mul_ref
    from octavo.triton_kernels.block_ops import copy_blocks_ref, quantize_blocks_ref
    from octavo.triton_kernels.lora_expand import lora_expand_ref
    from octavo.triton_kernels.lora_shrink import lora_shrink_ref
    from octavo.triton_kernels.quantize import quantize_rows_ref
    from octavo.triton_kernels.rope_cache import rope_and_cache_ref

    return Ops(
        rms_norm=reference.rms_norm_in_place,
        rope_and_cache=rope_and_cache_ref,
        paged_attention=reference.attention,
        act_and_mul=act_and_mul_ref,
        quantize_rows=quantize_rows_ref,
        int8_matmul=reference.int8_matmul,
        copy_blocks=copy_blocks_ref,
        quantize_blocks=quantize_blocks_ref,
        lora_shrink=lora_shrink_ref,
        lora_expand=lora_expand_ref,
        kernels=False,
    )


def layer_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    """(x - mean) / deviation * (weight + offset) along the last dimension, in x's dtype; f32 inside."""
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * (weight.float() + offset)).to(x.dtype)
