"""Operations on whole cache blocks: `quantize_blocks` seals open blocks as int8, `copy_blocks` is for copy on write.

`kv_cache` defines the layout and the formulas of an int8 block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .kv_cache import BLOCK_SIZE, FloatKV, Int8KV, PagedKV
from .launch import Options, ceil_div, check_device, check_tensor, launch, power_of_two
from .numerics import divide, round_even, to_bfloat_above, to_bfloat_below

_PARTS = ("k_high", "k_low", "k_lo", "k_step", "k_reach", "v", "v_scale", "v_norm")
"""Arrays of an int8 block."""


@triton.jit
def _codes(x, lo, step, min_code, max_code):
    """Codes (x - lo) / step in [min_code, max_code]; 0 where the step is 0. Halved: x - lo alone may be infinite."""
    step = tl.where(step > 0.0, step, 1.0)
    code = round_even(divide(0.5 * x - 0.5 * lo, tl.zeros_like(x) + 0.5 * step))
    return tl.minimum(tl.maximum(code, min_code), max_code).to(tl.int32)


@triton.jit
def _key_codes(k, live):
    """Codes, lo and step of the channels (dimension 1) of a block of keys, and the square of their reach."""
    lo = to_bfloat_below(tl.min(k, 0)).to(tl.float32)
    size = tl.where(live, 0.5 * tl.max(k, 0) - 0.5 * lo, 0.0)
    step = to_bfloat_above(divide(size, tl.zeros_like(size) + 127.5)).to(tl.float32)
    # A key that is no number must not come back as one.
    broken = tl.max(tl.where(tl.abs(k) <= 3.4028234663852886e38, 0, 1), 0) > 0
    lo = tl.where(broken, float("nan"), lo)
    step = tl.where(broken, float("nan"), step)
    codes = _codes(tl.where(broken[None, :], 0.0, k), tl.where(broken, 0.0, lo)[None, :], step[None, :], 0.0, 255.0)
    reach = tl.where(live, tl.abs(lo) + 255.0 * step, 0.0)
    return codes, lo.to(tl.bfloat16), step.to(tl.bfloat16), tl.sum(reach * reach, 0)


@triton.jit
def _value_codes(v_0, v_1):
    """Codes of both halves of the values of a block, f32 scale of each token, and tokens with NaN or an infinity."""
    largest = tl.maximum(tl.max(tl.abs(v_0), 1), tl.max(tl.abs(v_1), 1))
    odd = tl.where((tl.abs(v_0) <= 3.4028234663852886e38) & (tl.abs(v_1) <= 3.4028234663852886e38), 0, 1)
    broken = tl.max(odd, 1) > 0
    largest = tl.where(broken, 0.0, largest)
    wide = to_bfloat_above(divide(largest, tl.zeros_like(largest) + 127.0)).to(tl.float32)
    codes_0 = _codes(tl.where(broken[:, None], 0.0, v_0), 0.0, wide[:, None], -127.0, 127.0)
    codes_1 = _codes(tl.where(broken[:, None], 0.0, v_1), 0.0, wide[:, None], -127.0, 127.0)
    return codes_0, codes_1, wide, broken


@triton.jit
def quantize_blocks_kernel(
    blocks_ptr,
    open_block_of_ptr,
    open_k_ptr,
    open_v_ptr,
    k_high_ptr,
    k_low_ptr,
    k_lo_ptr,
    k_step_ptr,
    k_reach_ptr,
    v_ptr,
    v_scale_ptr,
    v_norm_ptr,
    kv_heads,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One program per block and KV head; channels as two halves of HALF."""
    block = tl.load(blocks_ptr + tl.program_id(0)).to(tl.int64)
    if block >= 0:
        open_block = tl.load(open_block_of_ptr + block).to(tl.int64)
        if open_block >= 0:
            head = tl.program_id(1)
            token = tl.arange(0, BLOCK_SIZE)
            channel = tl.arange(0, HALF_PADDED)
            live = channel < HALF
            here = block * kv_heads + head
            there = open_block * kv_heads + head
            at = there * BLOCK_SIZE * 2 * HALF + token[:, None] * 2 * HALF + channel[None, :]
            first = tl.load(open_k_ptr + at, mask=live[None, :], other=0.0).to(tl.float32)
            second = tl.load(open_k_ptr + at + HALF, mask=live[None, :], other=0.0).to(tl.float32)
            codes_0, lo_0, step_0, reach_0 = _key_codes(first, live)
            codes_1, lo_1, step_1, reach_1 = _key_codes(second, live)
            plane = here * BLOCK_SIZE * HALF + token[:, None] * HALF + channel[None, :]
            high = (codes_0 >> 4) | (codes_1 & 0xF0)
            low = (codes_0 & 0xF) | ((codes_1 & 0xF) << 4)
            tl.store(k_high_ptr + plane, high.to(tl.uint8), mask=live[None, :])
            tl.store(k_low_ptr + plane, low.to(tl.uint8), mask=live[None, :])
            tl.store(k_lo_ptr + here * 2 * HALF + channel, lo_0, mask=live)
            tl.store(k_lo_ptr + here * 2 * HALF + HALF + channel, lo_1, mask=live)
            tl.store(k_step_ptr + here * 2 * HALF + channel, step_0, mask=live)
            tl.store(k_step_ptr + here * 2 * HALF + HALF + channel, step_1, mask=live)
            # The factor covers the rounding of sums, roots and products.
            tl.store(k_reach_ptr + here, tl.sqrt(reach_0 + reach_1) * (1.0 + 1e-5))

            v_0 = tl.load(open_v_ptr + at, mask=live[None, :], other=0.0).to(tl.float32)
            v_1 = tl.load(open_v_ptr + at + HALF, mask=live[None, :], other=0.0).to(tl.float32)
            codes_0, codes_1, wide, broken = _value_codes(v_0, v_1)
            to = here * BLOCK_SIZE * 2 * HALF + token[:, None] * 2 * HALF + channel[None, :]
            tl.store(v_ptr + to, codes_0.to(tl.int8), mask=live[None, :])
            tl.store(v_ptr + to + HALF, codes_1.to(tl.int8), mask=live[None, :])
            stored = tl.where(broken, float("nan"), wide)
            tl.store(v_scale_ptr + here * BLOCK_SIZE + token, stored.to(tl.bfloat16))
            norm = tl.sqrt((tl.sum(codes_0 * codes_0, 1) + tl.sum(codes_1 * codes_1, 1)).to(tl.float32)) * wide
            # Sum, root and product are off by less than 2^-20 of the norm.
            broken_norm = tl.max(tl.where(broken, 1, 0), 0) > 0
            bound = tl.max(tl.where(broken, 0.0, norm), 0) * (1.0 + 2.0**-20)
            tl.store(v_norm_ptr + here, tl.where(broken_norm, float("inf"), bound))


