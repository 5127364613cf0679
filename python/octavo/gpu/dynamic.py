"""Dynamic attention in a step: which decodes choose what they read, and what their report says.

Chunks of prompts read everything, as do layers with a sliding window, sequences below `min_context`, and sequences for
whose scores the workspace has no room (prefixes that many share can fill more of it than of the cache).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.attention import DynamicAttention
from octavo.gpu.batch import BLOCK_SIZE, Batch
from octavo.gpu.plan import Ints, Records
from octavo.gpu.spec import Heads, Spec
from octavo.triton_kernels.dynamic_attention import FIELDS, Choice, Workspace, share_out
from octavo.triton_kernels.kv_cache import Int8KV

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class DynamicBatch:
    """The decodes of a step that choose, on the device.

    Attributes:
        lens, starts: int32 `[decodes]`, as `dynamic_attention` takes them.
        dense_lens: int32 `[S]`, contexts of the sequences that read everything, 0 of the others.
        report: f32 `[decodes, KV heads, FIELDS]`.
    """

    lens: torch.Tensor
    starts: torch.Tensor
    dense_lens: torch.Tensor
    report: torch.Tensor


class Dynamic:
    """What decodes may leave out, and the memory that dynamic_batch takes. All layers share it."""

    def __init__(
        self, spec: Spec, attention: DynamicAttention, num_blocks: int, rows: int, device: torch.device
    ) -> None:
        """`rows`: decodes of a step at most, padding included."""
        self.choice = Choice(attention.error_bound, attention.sink_blocks, attention.local_blocks)
        self.min_context = attention.min_context
        self.heads = max_query_heads(spec)
        self.workspace = Workspace.empty(num_blocks, self.heads, device)
        kv_heads = max(layer.attention.kv_heads for layer in spec.layers if isinstance(layer.attention, Heads))
        self._report = torch.zeros(rows, kv_heads, FIELDS, device=device)
        self._layers = Counter(layer.attention for layer in spec.layers if isinstance(layer.attention, Heads))

    def begin(self, batch: Batch) -> DynamicBatch | None:
        """Finds who chooses; the report of the step begins at 0."""
        n = batch.num_decodes
        if n == 0:
            return None
        contexts = batch.context_lens[:n]
        lens, starts = share_out(contexts, self.min_context, self.workspace.blocks(self.heads))
        dense = batch.context_lens.clone()
        dense[:n] = torch.where(lens > 0, 0, contexts)
        return DynamicBatch(lens, starts, dense, self._report[:n].zero_())

    def reports(self, seqs: Records, first_rows: Ints, num_decodes: int) -> Floats:
        """For each sequence of a plan the numbers of its report, `[S, 9]`: those of `AttentionReport`
        (rust/kernels/src/attention/report.rs) in order. Waits for the device."""
        found = self._report[:num_decodes].double().cpu().numpy()
        end = seqs["context_len"].astype(np.int64)
        begin = end - seqs["query_len"].astype(np.int64)
        out = np.zeros((len(seqs), 9))
        calls, left_calls, blocks, read, bytes_read, bytes_dense, most, total, error = out.T
        for a, layers in self._layers.items():
            seen = layers * a.kv_heads * (_blocks_before(end, a.window) - _blocks_before(begin, a.window))
            calls += layers * a.heads * (end - begin)
            blocks += seen
            bytes_dense += seen * Int8KV.block_bytes(1, a.head_dim)
        # The sequences of the plan that are decodes, and their rows.
        decodes = np.flatnonzero(seqs["query_len"] == 1)
        mine = found[first_rows[decodes]]
        left_calls[decodes] = mine[:, :, 0].sum(1)
        read[:] = blocks
        read[decodes] -= mine[:, :, 1].sum(1)
        bytes_read[:] = bytes_dense
        bytes_read[decodes] -= mine[:, :, 2].sum(1)
        most[decodes] = mine[:, :, 3].max(1)
        total[decodes] = mine[:, :, 4].sum(1)
        error[decodes] = mine[:, :, 5].max(1)
        out[:, 1] = calls - left_calls
        return out


def max_query_heads(spec: Spec) -> int:
    """Query heads of the layer that has most."""
    return max(layer.attention.heads for layer in spec.layers)


def _blocks_before(positions: Floats | Any, window: int | None) -> Any:
    """int8 blocks that the queries at positions 0 to n - 1 see together."""

    def full_blocks(n: Any) -> Any:
        """The sum of p // 32 over p below n."""
        whole, rest = n // BLOCK_SIZE, n % BLOCK_SIZE
        return BLOCK_SIZE * (whole * (whole - 1) // 2) + rest * whole

    hidden = 0 if window is None else full_blocks(np.maximum(positions - window + 1, 0))
    return full_blocks(positions) - hidden
