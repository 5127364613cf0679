"""Attention of a ragged batch over the paged cache: prefill chunks and decodes, float and int8 blocks.

    out[t, h] = sum over keys i <= p of softmax(f(scale * q[t, h] . k[i])) v[i]      p: the position of token t

f(s) = softcap * tanh(s / softcap) with a soft cap, else s. With a window only keys i > p - window count. All query
heads of a KV head are rows of one tile, which reads each block once: G heads and n queries are G * n rows (BLOCK_M).
The softmax is online, in f32, in powers of two, as in FlashAttention:

    qk = q k^T        m_new = max(m_i, max qk)        alpha = 2^(m_i - m_new)
    l_i = l_i alpha + sum 2^(qk - m_new)              acc = acc alpha + 2^(qk - m_new) v

Over an int8 cache a query reads earlier blocks as int8, and then the current block from its open block. With a list of
selected blocks it reads the earlier blocks of the list, and then the current block.

Long contexts of few sequences are split over programs (flash decoding); a second kernel combines the parts in a fixed
order. `deterministic=True` uses one configuration without splits. It is batch-invariant: the bits of a row depend on
its own query and keys only, for any batch and any chunks of the prompt.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .attention_kernels import combine_splits_kernel, paged_attention_kernel
from .kv_cache import BLOCK_SIZE, Int8KV, PagedKV, gather_keys_values
from .launch import (
    FLOATS,
    Options,
    capability,
    ceil_div,
    check,
    check_device,
    check_tensor,
    launch,
    power_of_two,
    processors,
)
from .tuned import lookup

MAX_SPLITS = 64
MIN_KEYS_PER_SPLIT = 256
"""Below this the second kernel costs more than the split gains."""


class Config(NamedTuple):
    """Rows of a tile, blocks read per step, warps, pipeline stages."""

    rows: int
    pages: int
    warps: int
    stages: int


# Chosen by the compile check (registers, shared memory) and by reasoning; not yet measured on a GPU.
# Keys: (form, phase, head_dim up to). Decode's rows are what the group needs, at least 16.
CONFIGS: dict[tuple[str, str, int], Config] = {
    ("half", "decode", 128): Config(16, 2, 4, 3),
    ("half", "decode", 256): Config(16, 2, 4, 2),
    ("half", "prefill", 64): Config(128, 2, 4, 3),
    ("half", "prefill", 128): Config(128, 2, 8, 2),
    ("half", "prefill", 256): Config(64, 1, 8, 2),
    ("float32", "decode", 128): Config(16, 1, 8, 2),
    ("float32", "decode", 256): Config(16, 1, 8, 1),
    ("float32", "prefill", 128): Config(16, 1, 8, 1),
    ("float32", "prefill", 256): Config(16, 1, 8, 1),
    ("int8", "decode", 128): Config(16, 2, 4, 2),
    ("int8", "decode", 256): Config(16, 1, 8, 2),
    ("int8", "prefill", 128): Config(64, 2, 4, 2),
    ("int8", "prefill", 256): Config(32, 1, 8, 1),
}
# Before sm_90 there is no wgmma: accumulators and operands share the registers.
CONFIGS_WITHOUT_WGMMA: dict[tuple[str, str, int], Config] = {
    ("half", "prefill", 64): Config(128, 2, 8, 3),
    ("half", "prefill", 128): Config(128, 1, 8, 2),
    ("int8", "prefill", 128): Config(64, 2, 8, 2),
}
# From sm_100 on accumulators lie in tensor memory, and are copied to registers to be rescaled.
CONFIGS_WITH_TENSOR_MEMORY: dict[tuple[str, str, int], Config] = {
    ("half", "prefill", 64): Config(128, 2, 8, 3),
}


def paged_attention(
    q: torch.Tensor,
    kv: PagedKV,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    num_decodes: int = 0,
    max_query_len: int | None = None,
    max_context_len: int | None = None,
    num_splits: int | None = None,
    deterministic: bool = False,
    selected: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of `q` `[T, H, D]` over the cache, `[T, H, D]` in q's dtype (the cache's).

    Sequence s has the queries query_start[s] .. query_start[s + 1] - 1, the last of its context_lens[s] tokens, whose
    blocks block_tables[s] names. All index tensors are int32: `block_tables` `[S, blocks]`, `query_start` `[S + 1]`,
    `context_lens` `[S]` (0: a padding row, its output is zero). The first `num_decodes` sequences have one query each,
    query s for sequence s. `max_query_len` and `max_context_len`, known to the caller on the host, only choose the
    configuration. `selected` is (logical blocks int32 `[S, KV heads, capacity]`, ascending, no repeats; counts int32
    `[S, KV heads]`). Nothing is read on the host, so the call can be captured in a CUDA graph.
    """
    check_device(q=q, v=kv.v, block_tables=block_tables, query_start=query_start, context_lens=context_lens, out=out)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _check(q, kv, block_tables, query_start, context_lens, out, window, softcap, num_decodes, selected)
    tokens, sequences = q.shape[0], context_lens.shape[0]
    if num_splits is not None:
        check(1 <= num_splits <= MAX_SPLITS, f"num_splits is {num_splits}, wanted 1 to {MAX_SPLITS}")
    batch = _Batch(q, kv, block_tables, query_start, context_lens, out, scale, window, softcap, selected)
    longest = block_tables.shape[1] * BLOCK_SIZE
    longest = longest if max_context_len is None else min(longest, max_context_len)
    if deterministic:
        check(num_splits in (None, 1), "deterministic attention has one split: leave num_splits out")
        _run(batch, "prefill", 0, sequences, tokens, 1, deterministic=True)
        return out
    if num_decodes:
        _run(batch, "decode", 0, num_decodes, num_decodes, num_splits or _splits(q, kv, num_decodes, longest, window))
    rest = tokens - num_decodes
    if rest:
        # Chunks of a single tile read little more than decodes do: they are split as well.
        small = max_query_len is not None and max_query_len * (q.shape[1] // kv.kv_heads) <= 64
        splits = num_splits or (_splits(q, kv, sequences - num_decodes, longest, window) if small else 1)
        _run(batch, "prefill", num_decodes, sequences - num_decodes, rest, splits)
    return out


class _Batch(NamedTuple):
    q: torch.Tensor
    kv: PagedKV
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    out: torch.Tensor
    scale: float
    window: int | None
    softcap: float | None
    selected: tuple[torch.Tensor, torch.Tensor] | None


def _splits(q: torch.Tensor, kv: PagedKV, sequences: int, longest: int, window: int | None) -> int:
    """Enough parts to fill the device twice, none shorter than MIN_KEYS_PER_SPLIT."""
    if window is not None:
        longest = min(longest, window + BLOCK_SIZE)
    wanted = ceil_div(2 * processors(q.device), max(1, sequences * kv.kv_heads))
    return max(1, min(wanted, longest // MIN_KEYS_PER_SPLIT, MAX_SPLITS))


def config_for(kv: PagedKV, phase: str) -> tuple[Config, str]:
    """The default configuration of a cache form and phase ("decode" or "prefill"), and its key in tuned tables."""
    form = "int8" if isinstance(kv, Int8KV) else "half"
    if kv.dtype == torch.float32:
        form = "float32"
    limits = sorted(limit for f, p, limit in CONFIGS if (f, p) == (form, phase))
    limit = next(limit for limit in limits if kv.head_dim <= limit)
    key = form, phase, limit
    major = capability(kv.device)[0]
    of_device = CONFIGS_WITHOUT_WGMMA if major < 9 else CONFIGS_WITH_TENSOR_MEMORY if major >= 10 else {}
    return of_device.get(key, CONFIGS[key]), f"{form} {phase} {limit}"


def _config(kv: PagedKV, phase: str, deterministic: bool) -> Config:
    """What was measured on this device, or the default."""
    config, key = config_for(kv, phase)
    found = None if deterministic else lookup("paged_attention", key, kv.device)
    return config if found is None or len(found) != len(Config._fields) else Config(*found)


def _run(
    batch: _Batch, phase: str, first: int, sequences: int, tokens: int, splits: int, deterministic: bool = False
) -> None:
    q, kv, out = batch.q, batch.kv, batch.out
    heads = q.shape[1]
    group = heads // kv.kv_heads
    config = _config(kv, phase, deterministic)
    rows = max(config.rows, power_of_two(group)) if phase == "prefill" else max(16, power_of_two(group))
    decode = phase == "decode"
    tiles = sequences if decode else tokens // (rows // group) + sequences
    parts = _partials(q, splits)
    log2e = math.log2(math.e)
    indices, counts = batch.selected or (None, None)
    arguments = {
        "q_ptr": q,
        "out_ptr": out,
        **parts,
        **kv.arguments(),
        "block_tables_ptr": batch.block_tables,
        "query_start_ptr": batch.query_start,
        "context_lens_ptr": batch.context_lens,
        "selected_ptr": indices,
        "selected_counts_ptr": counts,
        "factor": batch.scale / batch.softcap if batch.softcap else batch.scale * log2e,
        "cap": (batch.softcap or 0.0) * log2e,
        "window": batch.window or 0,
        "first_sequence": first,
        "sequences": sequences,
        "splits": splits,
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "out_token_stride": out.stride(0),
        "out_head_stride": out.stride(1),
        "table_stride": batch.block_tables.stride(0),
        "capacity": indices.shape[2] if indices is not None else 0,
    }
    constants = _constants(batch) | {"BLOCK_M": rows, "PAGES": config.pages, "DECODE": decode, "SPLIT": splits > 1}
    grid = (tiles, kv.kv_heads, splits)
    launch(paged_attention_kernel, grid, arguments, constants, Options(config.warps, config.stages))
    if splits > 1:
        # Rows of this phase only: the others have no parts here.
        arguments = {
            "out_ptr": out,
            **parts,
            "first_token": first,
            "splits": splits,
            "out_token_stride": out.stride(0),
            "out_head_stride": out.stride(1),
        }
        constants = {name: constants[name] for name in ("HEAD_DIM", "WIDTH")} | {"SPLITS": power_of_two(splits)}
        launch(combine_splits_kernel, (tokens, heads), arguments, constants, Options(4, 1))


def _constants(batch: _Batch) -> dict[str, object]:
    """Constants of `paged_attention_kernel` that the configuration does not change."""
    q, kv = batch.q, batch.kv
    return {
        "GROUP": q.shape[1] // kv.kv_heads,
        "KV_HEADS": kv.kv_heads,
        "HEAD_DIM": kv.head_dim,
        "WIDTH": max(16, power_of_two(kv.head_dim)),
        "HALF_WIDTH": max(16, power_of_two(kv.head_dim // 2)),
        "BLOCK_SIZE": BLOCK_SIZE,
        "INT8": isinstance(kv, Int8KV),
        "SELECTED": batch.selected is not None,
        "WINDOWED": batch.window is not None,
        "CAPPED": batch.softcap is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


def _partials(q: torch.Tensor, splits: int) -> dict[str, torch.Tensor | None]:
    """Kernel arguments for parts of a split context: acc `[T, H, splits, D]`, m and l `[T, H, splits]`, f32."""
    names = ("partial_ptr", "partial_m_ptr", "partial_sum_ptr")
    if splits == 1:
        return dict.fromkeys(names)
    # Indexed by token of the whole batch: a few rows stay unused if a batch has decodes and chunks.
    tokens, heads, head_dim = q.shape
    shapes = ((tokens, heads, splits, head_dim), (tokens, heads, splits), (tokens, heads, splits))
    tensors = (torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes)
    return dict(zip(names, tensors, strict=True))


def paged_attention_ref(
    q: torch.Tensor,
    kv: PagedKV,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selected: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The formula of the module in f32, query by query where the form of the keys differs."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    starts, contexts = query_start.tolist(), context_lens.tolist()
    group = q.shape[1] // kv.kv_heads
    for s, context in enumerate(contexts):
        length = min(starts[s + 1] - starts[s], context)
        for i in range(length):
            position = context - length + i
            current_block = position // BLOCK_SIZE
            k, v = gather_keys_values(kv, block_tables[s], position + 1, current_block * BLOCK_SIZE)
            at = torch.arange(position + 1, device=q.device)
            visible = torch.ones(kv.kv_heads, position + 1, dtype=torch.bool, device=q.device)
            if window is not None:
                visible &= at > position - window
            if selected is not None:
                for h in range(kv.kv_heads):
                    chosen = selected[0][s, h, : int(selected[1][s, h])]
                    visible[h] &= torch.isin(at // BLOCK_SIZE, chosen) | (at // BLOCK_SIZE == current_block)
            rows = q[starts[s] + i].float().view(kv.kv_heads, group, -1)
            scores = torch.einsum("hgd,nhd->hgn", rows, k) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
            out[starts[s] + i] = torch.einsum("hgn,nhd->hgd", weights, v).reshape(q.shape[1:])
    return out.to(q.dtype)


def _check(
    q: torch.Tensor,
    kv: PagedKV,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    window: int | None,
    softcap: float | None,
    num_decodes: int,
    selected: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    check_tensor("q", q, dtypes=FLOATS, shape=(None, None, kv.head_dim))
    check(q.dtype == kv.dtype, f"q is {q.dtype}, the cache's floats are {kv.dtype}: cast q")
    heads = q.shape[1]
    check(heads > 0 and heads % kv.kv_heads == 0, f"{heads} query heads over {kv.kv_heads} KV heads: wanted a multiple")
    check(heads // kv.kv_heads <= 128, f"{heads // kv.kv_heads} query heads share a KV head, wanted at most 128")
    index = (torch.int32,)
    check_tensor("context_lens", context_lens, dtypes=index, shape=(None,), contiguous=True)
    sequences = context_lens.shape[0]
    check_tensor("block_tables", block_tables, dtypes=index, shape=(sequences, None))
    check_tensor("query_start", query_start, dtypes=index, shape=(sequences + 1,), contiguous=True)
    check_tensor("out", out, dtypes=(q.dtype,), shape=tuple(q.shape))
    check(window is None or window > 0, f"window is {window}: wanted None or at least 1")
    check(softcap is None or softcap > 0, f"softcap is {softcap}: wanted None or a positive number")
    bound = min(sequences, q.shape[0])
    check(
        0 <= num_decodes <= bound, f"num_decodes is {num_decodes}, with {sequences} sequences and {q.shape[0]} queries"
    )
    if selected is not None:
        check_tensor("selected[0]", selected[0], dtypes=index, shape=(sequences, kv.kv_heads, None), contiguous=True)
        check_tensor("selected[1]", selected[1], dtypes=index, shape=(sequences, kv.kv_heads), contiguous=True)
