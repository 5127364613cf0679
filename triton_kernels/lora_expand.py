"""The second half of adapters: adds the update of each row's adapter to the output of a projection, in place.

    d[i, n] = scale * sum over r: h[i, p, r] b[page of r, n, r mod 16]      p: the part that column n belongs to
    y[i, n] += d[i, n]                                                      plain adapters
    y[i, n] += (gain[n] - 1) (y[i, n] - bias[n]) + gain[n] (d[i, n] + shift[n])      with DoRA or a bias of B

`h` is what `lora_shrink` returned: its splits are added in order and rounded to the dtype of `b`. Sums over ranks are
f32, from the first page to the last; y is rounded once. Rows without an adapter, and parts that an adapter leaves
alone, are neither read nor written. `lora_slots` has the layout.
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
    """Columns of y per program, warps, stages."""

    columns: int
    warps: int
    stages: int


# Chosen by the compile check and by reasoning; not yet measured on a GPU.
# Keys: rows of a tile, compute capability from.
CONFIGS: dict[int, dict[int, Config]] = {
    FEW: {8: Config(128, 4, 2)},
    MANY: {8: Config(64, 4, 2), 10: Config(128, 4, 2)},
}
FLOAT32 = Config(64, 4, 1)
"""float32 is for tests."""


def config_for(width: int, major: int) -> Config:
    """The configuration for tiles of `width` rows on a device of compute capability `major`."""
    table = CONFIGS[width]
    return table[max(version for version in table if version <= max(major, 8))]


def _config(tiles: LoraTiles, b: torch.Tensor) -> Config:
    width = tiles.rows.shape[1]
    if b.dtype == torch.float32:
        return FLOAT32
    found = None if tiles.deterministic else lookup("lora_expand", str(width), b.device)
    if found is not None and len(found) == len(Config._fields):
        return Config(*found)
    return config_for(width, capability(b.device)[0])


@triton.jit(do_not_specialize=["chunks", "positions"])
def lora_expand_kernel(
    h_ptr,
    b_ptr,
    y_ptr,
    bias_ptr,
    rows_ptr,
    slots_ptr,
    pages_ptr,
    ranks_ptr,
    scales_ptr,
    extras_ptr,
    gains_ptr,
    shifts_ptr,
    N,
    width_0,
    width_1,
    y_stride,
    chunks,
    page_stride,
    positions,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One program: a tile and BLOCK_N columns of one part."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    slot = tl.load(slots_ptr + tile)
    if slot < 0:
        return
    # The part of this block of columns, where it begins and where the part ends.
    part = 0
    column_0 = block * BLOCK_N
    end = width_0
    if PARTS > 1:
        blocks_0 = tl.cdiv(width_0, BLOCK_N)
        if block >= blocks_0:
            part = 1
            column_0 = width_0 + (block - blocks_0) * BLOCK_N
            end = width_0 + width_1
        if PARTS > 2:
            blocks_1 = blocks_0 + tl.cdiv(width_1, BLOCK_N)
            if block >= blocks_1:
                part = 2
                column_0 = width_0 + width_1 + (block - blocks_1) * BLOCK_N
                end = N
    own = slot * PARTS + part
    rank = tl.load(ranks_ptr + own)
    if rank == 0:
        return
    line = tl.arange(0, BLOCK_M)
    row = tl.load(rows_ptr + tile * BLOCK_M + line)
    column = column_0 + tl.arange(0, BLOCK_N)
    inside = column < end
    inner = tl.arange(0, PAGE)
    h_row = h_ptr + ((tile * BLOCK_M + line).to(tl.int64) * PARTS + part)[:, None] * (chunks * PAGE) + inner[None, :]
    split_stride = positions.to(tl.int64) * PARTS * (chunks * PAGE)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for chunk in tl.range(0, tl.cdiv(rank, PAGE)):
        page = tl.load(pages_ptr + slot * page_stride + chunk).to(tl.int64)
        h = tl.load(h_row + chunk * PAGE)
        for split in tl.static_range(1, SPLITS):
            h += tl.load(h_row + split * split_stride + chunk * PAGE)
        at = (page * N + column)[None, :] * PAGE + inner[:, None]
        b = tl.load(b_ptr + at, mask=inside[None, :], other=0.0)
        acc = tl.dot(h.to(b.dtype), b, acc, input_precision=PRECISION)
    delta = acc * tl.load(scales_ptr + own)
    live = (row >= 0)[:, None] & inside[None, :]
    to = y_ptr + tl.maximum(row, 0).to(tl.int64)[:, None] * y_stride + column[None, :]
    y = tl.load(to, mask=live, other=0.0).to(tl.float32)
    if tl.load(extras_ptr + own) != 0:
        from_column = slot.to(tl.int64) * N + column
        gain = tl.load(gains_ptr + from_column, mask=inside, other=1.0)[None, :]
        shift = tl.load(shifts_ptr + from_column, mask=inside, other=0.0)[None, :]
        base = y
        if BIAS:
            base = y - tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        delta = (gain - 1.0) * base + gain * (delta + shift)
    tl.store(to, (y + delta).to(y_ptr.dtype.element_ty), mask=live)


def lora_expand(
    h: torch.Tensor, site: LoraSite, tiles: LoraTiles, y: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`y` `[T, N]` bf16, f16 or f32, rows at any distance, updated in place and returned.

    `h`: what `lora_shrink` returned for the same site and tiles. `bias` `[N]`: what the projection added to y, of any
    float dtype; DoRA does not scale it.
    """
    check_device(h=h, b=site.b, y=y, bias=bias, rows=tiles.rows)
    check_tiles(tiles, site)
    parts, columns = len(site.widths), sum(site.widths)
    count, width = tiles.rows.shape
    check_tensor(
        "h", h, dtypes=(torch.float32,), shape=(None, count * width, parts, tiles.chunks * PAGE), contiguous=True
    )
    check(h.shape[0] > 0, "h has no splits")
    check_tensor("y", y, dtypes=FLOATS, shape=(None, columns))
    if bias is not None:
        check_tensor("bias", bias, dtypes=FLOATS, shape=(columns,))
    config = _config(tiles, site.b)
    arguments = {
        "h_ptr": h,
        "b_ptr": site.b,
        "y_ptr": y,
        "bias_ptr": bias,
        "rows_ptr": tiles.rows,
        "slots_ptr": tiles.slots,
        "pages_ptr": site.pages,
        "ranks_ptr": site.ranks,
        "scales_ptr": site.scales,
        "extras_ptr": site.extras,
        "gains_ptr": site.gains,
        "shifts_ptr": site.shifts,
        "N": columns,
        "width_0": site.widths[0],
        "width_1": site.widths[1] if parts > 1 else 0,
        "y_stride": y.stride(0),
        "chunks": tiles.chunks,
        "page_stride": site.pages.stride(0),
        "positions": count * width,
    }
    constants = {
        "PARTS": parts,
        "SPLITS": h.shape[0],
        "BIAS": bias is not None,
        "PRECISION": "ieee" if site.b.dtype == torch.float32 else "tf32",
        "BLOCK_M": width,
        "BLOCK_N": config.columns,
        "PAGE": PAGE,
    }
    grid = (count, sum(ceil_div(w, config.columns) for w in site.widths))
    launch(lora_expand_kernel, grid, arguments, constants, Options(config.warps, config.stages))
    return y


