"""The calls that the compile check makes, one for every kernel and committed configuration, on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from .activation import act_and_mul, act_and_mul_quantize
from .block_ops import copy_blocks, quantize_blocks
from .dynamic_attention import FIELDS, SelectionParams, Workspace, dynamic_attention
from .int8_matmul import int8_matmul, int8_weight_matmul
from .kv_cache import FloatKV, Int8KV, PagedKV
from .lora_expand import lora_expand
from .lora_shrink import lora_shrink
from .lora_slots import FEW, MANY, LoraSite, LoraTiles
from .paged_attention import paged_attention
from .quantize import quantize_rows
from .rms_norm import rms_norm, rms_norm_quantize
from .rope_cache import rope_and_cache
from .sampling import SamplingBatch, logprobs, sample

BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32


class Case(NamedTuple):
    """A call of a launcher. `quick`: also made in the short check."""

    op: str
    name: str
    run: Callable[[], object]
    quick: bool = False


def cases() -> Iterator[Case]:
    """All of them, op by op."""
    yield from _pointwise()
    yield from _cache()
    yield from _attention()
    yield from _dynamic()
    yield from _matmul()
    yield from _adapters()
    yield from _sampling()


def _empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _pointwise() -> Iterator[Case]:
    x = _empty(512, 4096)
    weight, residual = _empty(4096), _empty(512, 4096, dtype=F32)
    yield Case("quantize", "groups of 128", lambda: quantize_rows(x), quick=True)
    yield Case("quantize", "groups of 128, rotated", lambda: quantize_rows(x, rotated=True), quick=True)
    yield Case("quantize", "one row, rotated", lambda: quantize_rows(_empty(1, 4096), rotated=True))
    yield Case("quantize", "rows of 28672", lambda: quantize_rows(_empty(4, 28672), None))
    yield Case("quantize", "one row", lambda: quantize_rows(_empty(1, 4096)))
    yield Case("rms_norm", "4096, residual", lambda: rms_norm(x, weight, 1e-5, residual=residual), quick=True)
    yield Case("rms_norm", "16384", lambda: rms_norm(_empty(4, 16384), _empty(16384), 1e-5))
    heads = _empty(512, 32, 128)
    yield Case("rms_norm", "heads of 128", lambda: rms_norm(heads, _empty(128), 1e-5, out=heads))
    yield Case("rms_norm", "quantised", lambda: rms_norm_quantize(x, weight, 1e-5, residual=residual), quick=True)
    wide = _empty(4, 16384)
    yield Case("rms_norm", "quantised, 16384 per row", lambda: rms_norm_quantize(wide, wide[0], 1e-5, group=None))
    gate_up = _empty(64, 28672)
    for kind in ("silu", "gelu", "gelu_tanh"):
        quick = kind == "silu"
        yield Case("activation", kind, partial(act_and_mul, gate_up, kind), quick=quick)
        yield Case("activation", f"{kind}, quantised", partial(act_and_mul_quantize, gate_up, kind), quick=quick)


def _kv(int8: bool, kv_heads: int, head_dim: int, dtype: torch.dtype) -> PagedKV:
    if int8:
        return Int8KV.empty(64, 8, kv_heads, head_dim, dtype, "meta")
    return FloatKV.empty(64, kv_heads, head_dim, dtype, "meta")


def _cache() -> Iterator[Case]:
    slots = _empty(64, dtype=I32)
    for int8 in (False, True):
        form = "int8" if int8 else "float"
        for head_dim in (64, 128, 256):
            kv = _kv(int8, 8, head_dim, BF16)
            qkv, cos = _empty(64, 48 * head_dim), _empty(64, head_dim // 2, dtype=F32)
            options: dict[str, Any] = {"heads": 32}
            if head_dim == 128:
                options |= {"q_norm": _empty(128), "k_norm": _empty(128)}
            yield Case(
                "rope_cache",
                f"{form}, {head_dim}" + (", norms" if head_dim == 128 else ""),
                partial(rope_and_cache, qkv, cos, cos, slots, kv, **options),
                quick=head_dim == 128,
            )
    for head_dim in (80, 128, 256):
        cache = Int8KV.empty(64, 8, 8, head_dim, BF16, "meta")
        yield Case("kv_cache", f"quantise {head_dim}", partial(quantize_blocks, cache, slots), quick=head_dim == 128)
    cache = Int8KV.empty(64, 8, 8, 128, BF16, "meta")
    yield Case("kv_cache", "copy", partial(copy_blocks, cache, *_empty(2, 4, 2, dtype=I32)))


def _attention() -> Iterator[Case]:
    for int8 in (False, True):
        for head_dim in (64, 80, 128, 256):
            for phase in ("decode", "prefill"):
                yield _attention_case(int8, BF16, head_dim, 4, phase)
    for phase in ("decode", "prefill"):
        # float16 compiles as bfloat16 does; float32 is for tests.
        yield _attention_case(False, F32, 128, 4, phase)
        yield _attention_case(False, F32, 256, 4, phase)
        yield _attention_case(False, BF16, 128, 8, phase)
    for int8 in (False, True):
        for phase in ("decode", "prefill"):
            yield _attention_case(int8, BF16, 128, 4, phase, window=4096)
            yield _attention_case(int8, BF16, 256, 2, phase, window=4096, softcap=50.0)
            yield _attention_case(int8, BF16, 128, 4, phase, selected=True)


def _attention_case(
    int8: bool,
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    phase: str,
    *,
    window: int | None = None,
    softcap: float | None = None,
    selected: bool = False,
) -> Case:
    kv_heads, sequences = 8, 32
    decode = phase == "decode"
    tokens = sequences if decode else 4096
    kv = _kv(int8, kv_heads, head_dim, dtype)
    q = _empty(tokens, kv_heads * group, head_dim, dtype=dtype)
    tables, starts = _empty(sequences, 512, dtype=I32), _empty(sequences + 1, dtype=I32)
    chosen = _empty(sequences, kv_heads, 64, dtype=I32), _empty(sequences, kv_heads, dtype=I32)

    def run() -> object:
        return paged_attention(
            q,
            kv,
            tables,
            starts,
            _empty(sequences, dtype=I32),
            scale=0.1,
            window=window,
            softcap=softcap,
            num_decodes=sequences if decode else 0,
            num_splits=8 if decode else 1,
            selected=chosen if selected else None,
        )

    extras = (", window" if window else "") + (", cap" if softcap else "") + (", selected" if selected else "")
    form = "int8" if int8 else "float"
    name = f"{form} {str(dtype).removeprefix('torch.')} {head_dim} 1:{group} {phase}{extras}"
    quick = dtype == BF16 and head_dim == 128 and group == 4 and not extras
    return Case("paged_attention", name, run, quick)


def _dynamic() -> Iterator[Case]:
    for head_dim, group, softcap in ((64, 4, None), (80, 1, None), (128, 4, None), (128, 8, None), (256, 2, 50.0)):
        extras = ", cap" if softcap else ""
        run = partial(_choose, head_dim, group, softcap)
        yield Case("dynamic_attention", f"{head_dim} 1:{group}{extras}", run, quick=(head_dim, group) == (128, 4))


def _choose(head_dim: int, group: int, softcap: float | None) -> object:
    sequences, kv_heads, blocks = 32, 8, 1024
    heads = kv_heads * group
    kv = Int8KV.empty(64, 8, kv_heads, head_dim, BF16, "meta")
    q = _empty(sequences, heads, head_dim)
    lens = _empty(sequences, dtype=I32)
    workspace = Workspace.empty(sequences * blocks, heads, "meta")
    report = _empty(sequences, kv_heads, FIELDS, dtype=F32)
    options: dict[str, Any] = {
        "selection": SelectionParams(0.01),
        "workspace": workspace,
        "report": report,
        "softcap": softcap,
    }
    tables = _empty(sequences, blocks, dtype=I32)
    return dynamic_attention(q, kv, tables, lens, lens, _empty(*q.shape), scale=0.1, **options)


def _matmul() -> Iterator[Case]:
    columns, depth = 4096, 4096
    for kind in ("w8a8", "w8a16"):
        for group in (128, None):
            groups = depth // 128 if group else 1
            for rows in (1, 64, 256, 8192):
                for deterministic in (False, True):
                    if deterministic and rows != 64:
                        continue
                    yield Case(
                        "int8_matmul",
                        f"{kind} {'groups' if group else 'rows'} {rows}" + (", deterministic" if deterministic else ""),
                        partial(_multiply, kind, rows, columns, depth, groups, deterministic),
                        quick=group == 128 and rows in (1, 8192),
                    )


def _multiply(kind: str, rows: int, columns: int, depth: int, groups: int, deterministic: bool) -> object:
    w_q, w_scale = _empty(columns, depth, dtype=torch.int8), _empty(columns, groups)
    if kind == "w8a16":
        return int8_weight_matmul(_empty(rows, depth), w_q, w_scale, deterministic=deterministic)
    x_q, x_scale = _empty(rows, depth, dtype=torch.int8), _empty(rows, groups, dtype=F32)
    return int8_matmul(x_q, x_scale, w_q, w_scale, _empty(columns), deterministic=deterministic)


def _adapters() -> Iterator[Case]:
    qkv, gate_up, down = (4096, 1024, 1024), (14336, 14336), (4096,)
    for name, widths, depth, dtype in (
        ("qkv", qkv, 4096, BF16),
        ("gate_up", gate_up, 4096, BF16),
        ("down", down, 14336, BF16),
        ("float32", down, 4096, F32),
    ):
        for width in (FEW, MANY):
            run = partial(_adapt, widths, depth, dtype, width)
            yield Case("lora", f"{name}, tiles of {width}", run, quick=name == "qkv")


def _adapt(widths: tuple[int, ...], depth: int, dtype: torch.dtype, width: int) -> object:
    site = LoraSite.empty(_empty(8, 16, dtype=I32), 8, depth, widths, dtype)
    tiles = LoraTiles(_empty(11, width, dtype=I32), _empty(11, dtype=I32), 64)
    x, y = _empty(512, depth, dtype=dtype), _empty(512, sum(widths), dtype=dtype)
    return lora_expand(lora_shrink(x, site, tiles), site, tiles, y, _empty(sum(widths)) if len(widths) == 3 else None)


def _sampling() -> Iterator[Case]:
    rows, vocab = 64, 128256

    def one(dtype: torch.dtype) -> torch.Tensor:
        return _empty(rows, dtype=dtype)

    def many(width: int, dtype: torch.dtype = I32) -> torch.Tensor:
        return _empty(rows, width, dtype=dtype)

    plain = SamplingBatch(one(F32), one(torch.int64), one(I32), one(I32))
    restricted = replace(plain, top_k=one(I32), top_p=one(F32), min_p=one(F32))
    every = replace(
        restricted,
        **{name: one(F32) for name in ("repetition", "presence", "frequency")},
        **{name: many(512) for name in ("seen_ids", "seen_counts", "banned", "bias_ids")},
        bias=many(512, F32),
        allowed=many(4008),
        allowed_rows=one(I32),
    )
    logits = _empty(rows, vocab)
    yield Case("sampling", "plain", lambda: sample(logits.float(), plain))
    yield Case("sampling", "restricted", lambda: sample(logits.float(), restricted))
    yield Case("sampling", "every rule", lambda: sample(logits, every), quick=True)
    yield Case("sampling", "logprobs", lambda: logprobs(logits, one(I32), 5), quick=True)
