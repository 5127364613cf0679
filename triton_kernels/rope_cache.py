"""Rotary position embedding and the write to the KV cache, in one pass over the fused projection.

    (a, b) -> (a cos - b sin, b cos + a sin)

for the pairs of the first `rotary_dim` channels of each query and key head: channels i and i + rotary_dim / 2, or 2 i
and 2 i + 1 where `interleaved`. Before it, optionally, an RMS norm of each query and key head (`q_norm`, `k_norm`).
Queries and keys are rotated in place; keys and values also go to their slot of the cache (slot = block * 32 + offset).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .kv_cache import BLOCK_SIZE, FloatKV, Int8KV, PagedKV
from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two

VALUES_PER_PROGRAM = 2048


@triton.jit
def rope_and_cache_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    slots_ptr,
    k_ptr,
    v_ptr,
    open_block_of_ptr,
    q_norm_ptr,
    k_norm_ptr,
    qkv_stride,
    cos_stride,
    sin_stride,
    eps,
    norm_offset,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    OPEN_BLOCKS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A program takes ROWS heads of a token; heads are counted over queries, keys and values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    live = (head < HEADS + 2 * KV_HEADS)[:, None] & (channel < HEAD_DIM)[None, :]
    turned = head < HEADS + KV_HEADS
    row = qkv_ptr + token * qkv_stride + head[:, None] * HEAD_DIM
    x = tl.load(row + channel[None, :], mask=live, other=0.0).to(tl.float32)
    y = x
    if NORM:
        inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)
        is_query = (head < HEADS)[:, None]
        q_weight = tl.load(q_norm_ptr + channel, mask=channel < HEAD_DIM, other=0.0).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + channel, mask=channel < HEAD_DIM, other=0.0).to(tl.float32)
        weight = tl.where(is_query, q_weight[None, :], k_weight[None, :]) + norm_offset
        y = tl.where(turned[:, None], x * inverse[:, None] * weight, x)
    if ROTARY_DIM > 0:
        if INTERLEAVED:
            partner = channel ^ 1
            pair = channel // 2
            is_first = channel % 2 == 0
        else:
            is_first = channel < ROTARY_DIM // 2
            partner = tl.where(is_first, channel + ROTARY_DIM // 2, channel - ROTARY_DIM // 2)
            pair = tl.where(is_first, channel, channel - ROTARY_DIM // 2)
        inside = channel < ROTARY_DIM
        other = tl.load(row + partner[None, :], mask=live & inside[None, :], other=0.0).to(tl.float32)
        if NORM:
            q_other = tl.load(q_norm_ptr + partner, mask=inside, other=0.0).to(tl.float32)
            k_other = tl.load(k_norm_ptr + partner, mask=inside, other=0.0).to(tl.float32)
            other = other * inverse[:, None] * (tl.where(is_query, q_other[None, :], k_other[None, :]) + norm_offset)
        cos = tl.load(cos_ptr + token * cos_stride + pair, mask=inside, other=1.0)
        sin = tl.load(sin_ptr + token * sin_stride + pair, mask=inside, other=0.0)
        sin = tl.where(is_first, -sin, sin)
        y = tl.where(turned[:, None] & inside[None, :], y * cos[None, :] + other * sin[None, :], y)
    y = y.to(qkv_ptr.dtype.element_ty)
    # Other threads of this program may still have to read what is written now.
    tl.debug_barrier()
    if NORM or ROTARY_DIM > 0:
        tl.store(row + channel[None, :], y, mask=live & turned[:, None])
    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        block = slot // BLOCK_SIZE
        if OPEN_BLOCKS:
            block = tl.load(open_block_of_ptr + block)
        if block >= 0:
            is_key = (head >= HEADS) & turned
            kv_head = tl.where(turned, head - HEADS, head - HEADS - KV_HEADS)
            offset = (block.to(tl.int64) * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
            to = offset[:, None] * HEAD_DIM + channel[None, :]
            tl.store(k_ptr + to, y, mask=live & is_key[:, None])
            tl.store(v_ptr + to, y, mask=live & (turned == 0)[:, None])


def rope_and_cache(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    slots: torch.Tensor,
    kv: PagedKV,
    *,
    heads: int,
    interleaved: bool = False,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> None:
    """Rotates queries and keys of `qkv` in place and writes keys and values to `kv`.

    `qkv` `[T, (heads + 2 * kv_heads) * head_dim]` in the cache's dtype, rows at any distance. `cos`, `sin`
    `[T, rotary_dim / 2]` f32, or None for layers without rope. `slots` int32 `[T]`: block * 32 + offset; -1 caches
    nothing (padding). Of an int8 cache the open block is written; `quantize_blocks` seals it when it is full.
    """
    check_device(qkv=qkv, cos=cos, sin=sin, slots=slots, v=kv.v, q_norm=q_norm, k_norm=k_norm)
    rotary_dim = _check(qkv, cos, sin, slots, kv, heads, q_norm, k_norm)
    tokens, head_dim = qkv.shape[0], kv.head_dim
    width = power_of_two(head_dim)
    total = heads + 2 * kv.kv_heads
    rows = min(power_of_two(total), max(1, VALUES_PER_PROGRAM // width))
    of_cache = kv.arguments()
    arguments = {
        "qkv_ptr": qkv,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "slots_ptr": slots,
        **{name: of_cache[name] for name in ("k_ptr", "v_ptr", "open_block_of_ptr")},
        "q_norm_ptr": q_norm,
        "k_norm_ptr": k_norm,
        "qkv_stride": qkv.stride(0),
        "cos_stride": cos.stride(0) if cos is not None else 0,
        "sin_stride": sin.stride(0) if sin is not None else 0,
        "eps": eps,
        "norm_offset": norm_offset,
    }
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv.kv_heads,
        "HEAD_DIM": head_dim,
        "ROTARY_DIM": rotary_dim,
        "INTERLEAVED": interleaved,
        "NORM": q_norm is not None,
        "OPEN_BLOCKS": isinstance(kv, Int8KV),
        "BLOCK_SIZE": BLOCK_SIZE,
        "ROWS": rows,
        "WIDTH": width,
    }
    launch(rope_and_cache_kernel, (tokens, ceil_div(total, rows)), arguments, constants, Options(4, 1))


def rope_and_cache_ref(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    slots: torch.Tensor,
    kv: PagedKV,
    *,
    heads: int,
    interleaved: bool = False,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> None:
    """The formula of the module in f32, rounded once; changes the same tensors as `rope_and_cache`."""
    tokens, dim = qkv.shape[0], kv.head_dim
    x = qkv.float().view(tokens, heads + 2 * kv.kv_heads, dim)
    turned = x[:, : heads + kv.kv_heads]
    if q_norm is not None and k_norm is not None:
        turned = turned * torch.rsqrt(turned.pow(2).mean(-1, keepdim=True) + eps)
        q_part = turned[:, :heads] * (q_norm.float() + norm_offset)
        turned = torch.cat([q_part, turned[:, heads:] * (k_norm.float() + norm_offset)], 1)
    if cos is not None and sin is not None:
        half = cos.shape[1]
        rotated, rest = turned[..., : 2 * half], turned[..., 2 * half :]
        c, s = cos[:, None], sin[:, None]
        if interleaved:
            a, b = rotated[..., ::2], rotated[..., 1::2]
            rotated = torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
        else:
            a, b = rotated[..., :half], rotated[..., half:]
            rotated = torch.cat([a * c - b * s, b * c + a * s], -1)
        turned = torch.cat([rotated, rest], -1)
    result = torch.cat([turned, x[:, heads + kv.kv_heads :]], 1).to(qkv.dtype)
    qkv.copy_(result.view(qkv.shape))
    for token, slot in enumerate(slots.tolist()):
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        if slot < 0:
            continue
        k, v = (kv.k, kv.v) if isinstance(kv, FloatKV) else (kv.open_k, kv.open_v)
        if not isinstance(kv, FloatKV):
            block = int(kv.open_block_of[block])
        if block >= 0:
            k[block, :, offset] = result[token, heads : heads + kv.kv_heads]
            v[block, :, offset] = result[token, heads + kv.kv_heads :]


def _check(
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    slots: torch.Tensor,
    kv: PagedKV,
    heads: int,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
) -> int:
    check(heads > 0 and heads % kv.kv_heads == 0, f"{heads} heads over {kv.kv_heads} KV heads: wanted a multiple")
    check_tensor("qkv", qkv, dtypes=(kv.dtype,), shape=(None, (heads + 2 * kv.kv_heads) * kv.head_dim))
    tokens = qkv.shape[0]
    check_tensor("slots", slots, dtypes=(torch.int32,), shape=(tokens,), contiguous=True)
    check((cos is None) == (sin is None), "cos and sin: pass both or neither")
    check((q_norm is None) == (k_norm is None), "q_norm and k_norm: pass both or neither")
    if q_norm is not None and k_norm is not None:
        check_tensor("q_norm", q_norm, dtypes=FLOATS, shape=(kv.head_dim,))
        check_tensor("k_norm", k_norm, dtypes=FLOATS, shape=(kv.head_dim,))
    if cos is None or sin is None:
        return 0
    check_tensor("cos", cos, dtypes=(torch.float32,), shape=(tokens, None))
    check_tensor("sin", sin, dtypes=(torch.float32,), shape=tuple(cos.shape))
    rotary_dim = 2 * cos.shape[1]
    check(rotary_dim <= kv.head_dim, f"cos turns {rotary_dim} channels of heads of {kv.head_dim}")
    return rotary_dim
