"""The kernels of `int8_matmul` and `int8_weight_matmul`: one over tiles, one that adds the parts of a split depth."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import GROUP


@triton.jit
def _tile(
    tile,
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    depth,
    groups,
    x_stride,
    out_stride,
    INT8: tl.constexpr,
    GROUPED: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """Computes tile number `tile` of the output (of one part of the depth, where it is split)."""
    row_tiles = tl.cdiv(rows, ROWS)
    column_tiles = tl.cdiv(columns, COLUMNS)
    split = tile // (row_tiles * column_tiles)
    within = tile % (row_tiles * column_tiles)
    # Bands of BAND tiles high: neighbours share rows of x and of w in the L2 cache.
    band = within // (BAND * column_tiles)
    band_rows = tl.minimum(row_tiles - band * BAND, BAND)
    row_0 = (band * BAND + within % (BAND * column_tiles) % band_rows) * ROWS
    column_0 = within % (BAND * column_tiles) // band_rows * COLUMNS
    row = row_0 + tl.arange(0, ROWS)
    column = column_0 + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    steps = tl.cdiv(depth, DEPTH)
    share = tl.cdiv(steps, SPLITS)
    first = split * share
    # Rows and columns beyond the end are computed from the last ones and not stored: no mask in the loop.
    x_row = x_ptr
    w_row = w_ptr
    if not DESCRIPTORS:
        x_row = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_stride
        w_row = w_ptr + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * depth
    x_scale_row = x_scale_ptr
    if INT8:
        x_scale_row = x_scale_ptr + tl.minimum(row, rows - 1) * groups
    w_scale_row = w_scale_ptr + tl.minimum(column, columns - 1) * groups
    if INT8 and not GROUPED:
        acc = tl.zeros((ROWS, COLUMNS), tl.int32)
    else:
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(first, tl.minimum(first + share, steps)):
        if DESCRIPTORS:
            x = x_ptr.load([row_0, step * DEPTH])
            w = w_ptr.load([column_0, step * DEPTH]).T
        else:
            k = step * DEPTH + inner
            if WHOLE_DEPTH:
                x = tl.load(x_row + k[None, :])
                w = tl.load(w_row + k[:, None])
            else:
                x = tl.load(x_row + k[None, :], mask=(k < depth)[None, :], other=0)
                w = tl.load(w_row + k[:, None], mask=(k < depth)[:, None], other=0)
        if INT8 and GROUPED:
            group = step * DEPTH // GROUP
            scale = tl.load(x_scale_row + group)[:, None] * tl.load(w_scale_row + group).to(tl.float32)[None, :]
            acc += tl.dot(x, w, out_dtype=tl.int32).to(tl.float32) * scale
        elif INT8:
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        elif GROUPED:
            scale = tl.load(w_scale_row + step * DEPTH // GROUP).to(tl.float32)[None, :]
            acc += tl.dot(x, w.to(x.dtype), input_precision=PRECISION) * scale
        else:
            acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)
    y = acc
    if not GROUPED:
        scale = tl.load(w_scale_row).to(tl.float32)[None, :]
        if INT8:
            scale = tl.load(x_scale_row)[:, None] * scale
        y = acc.to(tl.float32) * scale
    live = (row < rows)[:, None] & (column < columns)[None, :]
    if SPLITS > 1:
        to = (split.to(tl.int64) * rows + row)[:, None] * columns + column[None, :]
        tl.store(out_ptr + to, y, mask=live)
    else:
        if BIAS:
            y += tl.load(bias_ptr + tl.minimum(column, columns - 1)).to(tl.float32)[None, :]
        to = row.to(tl.int64)[:, None] * out_stride + column[None, :]
        tl.store(out_ptr + to, y.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def int8_matmul_kernel(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    depth,
    groups,
    x_stride,
    out_stride,
    INT8: tl.constexpr,
    GROUPED: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """A program takes a tile, or where PERSISTENT every n-th tile of n programs.

    `x_ptr` and `w_ptr` are tensor descriptors where DESCRIPTORS. Without INT8 x is a float tensor and has no scales.
    """
    if PERSISTENT:
        tiles = tl.cdiv(rows, ROWS) * tl.cdiv(columns, COLUMNS) * SPLITS
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
            _tile(
                tile, x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, rows, columns, depth, groups,
                x_stride, out_stride, INT8, GROUPED, BIAS, SPLITS, WHOLE_DEPTH, DESCRIPTORS, PRECISION, ROWS, COLUMNS,
                DEPTH, BAND,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, rows, columns, depth, groups,
            x_stride, out_stride, INT8, GROUPED, BIAS, SPLITS, WHOLE_DEPTH, DESCRIPTORS, PRECISION, ROWS, COLUMNS,
            DEPTH, BAND,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def add_splits_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    out_stride,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the parts of BLOCK outputs of a row, from the first part to the last."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < columns
    y = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(partial_ptr + (split * rows.to(tl.int64) + row) * columns + column, mask=live, other=0.0)
    if BIAS:
        y += tl.load(bias_ptr + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + column, y.to(out_ptr.dtype.element_ty), mask=live)
