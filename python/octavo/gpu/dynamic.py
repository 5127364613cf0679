"""Dynamic attention on the device: the policy of a KV pool in which decodes select the value blocks that they read.

These read all blocks: prefill chunks, layers with a sliding window, and sequences below `min_context`. So do sequences
whose scores the workspace cannot hold (shared prefixes take room in it once per sequence).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from octavo.attention import DynamicAttention
from octavo.gpu.attention import Attend, Dense, Report, dense_attention
from octavo.gpu.batch import BLOCK_SIZE, Batch, HostBatch
from octavo.gpu.ops import Ops
from octavo.gpu.plan import Records
from octavo.gpu.spec import Heads, Spec
from octavo.triton_kernels.dynamic_attention import (
    FIELDS,
    SelectionParams,
    Workspace,
    assign_workspace,
    dynamic_attention,
    dynamic_attention_ref,
)
from octavo.triton_kernels.kv_cache import Int8KV, PagedKV

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Dynamic:
    """Attention policy: error bound, workspace for scores, and the report of the last step."""

    name = "dynamic for decodes, "
    max_in_flight = 1
    """The device keeps the report of one step."""

    def __init__(
        self, spec: Spec, attention: DynamicAttention, num_blocks: int, rows: int, device: torch.device
    ) -> None:
        """`rows`: maximum number of decodes of a step, padding included."""
        self.selection = SelectionParams(attention.error_bound, attention.sink_blocks, attention.local_blocks)
        self.min_context = attention.min_context
        self.heads = max_query_heads(spec)
        self.workspace = Workspace.empty(num_blocks, self.heads, device)
        kv_heads = max(layer.attention.kv_heads for layer in spec.layers if isinstance(layer.attention, Heads))
        self._report = torch.zeros(rows, kv_heads, FIELDS, device=device)
        self._layers = Counter(layer.attention for layer in spec.layers if isinstance(layer.attention, Heads))

    def begin(self, ops: Ops, batch: Batch, deterministic: bool) -> Attend:
        """Dense attention, then that of the decodes which select. Sets the report of the step to 0."""
        n = batch.num_decodes
        if n == 0:
            return Dense().begin(ops, batch, deterministic)
        lens, starts = assign_workspace(batch.context_lens[:n], self.min_context, self.workspace.blocks(self.heads))
        dense_lens = batch.context_lens.clone()
        dense_lens[:n] = torch.where(lens > 0, 0, batch.context_lens[:n])
        report = self._report[:n].zero_()
        select = dynamic_attention if ops.kernels else dynamic_attention_ref

        def attend(q: torch.Tensor, a: Heads, cache: PagedKV) -> torch.Tensor:
            if a.window is not None:
                return dense_attention(ops, q, a, cache, batch, batch.context_lens, deterministic)
            out = dense_attention(ops, q, a, cache, batch, dense_lens, deterministic)
            assert isinstance(cache, Int8KV)
            select(
                q[:n],
                cache,
                batch.block_tables[:n],
                lens,
                starts,
                out[:n],
                scale=a.scale,
                selection=self.selection,
                workspace=self.workspace,
                report=report,
                softcap=a.softcap,
                max_context_len=batch.max_context_len,
            )
            return out

        return attend

    def report(self, seqs: Records, host_batch: HostBatch) -> Report:
        """Report of the last step by name, f64 `[S]` each. Waits for the device."""
        found = self._report[: host_batch.num_decodes].double().cpu().numpy()
        end = seqs["context_len"].astype(np.int64)
        begin = end - seqs["query_len"].astype(np.int64)
        calls, blocks, bytes_dense = np.zeros((3, len(seqs)))
        for a, layers in self._layers.items():
            seen = layers * a.kv_heads * (_blocks_before(end, a.window) - _blocks_before(begin, a.window))
            calls += layers * a.heads * (end - begin)
            blocks += seen
            bytes_dense += seen * Int8KV.block_bytes(1, a.head_dim)
        # The sequences of the plan that are decodes, and their rows.
        decodes = np.flatnonzero(seqs["query_len"] == 1)
        rows = found[host_batch.first_rows[decodes]]

        def of_decodes(values: Floats) -> Floats:
            out = np.zeros(len(seqs))
            out[decodes] = values
            return out

        return {
            "calls": calls,
            "dense_calls": calls - of_decodes(rows[:, :, 0].sum(1)),
            "blocks": blocks,
            "value_blocks": blocks - of_decodes(rows[:, :, 1].sum(1)),
            "bytes_read": bytes_dense - of_decodes(rows[:, :, 2].sum(1)),
            "bytes_dense": bytes_dense,
            "max_omitted_mass": of_decodes(rows[:, :, 3].max(1)),
            "sum_omitted_mass": of_decodes(rows[:, :, 4].sum(1)),
            # All scores are computed: the bound is the estimate, rounding aside.
            "max_estimated_mass": of_decodes(rows[:, :, 3].max(1)),
            "sum_estimated_mass": of_decodes(rows[:, :, 4].sum(1)),
            "max_output_error": of_decodes(rows[:, :, 5].max(1)),
        }


def score_bytes(spec: Spec) -> int:
    """Bytes of the workspace for one block of a sequence."""
    return Workspace.block_bytes(max_query_heads(spec))


def max_query_heads(spec: Spec) -> int:
    """Largest number of query heads of a layer."""
    return max(layer.attention.heads for layer in spec.layers)


def _blocks_before(positions: Floats | Any, window: int | None) -> Any:
    """Number of int8 blocks that the queries at positions 0 to n - 1 see, added up over the queries."""

    def full_blocks(n: Any) -> Any:
        """The sum of p // 32 over p below n."""
        whole, rest = n // BLOCK_SIZE, n % BLOCK_SIZE
        return BLOCK_SIZE * (whole * (whole - 1) // 2) + rest * whole

    hidden = 0 if window is None else full_blocks(np.maximum(positions - window + 1, 0))
    return full_blocks(positions) - hidden
