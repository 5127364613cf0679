"""Rope, head norms and the write to the cache in one."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from octavo.triton_kernels.kv_cache import FloatKV, Int8KV, PagedKV
from octavo.triton_kernels.rope_cache import rope_and_cache, rope_and_cache_ref

SLOTS = [5, 64, -1, 33, 127]


def cache(kind: str, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> PagedKV:
    if kind == "float":
        return FloatKV.empty(4, kv_heads, head_dim, dtype, device)
    open_block_of = torch.tensor([2, 0, -1, 1], dtype=torch.int32, device=device)
    return Int8KV.empty(4, 3, kv_heads, head_dim, dtype, device, open_block_of)


def inputs(
    width: int, rotary_dim: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    qkv = torch.randn(5, width + 16, generator=generator).to(device, dtype)[:, :width]
    angle = torch.rand(5, rotary_dim // 2, generator=generator) * 6.28
    slots = torch.tensor(SLOTS, dtype=torch.int32, device=device)
    return qkv, angle.cos().to(device), angle.sin().to(device), slots


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim", "dtype"),
    [
        (4, 2, 64, 64, torch.bfloat16),
        (7, 1, 80, 80, torch.float32),
        (3, 3, 96, 32, torch.float16),
        (40, 8, 16, 8, torch.bfloat16),
    ],
)
def test_rope_and_cache(
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    dtype: torch.dtype,
    norm: bool,
    interleaved: bool,
    kind: str,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    width = (heads + 2 * kv_heads) * head_dim
    qkv, cos, sin, slots = inputs(width, rotary_dim, dtype, device, generator)
    weights = torch.rand(2, head_dim, generator=generator).to(device, dtype)
    options = {"heads": heads, "interleaved": interleaved}
    if norm:
        options |= {"q_norm": weights[0], "k_norm": weights[1], "norm_offset": 1.0}
    wanted, found = qkv.clone(), qkv
    kv, kv_ref = (cache(kind, kv_heads, head_dim, dtype, device) for _ in range(2))
    rope_and_cache(found, cos, sin, slots, kv, **options)
    rope_and_cache_ref(wanted, cos, sin, slots, kv_ref, **options)
    assert_close("qkv", found, wanted)
    for name in ("k", "v") if kind == "float" else ("open_k", "open_v"):
        assert_close(name, getattr(kv, name), getattr(kv_ref, name))
        assert getattr(kv, name).any()


def test_without_rope_queries_and_keys_stay(device: torch.device, generator: torch.Generator) -> None:
    qkv, _, _, slots = inputs(4 * 32, 32, torch.float32, device, generator)
    before = qkv.clone()
    kv = FloatKV.empty(4, 1, 32, torch.float32, device)
    rope_and_cache(qkv, None, None, slots, kv, heads=2)
    assert torch.equal(qkv, before)
    assert torch.equal(kv.k[1, 0, 1], before[3, 64:96])
    assert torch.equal(kv.v[3, 0, 31], before[4, 96:])
    written = kv.k.abs().sum(-1).ne(0).sum().item()
    assert written == 4, f"{written} slots were written by four tokens with a slot"


def test_faults_are_named(device: torch.device, generator: torch.Generator) -> None:
    qkv, cos, sin, slots = inputs(4 * 32, 32, torch.float32, device, generator)
    kv = FloatKV.empty(4, 1, 32, torch.float32, device)
    with pytest.raises(ValueError, match="cos and sin"):
        rope_and_cache(qkv, cos, None, slots, kv, heads=2)
    with pytest.raises(ValueError, match=r"qkv has shape \[5, 128\], wanted \[any, 160\]"):
        rope_and_cache(qkv, cos, sin, slots, kv, heads=3)
    with pytest.raises(TypeError, match="qkv has dtype float32, wanted bfloat16"):
        rope_and_cache(qkv, cos, sin, slots, FloatKV.empty(4, 1, 32, torch.bfloat16, device), heads=2)
    with pytest.raises(ValueError, match="turns 64 channels of heads of 32"):
        rope_and_cache(qkv, cos.repeat(1, 2), sin.repeat(1, 2), slots, kv, heads=2)
    with pytest.raises(ValueError, match="3 heads over 2 KV heads"):
        rope_and_cache(qkv, cos, sin, slots, FloatKV.empty(4, 2, 32, torch.float32, device), heads=3)
    with pytest.raises(TypeError, match="slots has dtype int64"):
        rope_and_cache(qkv, cos, sin, slots.long(), kv, heads=2)
