"""The KV pool on the device: for each layer the paged cache that its attention reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from octavo.gpu.attention import AttentionPolicy, Dense
from octavo.gpu.batch import BLOCK_SIZE
from octavo.gpu.ops import Ops
from octavo.gpu.plan import Ints
from octavo.gpu.spec import Heads, Latent, Spec
from octavo.triton_kernels.kv_cache import FloatKV, Int8KV


@dataclass(frozen=True)
class KvFormat:
    """Format of keys and values: floats in `dtype`, or (`int8`) sealed blocks in int8 and open blocks in `dtype`."""

    dtype: torch.dtype
    int8: bool = False

    @property
    def name(self) -> str:
        """As an option."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class LatentKV:
    """Latents and shared key parts `[num_blocks, 32, kv_lora_rank + qk_rope_head_dim]`."""

    data: torch.Tensor


Cache: TypeAlias = "FloatKV | Int8KV | LatentKV"


class KvPool:
    """The caches of all layers. Block numbers and open block numbers mean the same in every layer."""

    def __init__(
        self, spec: Spec, num_blocks: int, format: KvFormat, device: torch.device, num_open_blocks: int = 0
    ) -> None:
        self.num_blocks = num_blocks
        self.format = format
        self.policy: AttentionPolicy = Dense()
        self.open_block_of = torch.full((num_blocks if format.int8 else 0,), -1, dtype=torch.int32, device=device)
        self._on_device = np.full(len(self.open_block_of), -1, np.int32)
        """Content of `open_block_of`."""

        def cache(a: Heads | Latent) -> Cache:
            if isinstance(a, Latent):
                width = a.kv_lora_rank + a.qk_rope_head_dim
                # Zeros: kernels read masked entries, which must not be NaN.
                return LatentKV(torch.zeros(num_blocks, BLOCK_SIZE, width, dtype=format.dtype, device=device))
            shape = (a.kv_heads, a.head_dim, format.dtype, device)
            if format.int8:
                return Int8KV.empty(num_blocks, num_open_blocks, *shape, open_block_of=self.open_block_of)
            return FloatKV.empty(num_blocks, *shape)

        self.layers: list[Cache] = [cache(layer.attention) for layer in spec.layers]

    def changed(self, pairs: Ints) -> Ints:
        """Rows of `pairs` (block, open block) int32 `[n, 2]` that `open_block_of` does not contain."""
        new: Ints = pairs[self._on_device[pairs[:, 0]] != pairs[:, 1]]
        return new

    def set_open_blocks(self, pairs: Ints, on_device: torch.Tensor) -> None:
        """Writes `pairs` (block, open block) `[n, 2]` to `open_block_of`. Entries of sealed blocks are never read."""
        self.open_block_of[on_device[:, 0].long()] = on_device[:, 1]
        self._on_device[pairs[:, 0]] = pairs[:, 1]

    def copy(self, ops: Ops, copies: torch.Tensor, open_copies: torch.Tensor) -> None:
        """Copies blocks and open blocks: int32 `[C, 2]` of (source, target) each."""
        for cache in self.layers:
            if isinstance(cache, LatentKV):
                pairs = copies.long()
                cache.data[pairs[:, 1]] = cache.data[pairs[:, 0]]
            else:
                ops.copy_blocks(cache, copies, open_copies)


def block_bytes(spec: Spec, format: KvFormat) -> int:
    """Bytes of one block, all layers together."""

    def bytes_of(a: Heads | Latent) -> int:
        if isinstance(a, Latent):
            return BLOCK_SIZE * format.dtype.itemsize * (a.kv_lora_rank + a.qk_rope_head_dim)
        if format.int8:
            return Int8KV.block_bytes(a.kv_heads, a.head_dim)
        return FloatKV.block_bytes(a.kv_heads, a.head_dim, format.dtype)

    return sum(bytes_of(layer.attention) for layer in spec.layers)


def open_block_bytes(spec: Spec, format: KvFormat) -> int:
    """Bytes of one open block, all layers together; 0 for a float cache."""
    heads = [layer.attention for layer in spec.layers if isinstance(layer.attention, Heads)]
    return sum(Int8KV.open_block_bytes(a.kv_heads, a.head_dim, format.dtype) for a in heads) if format.int8 else 0