def lora_expand_ref(
    h: torch.Tensor, site: LoraSite, tiles: LoraTiles, y: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The formula of the module in f64, y rounded once."""
    summed = h[0].clone()
    for split in h[1:]:
        summed += split
    summed = summed.to(site.b.dtype).double()
    pages, ranks, extras, scales = (t.tolist() for t in (site.pages, site.ranks, site.extras, site.scales))
    width = tiles.rows.shape[1]
    for t, slot in enumerate(tiles.slots.tolist()):
        if slot < 0:
            continue
        live = tiles.rows[t] >= 0
        rows, place = tiles.rows[t][live].long(), torch.arange(t * width, (t + 1) * width, device=y.device)[live]
        start = 0
        for part, columns in enumerate(site.widths):
            here, rank = slice(start, start + columns), ranks[slot][part]
            start += columns
            if rank == 0:
                continue
            chosen = pages[slot][: ceil_div(rank, PAGE)]
            b = site.b[chosen, here].double().permute(1, 0, 2).flatten(1)
            delta = summed[place, part, : b.shape[1]] @ b.t() * scales[slot][part]
            old = y[rows, here].double()
            if extras[slot][part]:
                gain, shift = site.gains[slot, here].double(), site.shifts[slot, here].double()
                base = old if bias is None else old - bias[here].double()
                delta = (gain - 1) * base + gain * (delta + shift)
            y[rows, here] = (old + delta).to(y.dtype)
    return y
