"""LoRA adapters on the device: their pages and slots, and what they add to a step.

Every projection has a `LoraSite`: ranks in pages of 16, and tables by slot (`triton_kernels/lora_slots.py`). A page of
the pool is the same page of every site, so one table of pages serves all. An adapter takes as many pages as its largest
rank needs, and one slot. Both are free again when the last holder drops its `Resident`.

All of it is allocated once, at the first adapter: pointers never change, and CUDA graphs stay valid.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.gpu.linear import Linear
from octavo.gpu.ops import Ops
from octavo.gpu.sites import Projection, Site
from octavo.triton_kernels.lora_slots import FEW, PAGE, LoraSite, LoraTiles, make_tiles, max_tiles, tile_rows

NO_ADAPTER = 0xFFFFFFFF
"""The adapter id of a sequence without one."""

_ROWS = 4096
"""Rows of a weight whose norms are taken at once (DoRA)."""


@dataclass(frozen=True)
class Module:
    """What an adapter adds to one module: scale * B (A x), on any device.

    Attributes:
        a, b: `[r, K]` and `[N, r]`.
        magnitude: `[N]`, of DoRA.
        bias: `[N]`, the bias of B.
    """

    name: str
    scale: float
    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class PoolFullError(Exception):
    """The pool has no room. The engine keeps to the pool's size: this is a fault."""


def page_bytes(projections: Iterable[Projection], dtype: torch.dtype) -> int:
    """Bytes of a page of ranks over all projections, with the tables of one slot."""
    total = 0
    for p in projections:
        columns, depth = p.linear.shape
        total += PAGE * (columns + len(p.modules) * depth) * dtype.itemsize + 8 * columns
    return total


