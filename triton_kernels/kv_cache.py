"""The paged KV cache of one layer: float blocks, int8 blocks, and the open blocks of an int8 cache.

A block holds 32 tokens. `FloatKV` keeps every block in the model's dtype, as `[num_blocks, kv_heads, 32, head_dim]`.
`Int8KV` keeps full (sealed) blocks as int8. A block that is not full is open: its keys and values stay in the model's
dtype in a small second pool (KIVI calls this part the residual).

    key[t, c]   = k_lo[c] + k_step[c] * code[t, c]     code = 16 * high + low in 0..255, per channel of the block
    value[t, c] = v[t, c] * v_scale[t]                 int8, per token

One int8 block of one KV head, d = head_dim, h = d / 2. Key codes lie in two planes of nibbles: a reader may stop after
the high plane.

    byte j of a token      bits 7..4                     bits 3..0
    k_high u8 [32, h]    | high nibble of channel j+h  | high nibble of channel j |
    k_low  u8 [32, h]    | low nibble of channel j+h   | low nibble of channel j  |
    k_lo, k_step bf16 [d]      v i8 [32, d]      v_scale bf16 [32]      k_reach, v_norm f32 [1]

`k_lo` is the largest bfloat16 not above the minimum of the channel. `k_step` is the smallest bfloat16 with which 255
steps reach its maximum: no code is clamped. Error bounds use two upper bounds: `v_norm` of the norms of the stored
values, and `k_reach` of the norm of |k_lo| + 255 k_step. Codes and scales are bit-identical to octavo's CPU kernels.

    block_tables[s]      | 7 | 2 | 9 |        sealed, sealed, open (block numbers of sequence s)
                                   |
    open_block_of[9] --------------+--> 4     open_k[4], open_v[4]: [kv_heads, 32, head_dim] each

A query at position p reads block p // 32 from its open block and every earlier block as int8, in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .launch import FLOATS, ceil_div, check, check_tensor

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
        """A cache of zeros: unused slots hold no NaN."""
        shape = (num_blocks, kv_heads, BLOCK_SIZE, head_dim)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    @staticmethod
    def block_bytes(kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of a block of one layer."""
        return 2 * kv_heads * BLOCK_SIZE * head_dim * dtype.itemsize

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """Kernel arguments of the cache; None for arrays that only an int8 cache has."""
        codes = ("k_high_ptr", "k_low_ptr", "k_lo_ptr", "k_step_ptr", "v_codes_ptr", "v_scale_ptr", "open_block_of_ptr")
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
    """Sealed blocks as int8, open blocks as floats in `open_k`, `open_v` `[num_open_blocks, kv_heads, 32, head_dim]`.

    `open_block_of` int32 `[num_blocks]`: the open block of a block, -1: none. The executor writes it; layers share it.
    """

    k_high: torch.Tensor
    k_low: torch.Tensor
    k_lo: torch.Tensor
    k_step: torch.Tensor
    k_reach: torch.Tensor
    v: torch.Tensor
    v_scale: torch.Tensor
    v_norm: torch.Tensor
    open_k: torch.Tensor
    open_v: torch.Tensor
    open_block_of: torch.Tensor

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
        check_tensor("open_k", self.open_k, dtypes=FLOATS, shape=(None, heads, BLOCK_SIZE, dim), contiguous=True)
        open_blocks = tuple(self.open_k.shape)
        check_tensor("open_v", self.open_v, dtypes=(self.open_k.dtype,), shape=open_blocks, contiguous=True)
        check_tensor("open_block_of", self.open_block_of, dtypes=(torch.int32,), shape=(blocks,), contiguous=True)

    @classmethod
    def empty(
        cls,
        num_blocks: int,
        num_open_blocks: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        open_block_of: torch.Tensor | None = None,
    ) -> Int8KV:
        """A cache of zeros. `dtype`: of open blocks. Without `open_block_of` no block has an open block."""

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        if open_block_of is None:
            open_block_of = torch.full((num_blocks,), -1, dtype=torch.int32, device=device)
        page = (num_blocks, kv_heads, BLOCK_SIZE)
        open_block = (num_open_blocks, kv_heads, BLOCK_SIZE, head_dim)
        return cls(
            k_high=zeros(*page, head_dim // 2, dtype=torch.uint8),
            k_low=zeros(*page, head_dim // 2, dtype=torch.uint8),
            k_lo=zeros(num_blocks, kv_heads, head_dim, dtype=torch.bfloat16),
            k_step=zeros(num_blocks, kv_heads, head_dim, dtype=torch.bfloat16),
            k_reach=zeros(num_blocks, kv_heads, dtype=torch.float32),
            v=zeros(*page, head_dim, dtype=torch.int8),
            v_scale=zeros(*page, dtype=torch.bfloat16),
            v_norm=zeros(num_blocks, kv_heads, dtype=torch.float32),
            open_k=zeros(*open_block, dtype=dtype),
            open_v=zeros(*open_block, dtype=dtype),
            open_block_of=open_block_of,
        )

    @staticmethod
    def block_bytes(kv_heads: int, head_dim: int) -> int:
        """Bytes of a sealed block of one layer, without its entry in `open_block_of`."""
        return kv_heads * (2 * BLOCK_SIZE * head_dim + 4 * head_dim + 2 * BLOCK_SIZE + 8)

    @staticmethod
    def value_bytes(kv_heads: int, head_dim: int) -> int:
        """Part of `block_bytes` for values and their scales."""
        return kv_heads * BLOCK_SIZE * (head_dim + 2)

    @staticmethod
    def open_block_bytes(kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of an open block of one layer."""
        return FloatKV.block_bytes(kv_heads, head_dim, dtype)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """Kernel arguments of the cache: `k_ptr` and `v_ptr` are the open blocks."""
        return {
            "k_ptr": self.open_k,
            "v_ptr": self.open_v,
            "k_high_ptr": self.k_high,
            "k_low_ptr": self.k_low,
            "k_lo_ptr": self.k_lo,
            "k_step_ptr": self.k_step,
            "v_codes_ptr": self.v,
            "v_scale_ptr": self.v_scale,
            "open_block_of_ptr": self.open_block_of,
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
        return self.open_k.dtype

    @property
    def device(self) -> torch.device:
        return self.v.device


PagedKV = FloatKV | Int8KV


def gather_keys_values(
    kv: PagedKV, block_table: torch.Tensor, length: int, open_from: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[length, kv_heads, head_dim]` f32 of a sequence, in plain torch.

    Of an int8 cache the tokens from position `open_from` on (a multiple of 32; None: only the block that is not full)
    come from open blocks.
    """
    count = ceil_div(length, BLOCK_SIZE)
    blocks = block_table[:count].long()
    if isinstance(kv, FloatKV):
        k, v = kv.k[blocks].float(), kv.v[blocks].float()
    else:
        k, v = dequantize_blocks_ref(kv, blocks)
        first = (length if open_from is None else open_from) // BLOCK_SIZE
        for i in range(first, count):
            open_block = int(kv.open_block_of[blocks[i]])
            check(
                open_block >= 0, f"block {int(blocks[i])} is read from its open block and has none: set open_block_of"
            )
            k[i], v[i] = kv.open_k[open_block].float(), kv.open_v[open_block].float()
    flat = (t.transpose(1, 2).reshape(count * BLOCK_SIZE, kv.kv_heads, kv.head_dim)[:length] for t in (k, v))
    return next(flat), next(flat)


def dequantize_blocks_ref(kv: Int8KV, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values f32 `[n, kv_heads, 32, head_dim]` of blocks in their int8 form."""
    high, low = kv.k_high[blocks].int(), kv.k_low[blocks].int()
    codes = torch.cat([((high & 0xF) << 4) | (low & 0xF), (high & 0xF0) | (low >> 4)], -1)
    k = kv.k_lo[blocks].float()[:, :, None] + kv.k_step[blocks].float()[:, :, None] * codes.float()
    return k, kv.v[blocks].float() * kv.v_scale[blocks].float()[..., None]


def _check_head_dim(head_dim: int) -> None:
    wanted = f"wanted an even number up to {MAX_HEAD_DIM}"
    check(head_dim % 2 == 0 and 0 < head_dim <= MAX_HEAD_DIM, f"head_dim is {head_dim}, {wanted}")
