"""RMS norm of rows, with the residual sum before it and int8 quantisation after it.

    r = residual + x  (where a residual is given)          y = r / sqrt(mean(r^2) + eps) * (weight + offset)

`offset` is 1 for families that store weight - 1. All sums are f32 and y is rounded once. r is rounded to the residual's
dtype where it is stored; the norm is of the unrounded sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import FLOATS, Options, ceil_div, check, check_device, check_tensor, launch, power_of_two
from .numerics import quantize_last
from .quantize import GROUP, quantize_rows_ref

MAX_COLUMNS = 1 << 15
"""A row is held in registers; more columns than this would spill."""

VALUES_PER_PROGRAM = 2048
"""Short rows (a norm per head) are taken together up to this many values."""


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    rows,
    inner,
    columns,
    x_outer,
    x_inner,
    y_outer,
    y_inner,
    residual_stride,
    eps,
    offset,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """A program takes ROWS rows; row i lies at (i // inner, i % inner) of x and y."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows)[:, None] & (column < columns)
    at = (row // inner * x_outer + row % inner * x_inner)[:, None] + column
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        residual_at = residual_ptr + row[:, None] * residual_stride + column
        x += tl.load(residual_at, mask=live, other=0.0).to(tl.float32)
        tl.store(residual_at, x.to(residual_ptr.dtype.element_ty), mask=live)
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32) + offset
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) / columns + eps)
    y = x * inverse[:, None] * weight
    to = (row // inner * y_outer + row % inner * y_inner)[:, None] + column
    tl.store(y_ptr + to, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def rms_norm_quantize_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    codes_ptr,
    scales_ptr,
    columns,
    groups,
    x_stride,
    residual_stride,
    eps,
    offset,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """A program takes a row as `[GROUPS, GROUP]`."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    live = column < columns
    x = tl.load(x_ptr + row * x_stride + column, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        residual_at = residual_ptr + row * residual_stride + column
        x += tl.load(residual_at, mask=live, other=0.0).to(tl.float32)
        tl.store(residual_at, x.to(residual_ptr.dtype.element_ty), mask=live)
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32) + offset
    inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(x * x, 1), 0) / columns + eps)
    codes, scale = quantize_last(x * inverse * weight)
    tl.store(codes_ptr + row * columns + column, codes, mask=live)
    tl.store(scales_ptr + row * groups + group, scale, mask=group < groups)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The norm of `x` `[T, N]` or `[T, H, N]` along its last dimension, in x's dtype.

    Outer strides are free, so the query heads of a fused projection can be normalised where they are (`out=x`). With
    `residual` (`[T, N]`, any float dtype, only for two dimensions) the result is (y, residual), residual updated in
    place to residual + x.
    """
    check_device(x=x, weight=weight, residual=residual, out=out)
    columns = _check(x, weight, residual, dims=(2, 3))
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    check_tensor("out", out, dtypes=FLOATS, shape=tuple(x.shape))
    inner = x.shape[1] if x.dim() == 3 else 1
    rows = x.shape[0] * inner
    block = power_of_two(columns)
    together = max(1, VALUES_PER_PROGRAM // block)
    arguments = {
        "x_ptr": x,
        "residual_ptr": residual,
        "weight_ptr": weight,
        "y_ptr": out,
        "rows": rows,
        "inner": max(1, inner),
        "columns": columns,
        "x_outer": x.stride(0),
        "x_inner": x.stride(1) if x.dim() == 3 else 0,
        "y_outer": out.stride(0),
        "y_inner": out.stride(1) if x.dim() == 3 else 0,
        "residual_stride": residual.stride(0) if residual is not None else 0,
        "eps": eps,
        "offset": offset,
    }
    constants = {"ROWS": together, "BLOCK": block, "RESIDUAL": residual is not None}
    launch(rms_norm_kernel, (ceil_div(rows, together),), arguments, constants, _options(together * block))
    return out if residual is None else (out, residual)


def rms_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
    group: int | None = GROUP,
) -> tuple[torch.Tensor, ...]:
    """`rms_norm`, then `quantize_rows` of the unrounded result: (codes, scales) or (codes, scales, residual)."""
    device = check_device(x=x, weight=weight, residual=residual)
    columns = _check(x, weight, residual, dims=(2,))
    check(group in (GROUP, None), f"group is {group}, wanted {GROUP} or None")
    rows = x.shape[0]
    groups = ceil_div(columns, GROUP) if group else 1
    width = GROUP if group else power_of_two(columns)
    codes = torch.empty(rows, columns, dtype=torch.int8, device=device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=device)
    arguments = {
        "x_ptr": x,
        "residual_ptr": residual,
        "weight_ptr": weight,
        "codes_ptr": codes,
        "scales_ptr": scales,
        "columns": columns,
        "groups": groups,
        "x_stride": x.stride(0),
        "residual_stride": residual.stride(0) if residual is not None else 0,
        "eps": eps,
        "offset": offset,
    }
    constants = {"GROUPS": power_of_two(groups), "GROUP": width, "RESIDUAL": residual is not None}
    options = _options(constants["GROUPS"] * width)
    launch(rms_norm_quantize_kernel, (rows,), arguments, constants, options)
    return (codes, scales) if residual is None else (codes, scales, residual)


def rms_norm_ref(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: float = 0.0, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The formula of the module in f32. The residual given is left as it is; the sum is returned."""
    total = x.float() if residual is None else x.float() + residual.float()
    y = _normalised(total, weight, eps, offset).to(x.dtype)
    return y if residual is None else (y, total.to(residual.dtype))


def rms_norm_quantize_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
    group: int | None = GROUP,
) -> tuple[torch.Tensor, ...]:
    """As `rms_norm_quantize`, without changing the residual given."""
    total = x.float() if residual is None else x.float() + residual.float()
    codes, scales = quantize_rows_ref(_normalised(total, weight, eps, offset), group)
    return (codes, scales) if residual is None else (codes, scales, total.to(residual.dtype))


def _normalised(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (weight.float() + offset)


def _check(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, dims: tuple[int, ...]) -> int:
    check_tensor("x", x, dtypes=FLOATS)
    check(x.dim() in dims, f"x has {x.dim()} dimensions, wanted {' or '.join(map(str, dims))}")
    columns = x.shape[-1]
    check(0 < columns <= MAX_COLUMNS, f"x has {columns} columns, wanted 1 to {MAX_COLUMNS}")
    check_tensor("weight", weight, dtypes=FLOATS, shape=(columns,))
    if residual is not None:
        check(x.dim() == 2, "a residual needs x with 2 dimensions")
        check_tensor("residual", residual, dtypes=FLOATS, shape=tuple(x.shape))
    return columns


def _options(values: int) -> Options:
    """About 8 to 32 values a thread."""
    return Options(min(16, max(1, power_of_two(values) // 512)), 1)
