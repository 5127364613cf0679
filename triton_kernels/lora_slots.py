"""Adapters on the device: what `lora_shrink` and `lora_expand` read.

Ranks lie in *pages* of 16, as KV lies in blocks. A *slot* is one adapter: a row of tables that name its pages and its
rank in each part of a fused projection. No adapter is padded to the rank of another, and nothing moves:

    slot 2, rank 40      pages[2] = [7, 0, 4, -]      ranks[2] = [40, 40, 8]: q, k and v
    a [pages, parts, 16, K]     one row per rank; unused rows are zeros
    b [pages, N, 16]            one column per rank; the columns of part p follow those of part p - 1

Rows of a step are put into *tiles* of rows with the same slot. All tables are int32 on the device: a CUDA graph stays
valid when adapters come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .launch import FLOATS, ceil_div, check, check_tensor

PAGE = 16
"""Ranks of a page: the smallest depth of a tensor core."""

FEW, MANY = 16, 64
"""Rows of a tile: of steps with few tokens, and of prefills."""

MAX_PARTS = 3

Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class LoraTiles:
    """The rows of a step that have an adapter.

    Attributes:
        rows: int32 `[tiles, FEW or MANY]`, rows of x; -1: none.
        slots: int32 `[tiles]`, the slot of each tile; -1: the tile is empty.
        max_rank: the largest rank of the step's adapters, or more. On the host.
        deterministic: bits must not depend on configurations that were measured.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    max_rank: int
    deterministic: bool = False

    @property
    def chunks(self) -> int:
        """Pages of the largest rank."""
        return max(1, ceil_div(self.max_rank, PAGE))


@dataclass(frozen=True)
class LoraSite:
    """The adapters of one projection of the model, in the layout of the module's docstring.

    Attributes:
        a, b: bf16, f16 or f32.
        widths: columns of each part: one to three parts, N together.
        pages: int32 `[slots, chunks]`, shared by all projections.
        ranks: int32 `[slots, parts]`; 0: the adapter leaves this part alone.
        scales: f32 `[slots, parts]`.
        extras: int32 `[slots, parts]`: 1 where `gains` and `shifts` count.
        gains, shifts: f32 `[slots, N]`: DoRA's factor, and the bias of B (`lora_bias`).
    """

    a: torch.Tensor
    b: torch.Tensor
    widths: tuple[int, ...]
    pages: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor
    extras: torch.Tensor
    gains: torch.Tensor
    shifts: torch.Tensor

    @classmethod
    def empty(
        cls, pages: torch.Tensor, num_pages: int, depth: int, widths: Sequence[int], dtype: torch.dtype
    ) -> LoraSite:
        """A site without adapters, on the device of the page table."""
        slots, parts, columns, device = pages.shape[0], len(widths), sum(widths), pages.device
        return cls(
            a=torch.zeros(num_pages, parts, PAGE, depth, dtype=dtype, device=device),
            b=torch.zeros(num_pages, columns, PAGE, dtype=dtype, device=device),
            widths=tuple(widths),
            pages=pages,
            ranks=torch.zeros(slots, parts, dtype=torch.int32, device=device),
            scales=torch.zeros(slots, parts, device=device),
            extras=torch.zeros(slots, parts, dtype=torch.int32, device=device),
            gains=torch.zeros(slots, columns, device=device),
            shifts=torch.zeros(slots, columns, device=device),
        )

    def __post_init__(self) -> None:
        """Shapes and dtypes of all tables. Once: a step has hundreds of calls."""
        parts, columns, (slots, _) = len(self.widths), sum(self.widths), self.pages.shape
        check(1 <= parts <= MAX_PARTS, f"widths has {parts} parts, wanted 1 to {MAX_PARTS}")
        check_tensor("a", self.a, dtypes=FLOATS, shape=(None, parts, PAGE, None), contiguous=True)
        check_tensor("b", self.b, dtypes=(self.a.dtype,), shape=(self.a.shape[0], columns, PAGE), contiguous=True)
        check_tensor("pages", self.pages, dtypes=(torch.int32,), contiguous=True)
        for name in ("ranks", "extras"):
            check_tensor(name, getattr(self, name), dtypes=(torch.int32,), shape=(slots, parts), contiguous=True)
        check_tensor("scales", self.scales, dtypes=(torch.float32,), shape=(slots, parts), contiguous=True)
        for name in ("gains", "shifts"):
            check_tensor(name, getattr(self, name), dtypes=(torch.float32,), shape=(slots, columns), contiguous=True)


def check_tiles(tiles: LoraTiles, site: LoraSite) -> None:
    """Shapes and dtypes of a step's tiles, and that its ranks have pages."""
    check_tensor("rows", tiles.rows, dtypes=(torch.int32,), shape=(None, None), contiguous=True)
    count, width = tiles.rows.shape
    check(width in (FEW, MANY), f"rows has {width} columns, wanted {FEW} or {MANY}")
    check_tensor("slots", tiles.slots, dtypes=(torch.int32,), shape=(count,), contiguous=True)
    room = site.pages.shape[1]
    check(tiles.chunks <= room, f"max_rank is {tiles.max_rank}, the page table has room for {PAGE * room}")


def tile_rows(rows: int, deterministic: bool = False) -> int:
    """Rows of a tile for a step of `rows` tokens. Deterministic steps have one size: a row has the same bits in all."""
    return FEW if deterministic or rows <= 4 * MANY else MANY


def max_tiles(rows: int, slots: int, width: int) -> int:
    """The most tiles of `width` rows that a step of `rows` tokens with at most `slots` adapters needs."""
    return (rows + (width - 1) * min(slots, rows)) // width


def make_tiles(row_slots: Ints, width: int) -> tuple[Ints, Ints]:
    """`rows` and `slots` of `LoraTiles` for the slot of each row, int32 `[T]` (-1: no adapter). On the host."""
    order = np.argsort(row_slots, kind="stable").astype(np.int32)
    order = order[np.searchsorted(row_slots[order], 0) :]
    found, first, counts = np.unique(row_slots[order], return_index=True, return_counts=True)
    tiles = -(-counts // width)
    rows = np.full((int(tiles.sum()), width), -1, np.int32)
    # A tile of each slot is full except its last one.
    tile = np.repeat(np.cumsum(tiles) - tiles, counts)
    within = np.arange(len(order)) - np.repeat(first, counts)
    rows[tile + within // width, within % width] = order
    return rows, np.repeat(found, tiles).astype(np.int32)


def tiles_of(row_slots: Sequence[int], width: int, max_rank: int, device: torch.device) -> LoraTiles:
    """Tiles on a device, from the slot of each row."""
    rows, slots = make_tiles(np.asarray(row_slots, np.int32), width)
    return LoraTiles(torch.from_numpy(rows).to(device), torch.from_numpy(slots).to(device), max_rank)
