"""Dynamic int8 quantisation of rows, symmetric, one scale per row and group of columns.

    scale[t, g] = max over the group of |x| / 127          code[t, k] = round(x[t, k] / scale[t, g]), ties to even

Codes are in -127..127. With `rotated`, x is first rotated group by group (rotation.py).
A group of zeros has the scale 0, a group with NaN or an infinity the scale NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two
from .numerics import divide, quantize_last, round_even
from .rotation import hadamard, rotate_ref, signs

GROUP = 128
"""The only group length, as in octavo's CPU kernels."""

MANY_GROUPS = 4096
"""From here on a program takes several groups; below, more programs are worth more."""

BLOCK = 4096
"""Columns that a program takes at a time where a row has one scale."""


@triton.jit(do_not_specialize=["rows"])
def quantize_groups_kernel(
    x_ptr,
    signs_ptr,
    codes_ptr,
    scales_ptr,
    rows,
    columns,
    groups,
    x_stride,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTATED: tl.constexpr,
):
    """A program takes BLOCK groups, counted over all rows. Rotated codes fill whole groups."""
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = (group // groups).to(tl.int64)
    column = (group % groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    live = (row < rows)[:, None] & (column < columns)
    x = tl.load(x_ptr + row[:, None] * x_stride + column, mask=live, other=0.0).to(tl.float32)
    if ROTATED:
        sign = tl.load(signs_ptr + tl.arange(0, GROUP))
        codes, scale = quantize_last(hadamard(x * sign[None, :], BLOCK))
        tl.store(codes_ptr + row[:, None] * (groups * GROUP) + column, codes, mask=(row < rows)[:, None])
    else:
        codes, scale = quantize_last(x)
        tl.store(codes_ptr + row[:, None] * columns + column, codes, mask=live)
    tl.store(scales_ptr + group, scale, mask=row < rows)


@triton.jit
def quantize_rows_kernel(x_ptr, codes_ptr, scales_ptr, columns, x_stride, BLOCK: tl.constexpr):
    """A program takes a row and reads it twice: a long one would not fit the registers."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((), 0.0, tl.float32)
    broken = tl.full((), 0, tl.int32)
    for start in tl.range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_stride + column, mask=column < columns, other=0.0).to(tl.float32)
        finite = tl.abs(x) <= 3.4028234663852886e38
        largest = tl.maximum(largest, tl.max(tl.where(finite, tl.abs(x), 0.0), 0))
        broken = tl.maximum(broken, tl.max(tl.where(finite, 0, 1), 0))
    empty = largest < 1e-35
    inverse = tl.where(empty, 0.0, divide(127.0, tl.where(empty, 1.0, largest)))
    inverse = tl.where(broken > 0, 0.0, inverse)
    for start in tl.range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_stride + column, mask=column < columns, other=0.0).to(tl.float32)
        x = tl.where(tl.abs(x) <= 3.4028234663852886e38, x, 0.0)
        tl.store(codes_ptr + row * columns + column, round_even(x * inverse).to(tl.int8), mask=column < columns)
    scale = tl.where(empty, 0.0, divide(largest, tl.zeros_like(largest) + 127.0))
    tl.store(scales_ptr + row, tl.where(broken > 0, float("nan"), scale))


def quantize_rows(
    x: torch.Tensor, group: int | None = GROUP, *, rotated: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 `[T, K]` and scales f32 `[T, ceil(K / group)]` (`[T, 1]` for group None) of `x` `[T, K]`.

    x is bf16, f16 or f32; its rows may lie at any distance. `group` is 128 or None. With `rotated`, which needs a
    group, codes are `[T, 128 ceil(K / 128)]`.
    """
    check_device(x=x)
    check_tensor("x", x, dtypes=FLOATS, shape=(None, None))
    check(group in (GROUP, None), f"group is {group}, wanted {GROUP} or None")
    rows, columns = x.shape
    check(columns > 0, "x has no columns")
    check(group is not None or not rotated, "rotated is True and group None: a rotation needs groups of 128")
    groups = ceil_div(columns, GROUP) if group else 1
    codes = torch.empty(rows, groups * GROUP if rotated else columns, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    arguments = {"x_ptr": x, "codes_ptr": codes, "scales_ptr": scales, "columns": columns, "x_stride": x.stride(0)}
    if group:
        block = 8 if rows * groups >= MANY_GROUPS else 1
        arguments |= {"rows": rows, "groups": groups, "signs_ptr": signs(x.device)}
        grid = (ceil_div(rows * groups, block),)
        constants = {"GROUP": GROUP, "BLOCK": block, "ROTATED": rotated}
        launch(quantize_groups_kernel, grid, arguments, constants, Options(4 if block > 1 else 1, 1))
        return codes, scales
    block = min(BLOCK, power_of_two(columns))
    launch(quantize_rows_kernel, (rows,), arguments, {"BLOCK": block}, Options(min(16, max(1, block // 512)), 1))
    return codes, scales


def quantize_rows_ref(
    x: torch.Tensor, group: int | None = GROUP, *, rotated: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of the module, group by group."""
    x = rotate_ref(x) if rotated else x
    rows, columns = x.shape
    width = group or columns
    groups = ceil_div(columns, width)
    padded = torch.zeros(rows, groups * width, dtype=torch.float32, device=x.device)
    padded[:, :columns] = x
    parts = padded.view(rows, groups, width)
    finite = parts.isfinite().all(-1)
    largest = torch.where(finite, parts.nan_to_num().abs().amax(-1), 0.0)
    empty = largest < 1e-35
    scales = torch.where(empty, 0.0, largest / 127.0)
    scales = torch.where(finite, scales, torch.nan)
    inverse = torch.where(empty, 0.0, 127.0 / torch.where(empty, 1.0, largest))
    codes = torch.round(parts.nan_to_num() * inverse[..., None]).to(torch.int8)
    return codes.view(rows, groups * width)[:, :columns].contiguous(), scales


def quantize_weight(w: torch.Tensor, group: int | None = GROUP) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `[N, K]` as int8 codes and scales `[N, G]`: the same rule as for activations. Done once, at load."""
    return quantize_rows(w, group)


def dequantize_ref(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """code * scale in f32; one group: its length is the row."""
    groups = scales.shape[1]
    wide = scales.float() if groups == 1 else scales.float().repeat_interleave(GROUP, 1)[:, : codes.shape[1]]
    return codes.float() * wide
