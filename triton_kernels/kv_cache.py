"""The paged KV cache of one layer: its layouts, and the quantisation of full blocks.

A block holds 32 tokens. `FloatKV` keeps keys and values in the model's dtype. `Int8KV` keeps full blocks as int8 and
the newest, not yet full ones in the model's dtype, in a small pool of tails:

    key[t, c]   = k_lo[c] + k_step[c] * code[t, c]     code = 16 * high + low in 0..255, per channel of the block
    value[t, c] = v[t, c] * v_scale[t]                 int8, per token

High and low halves of the codes lie in planes of their own, so that a reader can stop after the high one. Byte j of a
plane holds channel j in its low half and channel j + head_dim / 2 in its high half. k_lo is the largest bfloat16 not
above the block's minimum, k_step the smallest with which 255 steps reach its maximum: no code is ever clamped. v_norm
is an upper bound of the norms of the block's stored values, k_reach of the norm of |k_lo| + 255 k_step: what dynamic
attention bounds errors with. Codes and scales are those of octavo's CPU kernels, bit for bit.

A query at position p reads block p // 32 from its tail and every earlier block as int8, whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two
from .numerics import divide, round_even, to_bfloat_above, to_bfloat_below

BLOCK_SIZE = 32
"""Tokens of a block."""

MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class FloatKV:
    """Keys and values in the model's dtype, `[num_blocks, kv_heads, 32, head_dim]` each."""

    k: torch.Tensor
    v: torch.Tensor

    def __post_init__(self) -> None:
        check_tensor("k", self.k, dtypes=FLOATS, shape=(None, None, BLOCK_SIZE, None), contiguous=True)
        check_tensor("v", self.v, dtypes=(self.k.dtype,), shape=tuple(self.k.shape), contiguous=True)
        _check_head_dim(self.head_dim)

    @classmethod
    def empty(
        cls, num_blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> FloatKV:
        """A cache whose content is zero, so that unused places hold no NaN."""
        shape = (num_blocks, kv_heads, BLOCK_SIZE, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    @staticmethod
    def block_bytes(kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory of a block of one layer."""
        return 2 * kv_heads * BLOCK_SIZE * head_dim * dtype.itemsize

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What kernels take of a cache; None for what only an int8 cache has."""
        codes = ("k_high_ptr", "k_low_ptr", "k_lo_ptr", "k_step_ptr", "v_codes_ptr", "v_scale_ptr", "tail_of_ptr")
        return {"k_ptr": self.k, "v_ptr": self.v, **dict.fromkeys(codes)}

    @property
    def num_blocks(self) -> int:
        return self.k.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        return self.k.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.k.dtype

    @property
    def device(self) -> torch.device:
        return self.k.device


@dataclass(frozen=True)
class Int8KV:
    """Full blocks as int8, unfinished ones in `tail_k`, `tail_v` `[num_tails, kv_heads, 32, head_dim]`.

    `tail_of` int32 `[num_blocks]` names the tail of a block (-1: none). It is the executor's; layers may share it.
    """

    k_high: torch.Tensor
    k_low: torch.Tensor
    k_lo: torch.Tensor
    k_step: torch.Tensor
    k_reach: torch.Tensor
    v: torch.Tensor
    v_scale: torch.Tensor
    v_norm: torch.Tensor
    tail_k: torch.Tensor
    tail_v: torch.Tensor
    tail_of: torch.Tensor

    def __post_init__(self) -> None:
        check_tensor("v", self.v, dtypes=(torch.int8,), shape=(None, None, BLOCK_SIZE, None), contiguous=True)
        blocks, heads, _, dim = self.v.shape
        _check_head_dim(dim)
        plane = (blocks, heads, BLOCK_SIZE, dim // 2)
        half, channel = (torch.bfloat16,), (blocks, heads, dim)
        check_tensor("k_high", self.k_high, dtypes=(torch.uint8,), shape=plane, contiguous=True)
        check_tensor("k_low", self.k_low, dtypes=(torch.uint8,), shape=plane, contiguous=True)
        check_tensor("k_lo", self.k_lo, dtypes=half, shape=channel, contiguous=True)
        check_tensor("k_step", self.k_step, dtypes=half, shape=channel, contiguous=True)
        check_tensor("v_scale", self.v_scale, dtypes=half, shape=(blocks, heads, BLOCK_SIZE), contiguous=True)
        for name in ("k_reach", "v_norm"):
            check_tensor(name, getattr(self, name), dtypes=(torch.float32,), shape=(blocks, heads), contiguous=True)
        check_tensor("tail_k", self.tail_k, dtypes=FLOATS, shape=(None, heads, BLOCK_SIZE, dim), contiguous=True)
        tails = tuple(self.tail_k.shape)
        check_tensor("tail_v", self.tail_v, dtypes=(self.tail_k.dtype,), shape=tails, contiguous=True)
        check_tensor("tail_of", self.tail_of, dtypes=(torch.int32,), shape=(blocks,), contiguous=True)

    @classmethod
    def empty(
        cls,
        num_blocks: int,
        num_tails: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        tail_of: torch.Tensor | None = None,
    ) -> Int8KV:
        """A cache whose content is zero. `dtype` is the tails'; without `tail_of` no block has a tail yet."""

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        if tail_of is None:
            tail_of = torch.full((num_blocks,), -1, dtype=torch.int32, device=device)
        page = (num_blocks, kv_heads, BLOCK_SIZE)
        tail = (num_tails, kv_heads, BLOCK_SIZE, head_dim)
        return cls(
            k_high=zeros(*page, head_dim // 2, dtype=torch.uint8),
            k_low=zeros(*page, head_dim // 2, dtype=torch.uint8),
            k_lo=zeros(num_blocks, kv_heads, head_dim, dtype=torch.bfloat16),
            k_step=zeros(num_blocks, kv_heads, head_dim, dtype=torch.bfloat16),
            k_reach=zeros(num_blocks, kv_heads, dtype=torch.float32),
            v=zeros(*page, head_dim, dtype=torch.int8),
            v_scale=zeros(*page, dtype=torch.bfloat16),
            v_norm=zeros(num_blocks, kv_heads, dtype=torch.float32),
            tail_k=zeros(*tail, dtype=dtype),
            tail_v=zeros(*tail, dtype=dtype),
            tail_of=tail_of,
        )

    @staticmethod
    def block_bytes(kv_heads: int, head_dim: int) -> int:
        """Memory of a full block of one layer, its entry in tail_of left out."""
        return kv_heads * (2 * BLOCK_SIZE * head_dim + 4 * head_dim + 2 * BLOCK_SIZE + 8)

    @staticmethod
    def value_bytes(kv_heads: int, head_dim: int) -> int:
        """What of `block_bytes` values and their scales take."""
        return kv_heads * BLOCK_SIZE * (head_dim + 2)

    @staticmethod
    def tail_bytes(kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory of a tail of one layer."""
        return FloatKV.block_bytes(kv_heads, head_dim, dtype)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What kernels take of a cache: floats are those of the tails."""
        return {
            "k_ptr": self.tail_k,
            "v_ptr": self.tail_v,
            "k_high_ptr": self.k_high,
            "k_low_ptr": self.k_low,
            "k_lo_ptr": self.k_lo,
            "k_step_ptr": self.k_step,
            "v_codes_ptr": self.v,
            "v_scale_ptr": self.v_scale,
            "tail_of_ptr": self.tail_of,
        }

    @property
    def num_blocks(self) -> int:
        return self.v.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.v.shape[1]

    @property
    def head_dim(self) -> int:
        return self.v.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.tail_k.dtype

    @property
    def device(self) -> torch.device:
        return self.v.device


PagedKV = FloatKV | Int8KV

_PARTS = ("k_high", "k_low", "k_lo", "k_step", "k_reach", "v", "v_scale", "v_norm")
"""What an int8 block is made of."""


@triton.jit
def _codes(x, lo, step, least, most):
    """The codes in [least, most] of (x - lo) / step; of 0 where the step is 0. Halved: x - lo alone may be infinite."""
    step = tl.where(step > 0.0, step, 1.0)
    code = round_even(divide(0.5 * x - 0.5 * lo, tl.zeros_like(x) + 0.5 * step))
    return tl.minimum(tl.maximum(code, least), most).to(tl.int32)


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
def quantize_blocks_kernel(
    blocks_ptr,
    tail_of_ptr,
    tail_k_ptr,
    tail_v_ptr,
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
    """A program takes one KV head of one block; channels as two halves of HALF."""
    block = tl.load(blocks_ptr + tl.program_id(0)).to(tl.int64)
    if block >= 0:
        tail = tl.load(tail_of_ptr + block).to(tl.int64)
        if tail >= 0:
            head = tl.program_id(1)
            token = tl.arange(0, BLOCK_SIZE)
            channel = tl.arange(0, HALF_PADDED)
            live = channel < HALF
            here = block * kv_heads + head
            there = tail * kv_heads + head
            at = there * BLOCK_SIZE * 2 * HALF + token[:, None] * 2 * HALF + channel[None, :]
            first = tl.load(tail_k_ptr + at, mask=live[None, :], other=0.0).to(tl.float32)
            second = tl.load(tail_k_ptr + at + HALF, mask=live[None, :], other=0.0).to(tl.float32)
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
            # Of sums, roots and products: off by less than the bound is widened.
            tl.store(k_reach_ptr + here, tl.sqrt(reach_0 + reach_1) * (1.0 + 1e-5))

            v_0 = tl.load(tail_v_ptr + at, mask=live[None, :], other=0.0).to(tl.float32)
            v_1 = tl.load(tail_v_ptr + at + HALF, mask=live[None, :], other=0.0).to(tl.float32)
            largest = tl.maximum(tl.max(tl.abs(v_0), 1), tl.max(tl.abs(v_1), 1))
            odd = tl.where((tl.abs(v_0) <= 3.4028234663852886e38) & (tl.abs(v_1) <= 3.4028234663852886e38), 0, 1)
            broken = tl.max(odd, 1) > 0
            largest = tl.where(broken, 0.0, largest)
            wide = to_bfloat_above(divide(largest, tl.zeros_like(largest) + 127.0)).to(tl.float32)
            codes_0 = _codes(tl.where(broken[:, None], 0.0, v_0), 0.0, wide[:, None], -127.0, 127.0)
            codes_1 = _codes(tl.where(broken[:, None], 0.0, v_1), 0.0, wide[:, None], -127.0, 127.0)
            to = here * BLOCK_SIZE * 2 * HALF + token[:, None] * 2 * HALF + channel[None, :]
            tl.store(v_ptr + to, codes_0.to(tl.int8), mask=live[None, :])
            tl.store(v_ptr + to + HALF, codes_1.to(tl.int8), mask=live[None, :])
            stored = tl.where(broken, float("nan"), wide)
            tl.store(v_scale_ptr + here * BLOCK_SIZE + token, stored.to(tl.bfloat16))
            norm = tl.sqrt((tl.sum(codes_0 * codes_0, 1) + tl.sum(codes_1 * codes_1, 1)).to(tl.float32)) * wide
            # Sum, root and product are off by less than 2^-20 of the norm: the bound stays one.
            broken_norm = tl.max(tl.where(broken, 1, 0), 0) > 0
            bound = tl.max(tl.where(broken, 0.0, norm), 0) * (1.0 + 2.0**-20)
            tl.store(v_norm_ptr + here, tl.where(broken_norm, float("inf"), bound))


@triton.jit
def copy_blocks_kernel(data_ptr, copies_ptr, tail_of_ptr, block_words, TAILS: tl.constexpr, BLOCK: tl.constexpr):
    """Copies 4-byte words of a block (or of its tail) to another."""
    source = tl.load(copies_ptr + 2 * tl.program_id(0))
    target = tl.load(copies_ptr + 2 * tl.program_id(0) + 1)
    if (source >= 0) & (target >= 0):
        if TAILS:
            source = tl.load(tail_of_ptr + source)
            target = tl.load(tail_of_ptr + target)
        if (source >= 0) & (target >= 0):
            word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            live = word < block_words
            data = tl.load(data_ptr + source.to(tl.int64) * block_words + word, mask=live)
            tl.store(data_ptr + target.to(tl.int64) * block_words + word, data, mask=live)


def quantize_blocks(kv: Int8KV, blocks: torch.Tensor) -> None:
    """Writes the int8 form of full `blocks` int32 `[n]` from their tails.

    Entries of -1 and blocks without a tail do nothing.
    """
    check_device(v=kv.v, blocks=blocks)
    check_tensor("blocks", blocks, dtypes=(torch.int32,), shape=(None,), contiguous=True)
    half = kv.head_dim // 2
    arguments = {f"{name}_ptr": getattr(kv, name) for name in (*_PARTS, "tail_k", "tail_v", "tail_of")}
    arguments |= {"blocks_ptr": blocks, "kv_heads": kv.kv_heads}
    constants = {"HALF": half, "HALF_PADDED": max(16, power_of_two(half)), "BLOCK_SIZE": BLOCK_SIZE}
    launch(quantize_blocks_kernel, (blocks.shape[0], kv.kv_heads), arguments, constants, Options(4, 1))


def quantize_blocks_ref(kv: Int8KV, blocks: torch.Tensor) -> None:
    """The formula of the module, block by block."""
    half = kv.head_dim // 2
    for block in blocks.tolist():
        tail = int(kv.tail_of[block]) if block >= 0 else -1
        if tail < 0:
            continue
        k, v = kv.tail_k[tail].float(), kv.tail_v[tail].float()
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


def _codes_ref(x: torch.Tensor, lo: torch.Tensor | float, step: torch.Tensor, least: int, most: int) -> torch.Tensor:
    code = (0.5 * x - 0.5 * lo) / (0.5 * torch.where(step > 0, step, 1.0))
    return code.round().clamp(least, most).to(torch.int32)


def copy_blocks(kv: PagedKV, copies: torch.Tensor) -> None:
    """Copies blocks: `copies` int32 `[C, 2]` of (source, target); a pair with -1 is skipped. No target is a source.

    Of an int8 cache both forms go: the tail where source and target have one.
    """
    check_device(v=kv.v, copies=copies)
    check_tensor("copies", copies, dtypes=(torch.int32,), shape=(None, 2), contiguous=True)
    for name in ("k", "v") if isinstance(kv, FloatKV) else _PARTS:
        _copy(getattr(kv, name), copies, None)
    if isinstance(kv, Int8KV):
        _copy(kv.tail_k, copies, kv.tail_of)
        _copy(kv.tail_v, copies, kv.tail_of)


def _copy(data: torch.Tensor, copies: torch.Tensor, tail_of: torch.Tensor | None) -> None:
    words = data.view(data.shape[0], -1).view(torch.int32)
    block = min(4096, power_of_two(words.shape[1]))
    arguments = {"data_ptr": words, "copies_ptr": copies, "tail_of_ptr": tail_of, "block_words": words.shape[1]}
    constants = {"TAILS": tail_of is not None, "BLOCK": block}
    grid = (copies.shape[0], ceil_div(words.shape[1], block))
    launch(copy_blocks_kernel, grid, arguments, constants, Options(4, 1))


def copy_blocks_ref(kv: PagedKV, copies: torch.Tensor) -> None:
    """As `copy_blocks`, in plain torch."""
    pairs = copies[(copies >= 0).all(1)].long()
    for name in ("k", "v") if isinstance(kv, FloatKV) else _PARTS:
        data = getattr(kv, name)
        data[pairs[:, 1]] = data[pairs[:, 0]]
    if isinstance(kv, Int8KV):
        tails = kv.tail_of[pairs].long()
        tails = tails[(tails >= 0).all(1)]
        for data in (kv.tail_k, kv.tail_v):
            data[tails[:, 1]] = data[tails[:, 0]]


def gather_keys_values(
    kv: PagedKV, block_table: torch.Tensor, length: int, tail_from: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[length, kv_heads, head_dim]` f32 of a sequence, in plain torch.

    Of an int8 cache the tokens from position `tail_from` on (a multiple of 32; None: all full blocks are int8) are read
    from their tails.
    """
    count = ceil_div(length, BLOCK_SIZE)
    blocks = block_table[:count].long()
    if isinstance(kv, FloatKV):
        k, v = kv.k[blocks].float(), kv.v[blocks].float()
    else:
        k, v = dequantize_blocks_ref(kv, blocks)
        first = (length if tail_from is None else tail_from) // BLOCK_SIZE
        for i in range(first, count):
            tail = int(kv.tail_of[blocks[i]])
            check(tail >= 0, f"block {int(blocks[i])} is read from its tail and has none: set tail_of")
            k[i], v[i] = kv.tail_k[tail].float(), kv.tail_v[tail].float()
    flat = (t.transpose(1, 2).reshape(count * BLOCK_SIZE, kv.kv_heads, kv.head_dim)[:length] for t in (k, v))
    return next(flat), next(flat)


def dequantize_blocks_ref(kv: Int8KV, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values f32 `[n, kv_heads, 32, head_dim]` of blocks in their int8 form."""
    high, low = kv.k_high[blocks].int(), kv.k_low[blocks].int()
    codes = torch.cat([((high & 0xF) << 4) | (low & 0xF), (high & 0xF0) | (low >> 4)], -1)
    k = kv.k_lo[blocks].float()[:, :, None] + kv.k_step[blocks].float()[:, :, None] * codes.float()
    return k, kv.v[blocks].float() * kv.v_scale[blocks].float()[..., None]


def _bfloat_below(x: torch.Tensor) -> torch.Tensor:
    """The largest bfloat16 that is at most x, as f32."""
    return -_bfloat_above(-x)


def _bfloat_above(x: torch.Tensor) -> torch.Tensor:
    """The smallest bfloat16 that is at least x, as f32."""
    bits = x.view(torch.int32)
    return (torch.where(x > 0, bits + 0xFFFF, bits) & ~0xFFFF).view(torch.float32)


def _check_head_dim(head_dim: int) -> None:
    wanted = f"wanted an even number up to {MAX_HEAD_DIM}"
    check(head_dim % 2 == 0 and 0 < head_dim <= MAX_HEAD_DIM, f"head_dim is {head_dim}, {wanted}")
