"""Attention over the paged cache, and the policy of a KV pool: which of its blocks a query reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from octavo.gpu.batch import Batch, HostBatch
from octavo.gpu.ops import Ops
from octavo.gpu.plan import Records
from octavo.gpu.spec import Heads
from octavo.triton_kernels.kv_cache import PagedKV

Attend: TypeAlias = Callable[[torch.Tensor, Heads, PagedKV], torch.Tensor]
"""Attention of a layer in one step: queries `[T, H, D]`, the layer, its cache -> `[T, H, D]`."""

Report: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
"""Named numbers f64 `[S]`, one for each sequence of a plan. `max_*` merge by maximum, the others by addition."""


class AttentionPolicy(Protocol):
    """Chooses the blocks that queries read. All layers share it."""

    name: str
    """Words for `octavo info`; empty for the default."""
    max_in_flight: int
    """Steps that may be on the device at once."""

    def begin(self, ops: Ops, batch: Batch, deterministic: bool) -> Attend:
        """Attention of the step of `batch`."""

    def report(self, seqs: Records, host_batch: HostBatch) -> Report | None:
        """Report of the step that began last; None if the policy has none."""


class Dense:
    """Every query reads all keys and values that it sees."""

    name = ""
    max_in_flight = 2

    def begin(self, ops: Ops, batch: Batch, deterministic: bool) -> Attend:
        """Paged attention with the batch's own context lengths."""
        return lambda q, a, cache: dense_attention(ops, q, a, cache, batch, batch.context_lens, deterministic)

    def report(self, seqs: Records, host_batch: HostBatch) -> None:
        """Nothing: every call is exact."""


def dense_attention(
    ops: Ops,
    q: torch.Tensor,
    a: Heads,
    cache: PagedKV,
    batch: Batch,
    context_lens: torch.Tensor,
    deterministic: bool = False,
) -> torch.Tensor:
    """Attention `[T, H, D]` of all queries. `context_lens` int32 `[S]`; 0 leaves a sequence out."""
    out: torch.Tensor = ops.paged_attention(
        q,
        cache,
        batch.block_tables,
        batch.query_start,
        context_lens,
        scale=a.scale,
        window=a.window,
        softcap=a.softcap,
        num_decodes=batch.num_decodes,
        max_query_len=batch.max_query_len,
        max_context_len=batch.max_context_len,
        deterministic=deterministic,
    )
    return out
