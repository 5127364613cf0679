"""Paged attention over ragged batches, both cache forms, against the formula."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.block_ops import quantize_blocks_ref
from octavo.triton_kernels.kv_cache import FloatKV, Int8KV, PagedKV
from octavo.triton_kernels.paged_attention import paged_attention, paged_attention_ref

# The package's attribute of this name is the function.
module = sys.modules[paged_attention.__module__]

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Probabilities and (of int8 blocks) keys are rounded to the dtype before their products."""


class Batch(NamedTuple):
    q: torch.Tensor
    kv: PagedKV
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor


def batch(
    lengths: list[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    int8: bool,
    device: torch.device,
    generator: torch.Generator,
) -> Batch:
    """Sequences of (queries, context) over shuffled blocks; places that no sequence owns hold NaN."""
    counts = [-(-context // 32) for _, context in lengths]
    blocks = sum(counts) + 2
    order = torch.randperm(blocks, generator=generator)
    tables = torch.full((len(lengths), max(counts) + 1), -1, dtype=torch.int32)
    at = 0
    for s, count in enumerate(counts):
        tables[s, :count] = order[at : at + count]
        at += count
    k, v = (torch.randn(blocks, kv_heads, 32, head_dim, generator=generator) for _ in range(2))
    k += torch.randn(head_dim, generator=generator) * 2
    for s, (_, context) in enumerate(lengths):
        if context % 32:
            k[tables[s, counts[s] - 1], :, context % 32 :] = v[tables[s, counts[s] - 1], :, context % 32 :] = torch.nan
    if int8:
        # Every block has an open block and, where it is full, its int8 form: each query must choose by its position.
        open_block_of = torch.randperm(blocks, generator=generator).to(torch.int32)
        kv: PagedKV = Int8KV.empty(blocks, blocks, kv_heads, head_dim, dtype, device, open_block_of.to(device))
        kv.open_k[open_block_of.long()] = k.to(device, dtype)
        kv.open_v[open_block_of.long()] = v.to(device, dtype)
        quantize_blocks_ref(kv, torch.arange(blocks))
        # What is read as int8 and from the open block must not be the same, or a wrong choice would go unseen.
        kv.open_v.mul_(1.5)
    else:
        kv = FloatKV(k.to(device, dtype), v.to(device, dtype))
    starts = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).to(device, torch.int32)
    q = torch.randn(int(starts[-1]), heads + 2, head_dim, generator=generator).to(device, dtype)[:, :heads]
    contexts = torch.tensor([c for _, c in lengths], dtype=torch.int32, device=device)
    return Batch(q, kv, tables.to(device), starts, contexts)


RAGGED = [(1, 1), (5, 37), (40, 40), (1, 100), (9, 64), (0, 40)]
MODELS = [
    # heads, kv_heads, head_dim, dtype
    (4, 1, 64, torch.bfloat16),
    (3, 1, 80, torch.float32),
    (7, 1, 32, torch.float16),
    (8, 1, 128, torch.bfloat16),
    (2, 2, 16, torch.float32),
    (5, 1, 40, torch.bfloat16),
    (2, 1, 256, torch.float16),
]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "dtype"), MODELS)
def test_ragged_batches(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    int8: bool,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    b = batch(
        RAGGED,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        int8=int8,
        device=device,
        generator=generator,
    )
    scale = head_dim**-0.5
    assert_close("out", paged_attention(*b, scale=scale), paged_attention_ref(*b, scale=scale), TOLERANCE[dtype])


@pytest.fixture(params=[False, True], ids=["float", "int8"])
def small(request: pytest.FixtureRequest, device: torch.device, generator: torch.Generator) -> Batch:
    """Decodes, then chunks, of two KV heads in float32, where only the order of sums may differ."""
    lengths = [(1, 170), (1, 33), (1, 0), (1, 64), (1, 97), (20, 80), (3, 3)]
    return batch(
        lengths,
        heads=6,
        kv_heads=2,
        head_dim=32,
        dtype=torch.float32,
        int8=request.param,
        device=device,
        generator=generator,
    )


@pytest.mark.parametrize(("decodes", "splits"), [(5, None), (2, 3), (5, 7), (0, 2)])
def test_decode_kernel_and_splits(small: Batch, decodes: int, splits: int | None) -> None:
    wanted = paged_attention_ref(*small, scale=0.2)
    found = paged_attention(*small, scale=0.2, num_decodes=decodes, num_splits=splits, max_query_len=40)
    assert_close("out", found, wanted, 1e-5)
    assert found[2].eq(0).all(), "an empty sequence gives zeros"


@pytest.mark.parametrize(("window", "decodes"), [(1, 5), (20, 0), (64, 5)])
def test_sliding_window(small: Batch, window: int, decodes: int) -> None:
    wanted = paged_attention_ref(*small, scale=0.2, window=window)
    found = paged_attention(*small, scale=0.2, window=window, num_decodes=decodes, num_splits=1 + decodes // 3)
    assert_close("out", found, wanted, 1e-5)


def test_soft_cap(small: Batch) -> None:
    wanted = paged_attention_ref(*small, scale=2.0, softcap=3.0)
    assert (wanted - paged_attention_ref(*small, scale=2.0)).abs().max() > 0.1, "the cap does nothing here"
    found = paged_attention(*small, scale=2.0, softcap=3.0, num_decodes=5)
    assert_close("out", found, wanted, 1e-5)


@pytest.mark.parametrize("decodes", [0, 5])
def test_selected_blocks(small: Batch, decodes: int, generator: torch.Generator) -> None:
    sequences, blocks = small.block_tables.shape
    chosen = torch.zeros(sequences, 2, blocks, dtype=torch.int32)
    counts = torch.zeros(sequences, 2, dtype=torch.int32)
    for s, context in enumerate(small.context_lens.tolist()):
        for h in range(2):
            # Also blocks at and after the queries' own: these must not count twice.
            mine = torch.nonzero(torch.rand(-(-context // 32), generator=generator) < 0.5).flatten()
            chosen[s, h, : len(mine)] = mine
            counts[s, h] = len(mine)
    device = small.q.device
    selected = (chosen.to(device), counts.to(device))
    wanted = paged_attention_ref(*small, scale=0.2, selected=selected)
    for splits in (1, 3):
        found = paged_attention(*small, scale=0.2, selected=selected, num_decodes=decodes, num_splits=splits)
        assert_close("out", found, wanted, 1e-5)


def test_all_blocks_selected_is_dense(small: Batch) -> None:
    sequences, blocks = small.block_tables.shape
    every = torch.arange(blocks, dtype=torch.int32, device=small.q.device).expand(sequences, 2, blocks).contiguous()
    counts = ((small.context_lens + 31) // 32)[:, None].expand(sequences, 2).contiguous()
    found = paged_attention(*small, scale=0.2, selected=(every, counts))
    assert_close("out", found, paged_attention(*small, scale=0.2), 1e-5)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("window", [None, 50])
def test_deterministic_rows_do_not_depend_on_the_batch(
    int8: bool, window: int | None, device: torch.device, generator: torch.Generator
) -> None:
    b = batch(
        [(150, 150), (20, 70)],
        heads=4,
        kv_heads=1,
        head_dim=64,
        dtype=torch.bfloat16,
        int8=int8,
        device=device,
        generator=generator,
    )
    options = {"scale": 0.125, "window": window, "deterministic": True}
    whole = paged_attention(*b, **options)
    # The same queries as chunks of 37 and as a decode.
    for begin, end in [(0, 37), (111, 148), (149, 150)]:
        q_start = torch.tensor([0, end - begin], dtype=torch.int32, device=device)
        context = torch.tensor([end], dtype=torch.int32, device=device)
        part = paged_attention(b.q[begin:end], b.kv, b.block_tables[:1], q_start, context, **options)
        assert torch.equal(part, whole[begin:end]), f"queries {begin} to {end} have other bits"


def test_an_out_tensor_is_filled(small: Batch) -> None:
    out = torch.empty(small.q.shape[0], 6, 40, device=small.q.device)[:, :, :32]
    assert paged_attention(*small, scale=0.2, out=out) is out
    assert_close("out", out, paged_attention_ref(*small, scale=0.2), 1e-5)


def test_splits_fill_the_device(small: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processors", lambda device: 132)
    assert module._splits(small.q, small.kv, 1, 131072, None) == 64
    assert module._splits(small.q, small.kv, 32, 8192, None) == 5
    assert module._splits(small.q, small.kv, 200, 8192, None) == 1
    assert module._splits(small.q, small.kv, 1, 8192, 1024) == 4
    assert module._splits(small.q, small.kv, 1, 100, None) == 1


def test_faults_are_named(small: Batch) -> None:
    q, kv, tables, starts, contexts = small
    with pytest.raises(ValueError, match="5 query heads over 2 KV heads"):
        paged_attention(q[:, :5], kv, tables, starts, contexts, scale=1.0)
    with pytest.raises(ValueError, match="cast q"):
        paged_attention(q.half(), kv, tables, starts, contexts, scale=1.0)
    with pytest.raises(ValueError, match=r"query_start has shape \[7\], wanted \[8\]"):
        paged_attention(q, kv, tables, starts[:-1], contexts, scale=1.0)
    with pytest.raises(TypeError, match="block_tables has dtype int64"):
        paged_attention(q, kv, tables.long(), starts, contexts, scale=1.0)
    with pytest.raises(ValueError, match="window is 0"):
        paged_attention(q, kv, tables, starts, contexts, scale=1.0, window=0)
    with pytest.raises(ValueError, match="softcap is -1"):
        paged_attention(q, kv, tables, starts, contexts, scale=1.0, softcap=-1.0)
    with pytest.raises(ValueError, match="num_decodes is 8"):
        paged_attention(q, kv, tables, starts, contexts, scale=1.0, num_decodes=8)
    with pytest.raises(ValueError, match="num_splits is 65"):
        paged_attention(q, kv, tables, starts, contexts, scale=1.0, num_splits=65)
    with pytest.raises(ValueError, match="one split"):
        paged_attention(q, kv, tables, starts, contexts, scale=1.0, num_splits=2, deterministic=True)
    with pytest.raises(ValueError, match=r"q has shape \[28, 6, 16\]"):
        paged_attention(q[..., :16], kv, tables, starts, contexts, scale=1.0)