@triton.jit
def copy_blocks_kernel(data_ptr, copies_ptr, block_words, BLOCK: tl.constexpr):
    """One program per pair and BLOCK of the 4-byte words of a block."""
    source = tl.load(copies_ptr + 2 * tl.program_id(0))
    target = tl.load(copies_ptr + 2 * tl.program_id(0) + 1)
    if (source >= 0) & (target >= 0):
        word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = word < block_words
        data = tl.load(data_ptr + source.to(tl.int64) * block_words + word, mask=live)
        tl.store(data_ptr + target.to(tl.int64) * block_words + word, data, mask=live)


def quantize_blocks(kv: Int8KV, blocks: torch.Tensor) -> None:
    """Seals full `blocks` int32 `[n]`: writes their int8 form from their open blocks.

    Entries of -1 and blocks without an open block have no effect.
    """
    check_device(v=kv.v, blocks=blocks)
    check_tensor("blocks", blocks, dtypes=(torch.int32,), shape=(None,), contiguous=True)
    half = kv.head_dim // 2
    arguments = {f"{name}_ptr": getattr(kv, name) for name in (*_PARTS, "open_k", "open_v", "open_block_of")}
    arguments |= {"blocks_ptr": blocks, "kv_heads": kv.kv_heads}
    constants = {"HALF": half, "HALF_PADDED": max(16, power_of_two(half)), "BLOCK_SIZE": BLOCK_SIZE}
    launch(quantize_blocks_kernel, (blocks.shape[0], kv.kv_heads), arguments, constants, Options(4, 1))


