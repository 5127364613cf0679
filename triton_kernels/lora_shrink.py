"""The first half of adapters: each row times the A of its adapter.

    h[s, t * M + i, p, r] = sum over k in split s: x[rows[t, i], k] a[page of r, p, r mod 16, k]

`t` are tiles of M rows with the same slot, `p` the parts of a fused projection (`lora_slots` has the layout). Products
are summed in f32. The depth is cut into splits, which `lora_expand` adds in order. Their number follows from the depth
alone: the bits of a row depend neither on the batch nor on other adapters. Ranks that an adapter does not have are
neither computed nor written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import FLOATS, Options, capability, ceil_div, check, check_device, check_tensor, launch
from .lora_slots import FEW, MANY, PAGE, LoraSite, LoraTiles, check_tiles
from .tuned import lookup


class Config(NamedTuple):
    """Columns of x per step, warps, stages."""

    depth: int
    warps: int
    stages: int


# Chosen by the compile check and by reasoning; not yet measured on a GPU.
# Keys: rows of a tile, compute capability from.
CONFIGS: dict[int, dict[int, Config]] = {
    FEW: {8: Config(128, 4, 4)},
    MANY: {8: Config(64, 4, 3), 9: Config(64, 4, 4)},
}
FLOAT32 = Config(64, 4, 2)
"""float32 is for tests."""

SPLIT = 1024
"""Columns of a split of the depth."""

MAX_SPLITS = 8


def splits_of(depth: int) -> int:
    """Splits of a depth: one for each 1024 columns, at most 8."""
    return max(1, min(MAX_SPLITS, depth // SPLIT))


def config_for(width: int, major: int) -> Config:
    """The configuration for tiles of `width` rows on a device of compute capability `major`."""
    table = CONFIGS[width]
    return table[max(version for version in table if version <= max(major, 8))]


def _config(tiles: LoraTiles, x: torch.Tensor) -> Config:
    width = tiles.rows.shape[1]
    if x.dtype == torch.float32:
        return FLOAT32
    found = None if tiles.deterministic else lookup("lora_shrink", str(width), x.device)
    if found is not None and len(found) == len(Config._fields):
        return Config(*found)
    return config_for(width, capability(x.device)[0])


@triton.jit(do_not_specialize=["chunks", "positions"])
def lora_shrink_kernel(
    x_ptr,
    a_ptr,
    rows_ptr,
    slots_ptr,
    pages_ptr,
    ranks_ptr,
    h_ptr,
    K,
    x_stride,
    chunks,
    page_stride,
    positions,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One program: a tile, one page of ranks of one part, one split of the depth."""
    tile = tl.program_id(0)
    chunk = tl.program_id(1) // PARTS
    part = tl.program_id(1) % PARTS
    split = tl.program_id(2)
    slot = tl.load(slots_ptr + tile)
    if slot < 0:
        return
    if chunk * PAGE >= tl.load(ranks_ptr + slot * PARTS + part):
        return
    page = tl.load(pages_ptr + slot * page_stride + chunk).to(tl.int64)
    line = tl.arange(0, BLOCK_M)
    row = tl.load(rows_ptr + tile * BLOCK_M + line)
    rank = tl.arange(0, PAGE)
    inner = tl.arange(0, BLOCK_K)
    # Places without a row compute with the first row; nothing reads their results.
    x_row = x_ptr + tl.maximum(row, 0).to(tl.int64)[:, None] * x_stride
    a_row = a_ptr + ((page * PARTS + part) * PAGE + rank)[None, :] * K
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLITS)
    acc = tl.zeros((BLOCK_M, PAGE), tl.float32)
    for step in tl.range(split * share, tl.minimum((split + 1) * share, steps)):
        k = step * BLOCK_K + inner
        if WHOLE_DEPTH:
            x = tl.load(x_row + k[None, :])
            a = tl.load(a_row + k[:, None])
        else:
            x = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
            a = tl.load(a_row + k[:, None], mask=(k < K)[:, None], other=0.0)
        acc = tl.dot(x, a, acc, input_precision=PRECISION)
    place = split.to(tl.int64) * positions + tile * BLOCK_M + line
    to = ((place * PARTS + part) * chunks + chunk)[:, None] * PAGE + rank[None, :]
    tl.store(h_ptr + to, acc)


def lora_shrink(x: torch.Tensor, site: LoraSite, tiles: LoraTiles) -> torch.Tensor:
    """h, f32 `[splits, tiles * M, parts, ranks]` of `x` `[T, K]` in the dtype of `site.a`, rows at any distance.

    `ranks` is `tiles.max_rank` rounded up to pages. Values of ranks that a row's adapter does not have are undefined,
    and so are all values of places without a row: `lora_expand` does not read them.
    """
    check_device(x=x, a=site.a, rows=tiles.rows)
    check_tiles(tiles, site)
    parts, depth = site.a.shape[1], site.a.shape[3]
    check(depth > 0, "a has no columns")
    check_tensor("x", x, dtypes=FLOATS, shape=(None, depth))
    check(x.dtype == site.a.dtype, f"x has dtype {x.dtype}, a has {site.a.dtype}: pass one dtype")
    count, width = tiles.rows.shape
    splits, chunks = splits_of(depth), tiles.chunks
    config = _config(tiles, x)
    h = torch.empty(splits, count * width, parts, chunks * PAGE, dtype=torch.float32, device=x.device)
    arguments = {
        "x_ptr": x,
        "a_ptr": site.a,
        "rows_ptr": tiles.rows,
        "slots_ptr": tiles.slots,
        "pages_ptr": site.pages,
        "ranks_ptr": site.ranks,
        "h_ptr": h,
        "K": depth,
        "x_stride": x.stride(0),
        "chunks": chunks,
        "page_stride": site.pages.stride(0),
        "positions": count * width,
    }
    constants = {
        "PARTS": parts,
        "SPLITS": splits,
        "WHOLE_DEPTH": depth % config.depth == 0,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "BLOCK_M": width,
        "BLOCK_K": config.depth,
        "PAGE": PAGE,
    }
    grid = (count, chunks * parts, splits)
    launch(lora_shrink_kernel, grid, arguments, constants, Options(config.warps, config.stages))
    return h


def lora_shrink_ref(x: torch.Tensor, site: LoraSite, tiles: LoraTiles) -> torch.Tensor:
    """The formula of the module in f64, rounded once, in the first split. The rest is 0."""
    parts, depth = site.a.shape[1], site.a.shape[3]
    count, width = tiles.rows.shape
    h = torch.zeros(splits_of(depth), count * width, parts, tiles.chunks * PAGE, device=x.device)
    pages, ranks, rows = site.pages.tolist(), site.ranks.tolist(), tiles.rows.long()
    for t, slot in enumerate(tiles.slots.tolist()):
        if slot < 0:
            continue
        mine = x[rows[t].clamp(min=0)].double()
        for part, rank in enumerate(ranks[slot]):
            chosen = pages[slot][: ceil_div(rank, PAGE)]
            a = site.a[chosen, part].flatten(0, 1).double()
            h[0, t * width : (t + 1) * width, part, : len(a)] = (mine @ a.t()).float()
    return h