class AdapterPool:
    """Pages and slots of all projections."""

    def __init__(self, projections: Sequence[Projection], num_pages: int, max_rank: int, dtype: torch.dtype) -> None:
        device = projections[0].linear.device
        self._pages = torch.zeros(num_pages, -(-max_rank // PAGE), dtype=torch.int32, device=device)
        self._of_module = {name: (p, part) for p in projections for part, name in enumerate(p.modules)}
        self.sites: dict[Site, LoraSite] = {
            p.site: LoraSite.empty(self._pages, num_pages, p.linear.shape[1], p.widths, dtype) for p in projections
        }
        self.lock = threading.Lock()
        """Held while an adapter is copied in, and while a graph is captured."""
        self._free_pages, self._free_slots = list(range(num_pages))[::-1], list(range(num_pages))[::-1]

    @property
    def device(self) -> torch.device:
        """The device of the pages."""
        return self._pages.device

    @property
    def max_rank(self) -> int:
        """Ranks that an adapter may have."""
        return PAGE * min(self._pages.shape)

    @property
    def free_pages(self) -> int:
        """Pages that no adapter holds."""
        return len(self._free_pages)

    def pack(self, modules: Sequence[Module]) -> Resident:
        """Copies an adapter into free pages. Work on the device that was submitted before is not disturbed.

        Raises:
            PoolFullError: the pages do not suffice.
        """
        rank = max(m.rank for m in modules)
        with self.lock:
            count = -(-rank // PAGE)
            if count > min(len(self._free_pages), self._pages.shape[1]) or not self._free_slots:
                raise PoolFullError(f"an adapter of rank {rank} needs {count} pages, {len(self._free_pages)} are free")
            pages, slot = [self._free_pages.pop() for _ in range(count)], self._free_slots.pop()
            resident = Resident(self, slot, rank)
            weakref.finalize(resident, self._release, pages, slot)
            self._pages[slot, :count] = torch.tensor(pages, dtype=torch.int32, device=self._pages.device)
            for site in self.sites.values():
                site.ranks[slot] = 0
                site.extras[slot] = 0
            for module in modules:
                self._write(module, pages, slot)
        return resident

    def _release(self, pages: list[int], slot: int) -> None:
        # Runs wherever the last reference goes, also inside `pack`: no lock. Appending is atomic.
        self._free_pages.extend(pages)
        self._free_slots.append(slot)

    def _write(self, module: Module, pages: list[int], slot: int) -> None:
        projection, part = self._of_module[module.name]
        site, device = self.sites[projection.site], self.device
        a, b = module.a.to(device).float(), module.b.to(device).float()
        count = -(-module.rank // PAGE)
        room = count * PAGE - module.rank
        first = sum(projection.widths[:part])
        rows = slice(first, first + projection.widths[part])
        index = torch.tensor(pages[:count], device=device)
        padded = torch.nn.functional.pad
        site.a[index, part] = padded(a, (0, 0, 0, room)).view(count, PAGE, -1).to(site.a.dtype)
        site.b[index, rows] = padded(b, (0, room)).view(-1, count, PAGE).transpose(0, 1).to(site.b.dtype)
        site.ranks[slot, part], site.scales[slot, part] = module.rank, module.scale
        if module.magnitude is not None or module.bias is not None:
            site.gains[slot, rows] = 1.0 if module.magnitude is None else dora_gains(projection.linear, rows, module)
            site.shifts[slot, rows] = 0.0 if module.bias is None else module.bias.to(device).float() * module.scale
            site.extras[slot, part] = 1


class Resident:
    """An adapter in a pool: its slot and its largest rank. Its memory is free when this object is."""

    def __init__(self, pool: AdapterPool, slot: int, rank: int) -> None:
        self.pool, self.slot, self.rank = pool, slot, rank


def dora_gains(linear: Linear, rows: slice, module: Module) -> torch.Tensor:
    """magnitude / |W + scale B A| of each row, f32 `[N]`. W as the projection computes with it."""
    assert module.magnitude is not None
    device = linear.device
    a, b = module.a.to(device).float(), module.b.to(device).float()
    norms = []
    for start in range(rows.start, rows.stop, _ROWS):
        end = min(start + _ROWS, rows.stop)
        update = b[start - rows.start : end - rows.start] @ a
        norms.append((linear.wide(start, end) + module.scale * update).norm(dim=-1))
    return module.magnitude.to(device).float() / torch.cat(norms)


@dataclass(frozen=True)
class StepAdapters:
    """The adapters of one step: the pool, and the rows that have one."""

    pool: AdapterPool
    tiles: LoraTiles
    ops: Ops

    def add(self, site: Site, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`y` `[T, N]` of a projection of `x` `[T, K]`, with the updates of the rows that have an adapter."""
        at = self.pool.sites[site]
        h = self.ops.lora_shrink(x.to(at.a.dtype), at, self.tiles)
        out: torch.Tensor = self.ops.lora_expand(h, at, self.tiles, y, bias)
        return out

    @classmethod
    def blank(
        cls, pool: AdapterPool, ops: Ops, rows: int, slots: int, max_rank: int, deterministic: bool
    ) -> StepAdapters:
        """Room for every step of `rows` tokens with at most `slots` adapters: for a CUDA graph."""
        width = tile_rows(rows, deterministic)
        shape = (max_tiles(rows, slots, width), width)
        device = pool.device
        lines = torch.full(shape, -1, dtype=torch.int32, device=device)
        slots_of = torch.full(shape[:1], -1, dtype=torch.int32, device=device)
        return cls(pool, LoraTiles(lines, slots_of, max_rank, deterministic), ops)

    def holds(self, other: StepAdapters) -> bool:
        """Whether `copy_` can take that step."""
        mine, theirs = self.tiles, other.tiles
        fits = len(theirs.slots) <= len(mine.slots) and theirs.chunks <= mine.chunks
        return fits and theirs.rows.shape[1] == mine.rows.shape[1]

    def copy_(self, other: StepAdapters) -> None:
        """Takes another step's rows; tiles that it does not need are empty."""
        n = len(other.tiles.slots)
        self.tiles.rows[:n].copy_(other.tiles.rows)
        self.tiles.slots[:n].copy_(other.tiles.slots)
        self.tiles.slots[n:].fill_(-1)


def adapted(
    linear: Linear, x: torch.Tensor, adapters: StepAdapters | None, layer: int, projection: str
) -> torch.Tensor:
    """`linear(x)`, with the updates of the step's adapters if it has any."""
    y = linear(x)
    return y if adapters is None else adapters.add((layer, projection), x, y, linear.bias)


Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class HostAdapters:
    """The rows of a step that have an adapter, still on the host: `LoraTiles` of one pool."""

    pool: AdapterPool | None
    rows: Ints
    slots: Ints
    max_rank: int
    deterministic: bool

    def on_device(self, rows: torch.Tensor, slots: torch.Tensor, ops: Ops) -> StepAdapters | None:
        """With its tables as they arrived there."""
        if self.pool is None:
            return None
        return StepAdapters(self.pool, LoraTiles(rows, slots, self.max_rank, self.deterministic), ops)


def host_adapters(ids: Any, lens: Ints, residents: Mapping[int, Resident], deterministic: bool) -> HostAdapters:
    """From the adapter id and the number of rows of each sequence, in the order of the batch."""
    if not residents:
        return NONE
    of_seq = [None if i == NO_ADAPTER else residents[i] for i in ids.tolist()]
    used = [r for r in of_seq if r is not None]
    slots = np.repeat(np.array([-1 if r is None else r.slot for r in of_seq], np.int32), lens)
    tiles = make_tiles(slots, tile_rows(len(slots), deterministic))
    rank = max((r.rank for r in used), default=0)
    return HostAdapters(used[0].pool if used else None, *tiles, rank, deterministic)


NONE = HostAdapters(None, np.empty((0, FEW), np.int32), np.empty(0, np.int32), 0, False)
"""Of a step without adapters."""
