"""Torch twins of the kernels that the executor calls, with the kernels' signatures."""

from __future__ import annotations

import torch

from octavo.gpu.kv import FloatKV


def rms_norm(x, weight, eps, *, offset=0.0, residual=None, out=None):  # type: ignore[no-untyped-def]
    total = x.float()
    if residual is not None:
        residual.add_(x)
        total = residual.float()
    y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps) * (weight.float() + offset)
    y = y.to(x.dtype)
    if out is not None:
        y = out.copy_(y)
    return y if residual is None else (y, residual)


def rope_and_cache(qkv, cos, sin, slots, kv, *, heads, interleaved=False, q_norm=None, k_norm=None, eps=1e-6, norm_offset=0.0):  # type: ignore[no-untyped-def]  # noqa: E501
    dim, kv_heads = kv.head_dim, kv.kv_heads
    parts = qkv.view(qkv.shape[0], heads + 2 * kv_heads, dim)
    q, k, v = parts.split([heads, kv_heads, kv_heads], 1)
    for part, norm in ((q, q_norm), (k, k_norm)):
        wide = part.float()
        if norm is not None:
            wide = rms_norm(wide, norm, eps, offset=norm_offset)
        if cos is not None:
            half = cos.shape[1]
            c, s = cos[:, None], sin[:, None]
            turned = wide[..., : 2 * half]
            if interleaved:
                a, b = turned[..., 0::2], turned[..., 1::2]
                turned = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
            else:
                a, b = turned[..., :half], turned[..., half:]
                turned = torch.cat((a * c - b * s, b * c + a * s), -1)
            wide = torch.cat((turned, wide[..., 2 * half :]), -1)
        part.copy_(wide)
    live = slots >= 0
    index = slots[live].long()
    kv.k[index // 32, :, index % 32] = k[live].to(kv.k.dtype)
    kv.v[index // 32, :, index % 32] = v[live].to(kv.v.dtype)


def paged_attention(q, kv, block_tables, query_start, context_lens, *, scale, window=None, softcap=None, out=None, **_):  # type: ignore[no-untyped-def]  # noqa: E501
    starts, lens = query_start.tolist(), context_lens.tolist()
    result = torch.zeros_like(q, memory_format=torch.contiguous_format) if out is None else out
    group = q.shape[1] // kv.kv_heads
    for s, context in enumerate(lens):
        first, last = starts[s], starts[s + 1]
        if context == 0 or first == last:
            continue
        blocks = block_tables[s, : -(-context // 32)].long()
        k, v = (
            t[blocks].transpose(1, 2).reshape(-1, kv.kv_heads, t.shape[-1])[:context].float().repeat_interleave(group, 1)
            for t in (kv.k, kv.v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[first:last].float(), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        keys = torch.arange(context, device=q.device)
        queries = torch.arange(context - (last - first), context, device=q.device)[:, None]
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        scores = scores.masked_fill(hidden, -torch.inf)
        result[first:last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(result.dtype)
    return result


def act_and_mul(gate_up, kind, *, out=None):  # type: ignore[no-untyped-def]
    gate, up = gate_up.float().chunk(2, -1)
    if kind == "silu":
        y = torch.nn.functional.silu(gate) * up
    else:
        y = torch.nn.functional.gelu(gate, approximate="tanh") * up
    return y.to(gate_up.dtype)


def quantize_rows(x, group=128):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    groups = -(-columns // group)
    parts = torch.nn.functional.pad(x.float(), (0, groups * group - columns)).view(rows, groups, group)
    largest = parts.abs().amax(-1)
    scales = torch.where(largest < 1e-35, 0.0, largest / 127.0)
    codes = (parts * torch.where(largest < 1e-35, 0.0, 127.0 / largest)[..., None]).round()
    return codes.nan_to_num().to(torch.int8).view(rows, -1)[:, :columns].contiguous(), scales


def int8_matmul(x_q, x_scale, w_q, w_scale, bias=None, out_dtype=torch.bfloat16, *, out=None, deterministic=False):  # type: ignore[no-untyped-def]  # noqa: E501
    groups = x_scale.shape[1]
    pad = (0, groups * 128 - x_q.shape[1])
    x = torch.nn.functional.pad(x_q.float(), pad).view(-1, groups, 128)
    w = torch.nn.functional.pad(w_q.float(), pad).view(-1, groups, 128)
    # Sums of 128 products of codes stay below 2^24: f32 is exact.
    y = torch.zeros(x_q.shape[0], w_q.shape[0], device=x_q.device)
    for g in range(groups):
        y += (x[:, g] @ w[:, g].T) * (x_scale[:, g, None] * w_scale[:, g].float())
    return (y if bias is None else y + bias.float()).to(out_dtype)


def copy_blocks(kv, copies):  # type: ignore[no-untyped-def]
    pairs = copies[(copies >= 0).all(1)].long()
    for t in (kv.k, kv.v):
        t[pairs[:, 1]] = t[pairs[:, 0]]


__all__ = ["FloatKV"]
