"""Projections y = x W^T + b, in floats or with int8 weights and activations.

int8 follows the CPU's rule: symmetric codes, one bfloat16 scale per row and group of 128 columns of W, rounded up: no
code is clamped. Activations are quantised per row and group. Both are rotated first, group by group, except where codes
come from the checkpoint. Sums are exact integers in a group, f32 across groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch.nn import functional

from octavo.gpu.ops import Ops
from octavo.triton_kernels.rotation import rotate_back_ref, rotate_ref

GROUP = 128
ROWS = 64
"""Rows of the one matmul shape that deterministic mode uses."""

Linear: TypeAlias = "FloatLinear | Int8Linear"


@dataclass(frozen=True)
class FloatLinear:
    """`weight` `[N, K]`, `bias` `[N]`. With `fixed_rows` every product has the same shape: batch-invariant rows."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    fixed_rows: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[M, K]` in any float dtype to `[M, N]` in the weight's."""
        x = x.to(self.weight.dtype)
        if not self.fixed_rows:
            return functional.linear(x, self.weight, self.bias)
        count = x.shape[0]
        padded = functional.pad(x, (0, 0, 0, -count % ROWS))
        tiles = [functional.linear(tile, self.weight, self.bias) for tile in padded.split(ROWS)]
        return torch.cat(tiles)[:count]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight: `[len(ids), K]`."""
        return functional.embedding(ids, self.weight)

    def wide(self, start: int, end: int) -> torch.Tensor:
        """Rows `start` to `end` of the weight, f32."""
        return self.weight[start:end].float()

    @property
    def shape(self) -> tuple[int, int]:
        """Columns of the result and of x."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def bytes(self) -> int:
        return _bytes(self.weight, self.bias)


@dataclass(frozen=True)
class Int8Linear:
    """`codes` int8 `[N, K]`, `scales` bfloat16 `[N, ceil(K / 128)]`, `bias` `[N]` in `dtype`.

    Rotated codes are `[N, 128 ceil(K / 128)]`; `columns` is K.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    dtype: torch.dtype
    columns: int
    rotated: bool
    ops: Ops = field(repr=False)
    deterministic: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[M, K]` in any float dtype to `[M, N]` in `dtype`."""
        codes, scales = self.ops.quantize_rows(x, rotated=self.rotated)
        y: torch.Tensor = self.ops.int8_matmul(
            codes, scales, self.codes, self.scales, self.bias, self.dtype, deterministic=self.deterministic
        )
        return y

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight: `[len(ids), K]`."""
        index = ids.long()
        return self._values(self.codes[index], self.scales[index]).to(self.dtype)

    def wide(self, start: int, end: int) -> torch.Tensor:
        """Rows `start` to `end` of the weight, f32."""
        return self._values(self.codes[start:end], self.scales[start:end])

    def _values(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        values = dequantize(codes, scales)
        return rotate_back_ref(values, self.columns) if self.rotated else values

    @property
    def shape(self) -> tuple[int, int]:
        """Columns of the result and of x."""
        return self.codes.shape[0], self.columns

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def bytes(self) -> int:
        return _bytes(self.codes, self.scales, self.bias)


def quantize(weight: torch.Tensor, *, rotated: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 and scales bfloat16 of `weight` `[N, K]`. A group with NaN or an infinity gets the scale NaN."""
    weight = rotate_ref(weight) / GROUP if rotated else weight
    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    parts = functional.pad(weight.float(), (0, groups * GROUP - columns)).view(rows, groups, GROUP)
    largest = parts.abs().amax(-1)
    scales = _round_up(largest / 127.0)
    # Too small for codes: the group counts as zero.
    scales = torch.where(largest < 256 * torch.finfo(torch.float32).tiny, 0.0, scales)
    wide = torch.where(scales > 0, scales, 1.0)[..., None]
    codes = (parts / wide).round().clamp(-127, 127)
    codes = torch.where(((scales > 0) & scales.isfinite())[..., None], codes, 0.0)
    scales = torch.where(parts.isfinite().all(-1), scales, torch.nan)
    return codes.to(torch.int8).view(rows, -1)[:, :columns].contiguous(), scales.to(torch.bfloat16)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """code * scale in f32 `[N, K]`."""
    return codes.float() * scales.float().repeat_interleave(GROUP, -1)[..., : codes.shape[-1]]


def _round_up(x: torch.Tensor) -> torch.Tensor:
    """The smallest bfloat16 that is not below x >= 0, as f32."""
    bits = x.view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _bytes(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
