"""A step plan in the order of the kernels, and its transfer to the device in one copy.

Decodes (one query each) come first. `first_rows` maps each sequence of the plan to its first row:

    plan          | prefill A: rows 0 1 2 | decode B: row 3 | prefill C: rows 4 5 | decode D: row 6 |
    batch         | B | D | A A A | C C |        num_decodes 2, first_rows [2, 0, 5, 1]
    query_start   0   1   2       5     7
    packed int32  | tokens | positions | slots | query_start | context_lens | block_tables | sealed | ... |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.gpu.lora import StepAdapters
from octavo.gpu.plan import Ints, Plan

BLOCK_SIZE = 32
_ALIGNED_WORDS = 4
"""Parts of the packed buffer are aligned to 16 bytes: Triton compiles another variant for other pointers."""


@dataclass(frozen=True)
class Batch:
    """The tokens of a step on the device; all int32.

    Attributes:
        tokens, positions, slots: `[T]`; slot -1 caches nothing.
        query_start: `[S + 1]`, first row of each sequence.
        context_lens: `[S]`, tokens in the cache after this step.
        block_tables: `[S, max_blocks]`, unused entries 0.
        sealed: `[F]`, blocks of an int8 cache that this step fills; -1: none.
        num_decodes: sequences at the front that have one query.
        max_query_len, max_context_len: on the host.
        adapters: None if no sequence has one.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    sealed: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_context_len: int
    adapters: StepAdapters | None = None


@dataclass(frozen=True)
class HostBatch:
    """A plan in the order of the kernels, still on the host."""

    tokens: Ints
    positions: Ints
    slots: Ints
    query_start: Ints
    context_lens: Ints
    block_tables: Ints
    num_decodes: int
    first_rows: Ints
    """Row of the first query of each sequence of the plan, in the plan's order."""

    @property
    def all_decodes(self) -> bool:
        return self.num_decodes == len(self.context_lens)


def build_batch(plan: Plan) -> HostBatch:
    """Puts decodes first and pads the block tables to a rectangle `[S, max_blocks]`."""
    seqs = plan.seqs
    lens = seqs["query_len"].astype(np.int32)
    decodes = lens == 1
    order = np.argsort(~decodes, kind="stable")
    query_start = np.zeros(len(seqs) + 1, np.int32)
    np.cumsum(lens[order], out=query_start[1:])
    first_rows = np.empty(len(seqs), np.int32)
    first_rows[order] = query_start[:-1]
    rows = _rows(seqs["query_start"].astype(np.int32)[order], lens[order])
    in_place = bool((order == np.arange(len(order))).all())
    tokens, positions, slots = (a if in_place else a[rows] for a in (plan.tokens, plan.positions, plan.slots))
    context = seqs["context_len"].astype(np.int32)[order]
    blocks = -(-context // BLOCK_SIZE)
    width = int(blocks.max())
    columns = np.arange(width, dtype=np.int32)
    used = columns < blocks[:, None]
    tables = np.zeros((len(seqs), width), np.int32)
    starts = seqs["block_table_start"].astype(np.int32)[order]
    tables[used] = plan.block_tables[(starts[:, None] + columns)[used]]
    return HostBatch(tokens, positions, slots, query_start, context, tables, int(decodes.sum()), first_rows)


def open_pairs(plan: Plan) -> Ints:
    """(block, open block) `[n, 2]` of every block that gets a token in this step."""
    context = plan.seqs["context_len"].astype(np.int32)
    first = (context - plan.seqs["query_len"].astype(np.int32)) // BLOCK_SIZE
    counts = -(-context // BLOCK_SIZE) - first
    blocks = plan.block_tables[_rows(plan.seqs["block_table_start"].astype(np.int32) + first, counts)]
    return np.stack([blocks, plan.open_blocks[_rows(plan.seqs["open_block_start"].astype(np.int32), counts)]], 1)


def _rows(starts: Ints, lens: Ints) -> Ints:
    """Concatenation of the ranges starts[i] .. starts[i] + lens[i] - 1."""
    ends = np.cumsum(lens)
    return (np.repeat(starts - (ends - lens), lens) + np.arange(int(ends[-1]))).astype(np.int32)


class HostToDevice:
    """Copies the integers of a step to the device from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host = torch.empty(0, dtype=torch.int32)
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def send(self, *arrays: Any) -> list[torch.Tensor]:
        """The int32 arrays on the device, in one copy."""
        arrays = tuple(np.asarray(a, np.int32) for a in arrays)
        rooms = [a.size + -a.size % _ALIGNED_WORDS for a in arrays]
        total = sum(rooms)
        if self._sent is not None:
            # The engine does not wait for a step without samples: the last copy may be unfinished.
            self._sent.synchronize()
        if self._host.numel() < total:
            pinned = self.device.type == "cuda"
            self._host = torch.empty(max(4096, 2 * total), dtype=torch.int32, pin_memory=pinned)
        host = self._host.numpy()
        at = 0
        for a, room in zip(arrays, rooms, strict=True):
            host[at : at + a.size] = a.reshape(-1)
            at += room
        packed = self._host[:total].to(self.device, non_blocking=True, copy=True)
        if self._sent is not None:
            self._sent.record()
        parts = packed.split(rooms)
        return [part[: a.size].view(a.shape) for part, a in zip(parts, arrays, strict=True)]


class DeviceToHost:
    """Asynchronous copy of tensors to the host, after the kernels that compute them."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._sent = torch.cuda.Event() if tensors[0].is_cuda else None
        if self._sent is None:
            self._host = list(tensors)
            return
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._sent.record()

    def wait(self) -> list[np.ndarray[Any, Any]]:
        """Waits for the copy."""
        if self._sent is not None:
            self._sent.synchronize()
        return [host.numpy() for host in self._host]


def to_device(host: HostBatch, sealed: Ints, transfer: HostToDevice, *more: Any) -> tuple[Batch, list[torch.Tensor]]:
    """The batch with its `sealed` blocks, and `more` int32 arrays, on the device after one copy."""
    parts = transfer.send(
        host.tokens,
        host.positions,
        host.slots,
        host.query_start,
        host.context_lens,
        host.block_tables,
        sealed,
        *more,
    )
    tokens, positions, slots, query_start, context_lens, block_tables, new, *rest = parts
    batch = Batch(
        tokens,
        positions,
        slots,
        query_start,
        context_lens,
        block_tables,
        new,
        num_decodes=host.num_decodes,
        max_query_len=int(np.diff(host.query_start).max()),
        max_context_len=int(host.context_lens.max()),
    )
    return batch, rest
