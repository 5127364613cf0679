"""The KV pool on the device: for each layer the paged cache that its attention reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from octavo.gpu.batch import BLOCK_SIZE
from octavo.gpu.ops import Ops
from octavo.gpu.spec import Heads, Latent, Spec
from octavo.triton_kernels.kv_cache import FloatKV


@dataclass(frozen=True)
class LatentKV:
    """Latents and shared key parts `[num_blocks, 32, kv_rank + rope_dim]`."""

    data: torch.Tensor


Cache: TypeAlias = "FloatKV | LatentKV"


class KvPool:
    """The caches of all layers. Blocks are numbered alike in each."""

    def __init__(self, spec: Spec, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_blocks = num_blocks
        self.layers: list[Cache] = [_cache(layer.attention, num_blocks, dtype, device) for layer in spec.layers]

    def copy(self, ops: Ops, copies: torch.Tensor) -> None:
        """Copies blocks: `copies` int32 `[C, 2]` of (source, target)."""
        for cache in self.layers:
            if isinstance(cache, LatentKV):
                pairs = copies.long()
                cache.data[pairs[:, 1]] = cache.data[pairs[:, 0]]
            else:
                ops.copy_blocks(cache, copies)


def block_bytes(spec: Spec, dtype: torch.dtype) -> int:
    """Memory of one block, all layers together."""
    return BLOCK_SIZE * dtype.itemsize * sum(_elements(layer.attention) for layer in spec.layers)


def _elements(attention: Heads | Latent) -> int:
    """Elements that one token leaves in a layer's cache."""
    if isinstance(attention, Latent):
        return attention.kv_rank + attention.rope_dim
    return 2 * attention.kv_heads * attention.head_dim


def _cache(attention: Heads | Latent, num_blocks: int, dtype: torch.dtype, device: torch.device) -> Cache:
    if isinstance(attention, Latent):
        width = attention.kv_rank + attention.rope_dim
        # Zeros, so that places which are masked but read hold no NaN.
        return LatentKV(torch.zeros(num_blocks, BLOCK_SIZE, width, dtype=dtype, device=device))
    return FloatKV.empty(num_blocks, attention.kv_heads, attention.head_dim, dtype, device)