def quantize_blocks_ref(kv: Int8KV, blocks: torch.Tensor) -> None:
    """The formula of the module, block by block."""
    half = kv.head_dim // 2
    for block in blocks.tolist():
        open_block = int(kv.open_block_of[block]) if block >= 0 else -1
        if open_block < 0:
            continue
        k, v = kv.open_k[open_block].float(), kv.open_v[open_block].float()
        lo = _bfloat_below(k.amin(1))
        step = _bfloat_above((0.5 * k.amax(1) - 0.5 * lo) / 127.5)
        broken = ~k.isfinite().all(1)
        codes = _codes_ref(k, lo[:, None], step[:, None], 0, 255).masked_fill(broken[:, None], 0)
        lo, step = lo.masked_fill(broken, torch.nan), step.masked_fill(broken, torch.nan)
        first, second = codes[..., :half], codes[..., half:]
        kv.k_high[block] = ((first >> 4) | (second & 0xF0)).to(torch.uint8)
        kv.k_low[block] = ((first & 0xF) | ((second & 0xF) << 4)).to(torch.uint8)
        kv.k_lo[block], kv.k_step[block] = lo, step
        kv.k_reach[block] = (lo.abs() + 255.0 * step).norm(dim=-1) * (1 + 1e-5)
        broken = ~v.isfinite().all(-1)
        v = v.masked_fill(broken[..., None], 0.0)
        scale = _bfloat_above(v.abs().amax(-1) / 127.0)
        kv.v[block] = _codes_ref(v, 0.0, scale[..., None], -127, 127).to(torch.int8)
        kv.v_scale[block] = scale.masked_fill(broken, torch.nan)
        norm = (kv.v[block].float().norm(dim=-1) * scale).amax(-1) * (1 + 2.0**-20)
        kv.v_norm[block] = norm.masked_fill(broken.any(-1), torch.inf)


def _codes_ref(
    x: torch.Tensor, lo: torch.Tensor | float, step: torch.Tensor, min_code: int, max_code: int
) -> torch.Tensor:
    code = (0.5 * x - 0.5 * lo) / (0.5 * torch.where(step > 0, step, 1.0))
    return code.round().clamp(min_code, max_code).to(torch.int32)


def copy_blocks(kv: PagedKV, copies: torch.Tensor, open_copies: torch.Tensor | None = None) -> None:
    """Copies blocks, and open blocks of an int8 cache.

    `copies` and `open_copies` are int32 `[C, 2]` of (source, target). A pair with -1 is skipped. No target is a source.
    """
    check_device(v=kv.v, copies=copies, open_copies=open_copies)
    for name, pairs in (("copies", copies), ("open_copies", open_copies)):
        if pairs is not None:
            check_tensor(name, pairs, dtypes=(torch.int32,), shape=(None, 2), contiguous=True)
    for data, pairs in _copied(kv, copies, open_copies):
        words = data.view(data.shape[0], -1).view(torch.int32)
        block = min(4096, power_of_two(words.shape[1]))
        arguments = {"data_ptr": words, "copies_ptr": pairs, "block_words": words.shape[1]}
        grid = (pairs.shape[0], ceil_div(words.shape[1], block))
        launch(copy_blocks_kernel, grid, arguments, {"BLOCK": block}, Options(4, 1))


def copy_blocks_ref(kv: PagedKV, copies: torch.Tensor, open_copies: torch.Tensor | None = None) -> None:
    """As `copy_blocks`, in plain torch."""
    for data, pairs in _copied(kv, copies, open_copies):
        pairs = pairs[(pairs >= 0).all(1)].long()
        data[pairs[:, 1]] = data[pairs[:, 0]]


def _copied(
    kv: PagedKV, copies: torch.Tensor, open_copies: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Arrays of the cache with the pairs to copy in them."""
    yield from ((getattr(kv, name), copies) for name in (("k", "v") if isinstance(kv, FloatKV) else _PARTS))
    if isinstance(kv, Int8KV) and open_copies is not None:
        yield from ((data, open_copies) for data in (kv.open_k, kv.open_v))


def _bfloat_below(x: torch.Tensor) -> torch.Tensor:
    """The largest bfloat16 that is at most x, as f32."""
    return -_bfloat_above(-x)


def _bfloat_above(x: torch.Tensor) -> torch.Tensor:
    """The smallest bfloat16 that is at least x, as f32."""
    bits = x.view(torch.int32)
    return (torch.where(x > 0, bits + 0xFFFF, bits) & ~0xFFFF).view(torch.float32)
