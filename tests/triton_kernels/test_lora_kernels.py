"""Shrink and expand against their references, and against y += scale * B (A x) row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.launch import record
from octavo.triton_kernels.lora_expand import lora_expand, lora_expand_ref
from octavo.triton_kernels.lora_shrink import lora_shrink, lora_shrink_ref, splits_of
from octavo.triton_kernels.lora_slots import (
    FEW,
    MANY,
    PAGE,
    LoraSite,
    LoraTiles,
    make_tiles,
    max_tiles,
    tile_rows,
    tiles_of,
)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Part:
    """One adapter's A `[r, K]`, B `[n, r]` and the rest, for one part of a projection."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None


Slot = Sequence[Part | None]


def part_of(rank: int, columns: int, depth: int, generator: torch.Generator, extra: bool = False) -> Part | None:
    if rank == 0:
        return None

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    more = (1 + 0.2 * draw(columns), draw(columns)) if extra else ()
    return Part(draw(rank, depth) / depth**0.5, draw(columns, rank) / rank**0.5, 0.25 + 0.5 * rank / 64, *more)


def site_of(
    slots: Sequence[Slot], widths: Sequence[int], depth: int, dtype: torch.dtype, device: torch.device
) -> LoraSite:
    """The adapters in pages that lie in no order, between pages of rubbish."""
    counts = [max(-(-len(p.a) // PAGE) if p else 0 for p in slot) for slot in slots]
    chunks, free = max(1, *counts), list(range(2 * sum(counts) + 1))[::-2]
    table = torch.full((len(slots), chunks), -1, dtype=torch.int32)
    site = LoraSite.empty(table, 2 * sum(counts) + 1, depth, widths, dtype)
    site.a.fill_(torch.nan)
    site.b.fill_(torch.nan)
    starts = [sum(widths[:p]) for p in range(len(widths))]
    for s, slot in enumerate(slots):
        for chunk in range(counts[s]):
            table[s, chunk] = page = free.pop()
            site.a[page], site.b[page] = 0, 0
            for p, part in enumerate(slot):
                if part is not None:
                    ranks = slice(chunk * PAGE, chunk * PAGE + PAGE)
                    count = len(part.a[ranks])
                    site.a[page, p, :count] = part.a[ranks].to(dtype)
                    site.b[page, starts[p] : starts[p] + widths[p], :count] = part.b[:, ranks].to(dtype)
        for p, part in enumerate(slot):
            if part is not None:
                site.ranks[s, p], site.scales[s, p] = len(part.a), part.scale
                if part.gain is not None:
                    site.extras[s, p] = 1
                    here = slice(starts[p], starts[p] + widths[p])
                    site.gains[s, here], site.shifts[s, here] = part.gain, part.shift
    moved = {k: v.to(device) for k, v in vars(site).items() if isinstance(v, torch.Tensor)}
    return replace(site, **moved)


def expected(
    x: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None,
    slots: Sequence[Slot],
    row_slots: Sequence[int],
    widths: Sequence[int],
) -> torch.Tensor:
    """Row by row in f64, from the adapters themselves."""
    out = y.double().cpu()
    base = out if bias is None else out - bias.double().cpu()
    for i, slot in enumerate(row_slots):
        if slot < 0:
            continue
        start = 0
        for n, part in zip(widths, slots[slot], strict=True):
            here = slice(start, start + n)
            start += n
            if part is None:
                continue
            h = x[i].double().cpu() @ part.a.to(x.dtype).double().t()
            d = part.scale * (part.b.to(x.dtype).double() @ h)
            if part.gain is not None and part.shift is not None:
                d = (part.gain.double() - 1) * base[i, here] + part.gain.double() * (d + part.shift.double())
            out[i, here] = out[i, here] + d
    return out


def run(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, site: LoraSite, tiles: LoraTiles) -> torch.Tensor:
    """Both kernels, each compared with its reference; the result on a copy of y."""
    h = lora_shrink(x, site, tiles)
    wanted = lora_shrink_ref(x, site, tiles)
    defined = torch.zeros_like(wanted[0], dtype=torch.bool)
    width = tiles.rows.shape[1]
    for t, slot in enumerate(tiles.slots.tolist()):
        for p, rank in enumerate(site.ranks[slot].tolist() if slot >= 0 else []):
            defined[t * width : (t + 1) * width, p, :rank] = True
    assert_close("h", h.sum(0)[defined], wanted[0][defined], 2e-6 if x.dtype == F32 else 1e-5)
    got = lora_expand(h, site, tiles, y.clone(), bias)
    assert_close("y", got, lora_expand_ref(h, site, tiles, y.clone(), bias))
    return got


@pytest.mark.parametrize("width", [FEW, MANY])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_ragged_ranks_in_one_call(
    dtype: torch.dtype, width: int, device: torch.device, generator: torch.Generator
) -> None:
    """Three parts, odd ranks, parts left alone, DoRA and the bias of B in one slot, rows without an adapter."""
    widths, depth, count = (70, 40, 40), 136, 45
    ranks = [(16, 0, 5), (33, 8, 8), (1, 17, 0)]
    slots = [
        [part_of(r, n, depth, generator, extra=s == 1) for r, n in zip(rs, widths, strict=True)]
        for s, rs in enumerate(ranks)
    ]
    site = site_of(slots, widths, depth, dtype, device)
    row_slots = torch.randint(-1, 3, (count,), generator=generator).tolist()
    x = torch.randn(count, 2 * depth, generator=generator).to(device, dtype)[:, :depth]
    y = torch.randn(count, 200, generator=generator).to(device, dtype)[:, : sum(widths)]
    bias = torch.randn(sum(widths), generator=generator).to(device, dtype)
    for b in (None, bias):
        got = run(x, y, b, site, tiles_of(row_slots, width, 33, device))
        assert_close("y", got.double(), expected(x, y, b, slots, row_slots, widths), 2e-6 if dtype == F32 else 1e-2)
        alone = torch.tensor(row_slots) < 0
        assert alone.any()
        assert torch.equal(got[alone], y[alone]), "rows without an adapter keep every bit"
        assert torch.equal(got[torch.tensor(row_slots) == 0, 70:110], y[torch.tensor(row_slots) == 0, 70:110])


def test_a_split_depth(device: torch.device, generator: torch.Generator) -> None:
    depth = 3 * 1024 + 40
    assert [splits_of(k) for k in (64, 1024, 2048, depth, 1 << 20)] == [1, 1, 2, 3, 8]
    slots = [[part_of(20, 48, depth, generator)]]
    site = site_of(slots, [48], depth, F32, device)
    x, y = torch.randn(3, depth, generator=generator).to(device), torch.randn(3, 48, generator=generator).to(device)
    got = run(x, y, None, site, tiles_of([0, -1, 0], FEW, 20, device))
    assert_close("y", got.double(), expected(x, y, None, slots, [0, -1, 0], [48]), 2e-6)


def test_a_row_has_the_same_bits_in_any_batch(device: torch.device, generator: torch.Generator) -> None:
    """Beside other rows and other adapters, in another place, with room for larger ranks."""
    depth, widths = 2100, (40, 24)
    slots = [[part_of(r, n, depth, generator, r == 9) for n in widths] for r in (9, 40, 16)]
    site = site_of(slots, widths, depth, BF16, device)
    x, y = (torch.randn(40, n, generator=generator).to(device, BF16) for n in (depth, sum(widths)))
    row_slots = [i % 4 - 1 for i in range(40)]
    tiles = tiles_of(row_slots, FEW, 40, device)
    whole = lora_expand(lora_shrink(x, site, tiles), site, tiles, y.clone())
    for i in (1, 2, 3, 21, 38, 39):
        own = tiles_of(row_slots[i : i + 1], FEW, 16 if row_slots[i] != 1 else 48, device)
        alone = lora_expand(lora_shrink(x[i : i + 1], site, own), site, own, y[i : i + 1].clone())
        assert torch.equal(alone[0], whole[i])


def test_empty_tiles_do_nothing(device: torch.device, generator: torch.Generator) -> None:
    """A CUDA graph holds the most tiles that its size may need: most steps need fewer."""
    slots = [[part_of(4, 40, 64, generator)], [part_of(7, 40, 64, generator)]]
    site = site_of(slots, [40], 64, F32, device)
    x, y = torch.randn(8, 64, generator=generator).to(device), torch.randn(8, 40, generator=generator).to(device)
    tiles = tiles_of([1, -1, 0, 0, 1, -1, -1, -1], FEW, 7, device)
    room = max_tiles(8, 8, FEW)
    padded = LoraTiles(
        torch.full((room, FEW), -1, dtype=torch.int32, device=device),
        torch.full((room,), -1, dtype=torch.int32, device=device),
        max_rank=PAGE,
    )
    padded.rows[:2], padded.slots[:2] = tiles.rows, tiles.slots
    assert torch.equal(run(x, y, None, site, padded), run(x, y, None, site, tiles))
    nothing = tiles_of([-1] * 8, FEW, 7, device)
    assert len(nothing.slots) == 0
    assert torch.equal(run(x, y, None, site, nothing), y)


def test_tiles_hold_each_row_once(generator: torch.Generator) -> None:
    for width in (FEW, MANY):
        for count, adapters in [(1, 1), (5, 3), (64, 8), (64, 1), (200, 70), (33, 2)]:
            row_slots = torch.randint(-1, adapters, (count,), generator=generator).numpy().astype(np.int32)
            rows, slots = make_tiles(row_slots, width)
            assert rows.dtype == slots.dtype == np.int32
            assert len(rows) == len(slots) <= max_tiles(count, adapters, width)
            assert sorted(rows[rows >= 0].tolist()) == np.flatnonzero(row_slots >= 0).tolist()
            for line, slot in zip(rows, slots, strict=True):
                assert (row_slots[line[line >= 0]] == slot).all()
    assert (tile_rows(1), tile_rows(256), tile_rows(257), tile_rows(8192, True)) == (FEW, FEW, MANY, FEW)
    worst = [i % 8 for i in range(64)]
    assert len(make_tiles(np.array(worst, np.int32), FEW)[0]) == 8
    assert max_tiles(64, 8, FEW) == 11
    assert max_tiles(3, 8, FEW) == 3


def test_graphs_and_steps_share_one_variant(device: torch.device) -> None:
    """The rank, the number of tiles and the content of slots are data: nothing is compiled when adapters come."""
    site = LoraSite.empty(torch.zeros(4, 16, dtype=torch.int32, device="meta"), 4, 4096, [4096, 1024, 1024], BF16)
    found = []
    for count, rank in [(1, 16), (11, 256)]:
        tiles = LoraTiles(
            torch.empty(count, FEW, dtype=torch.int32, device="meta"),
            torch.empty(count, dtype=torch.int32, device="meta"),
            rank,
        )
        x, y = (torch.empty(64, n, dtype=BF16, device="meta") for n in (4096, 6144))
        with record((9, 0)) as launches:
            lora_expand(lora_shrink(x, site, tiles), site, tiles, y)
        found.append([(launch.kernel, launch.constants, launch.options) for launch in launches])
    assert found[0] == found[1]


def test_faults_are_named(device: torch.device, generator: torch.Generator) -> None:
    site = site_of([[part_of(4, 40, 64, generator)]], [40], 64, F32, device)
    tiles = tiles_of([0, 0], FEW, 4, device)
    x, y = torch.ones(2, 64, device=device), torch.ones(2, 40, device=device)
    with pytest.raises(ValueError, match=r"x has shape \[2, 63\], wanted \[any, 64\]"):
        lora_shrink(x[:, :63], site, tiles)
    with pytest.raises(ValueError, match=r"x has dtype torch\.bfloat16, a has torch\.float32"):
        lora_shrink(x.to(BF16), site, tiles)
    with pytest.raises(ValueError, match="max_rank is 17, the page table has room for 16"):
        lora_shrink(x, site, replace(tiles, max_rank=17))
    with pytest.raises(ValueError, match="rows has 15 columns, wanted 16 or 64"):
        lora_shrink(x, site, replace(tiles, rows=tiles.rows[:, :15].contiguous()))
    h = lora_shrink(x, site, tiles)
    with pytest.raises(ValueError, match=r"y has shape \[2, 39\], wanted \[any, 40\]"):
        lora_expand(h, site, tiles, y[:, :39])
    with pytest.raises(ValueError, match=r"h has shape \[1, 16, 1, 16\], wanted \[any, 32, 1, 16\]"):
        lora_expand(h, site, tiles_of([0] * 20, FEW, 4, device), y)
    with pytest.raises(ValueError, match=r"bias has shape \[2\], wanted \[40\]"):
        lora_expand(h, site, tiles, y, y[:, 0].contiguous())
    with pytest.raises(ValueError, match="widths has 4 parts, wanted 1 to 3"):
        replace(site, widths=(10, 10, 10, 10))
    with pytest.raises(TypeError, match="ranks has dtype int64, wanted int32"):
        replace(site, ranks=site.ranks.long())
