"""Kernels of `int8_matmul` and `int8_weight_matmul`: the product of a tile, and the sum of a split depth."""

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
    M,
    N,
    K,
    groups,
    x_stride,
    out_stride,
    INT8: tl.constexpr,
    GROUPED: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Computes tile `tile` of the output, or of one part of a split depth."""
    row_tiles = tl.cdiv(M, BLOCK_M)
    column_tiles = tl.cdiv(N, BLOCK_N)
    split = tile // (row_tiles * column_tiles)
    within = tile % (row_tiles * column_tiles)
    # Bands of GROUP_M tiles: neighbours share rows of x and of w in the L2 cache.
    band = within // (GROUP_M * column_tiles)
    band_rows = tl.minimum(row_tiles - band * GROUP_M, GROUP_M)
    row_0 = (band * GROUP_M + within % (GROUP_M * column_tiles) % band_rows) * BLOCK_M
    column_0 = within % (GROUP_M * column_tiles) // band_rows * BLOCK_N
    row = row_0 + tl.arange(0, BLOCK_M)
    column = column_0 + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLIT_K)
    first = split * share
    # Rows and columns beyond the end are computed from the last ones and not stored: no mask in the loop.
    x_row = x_ptr
    w_row = w_ptr
    if not DESCRIPTORS:
        x_row = x_ptr + tl.minimum(row, M - 1).to(tl.int64)[:, None] * x_stride
        w_row = w_ptr + tl.minimum(column, N - 1).to(tl.int64)[None, :] * K
    x_scale_row = x_scale_ptr
    if INT8:
        x_scale_row = x_scale_ptr + tl.minimum(row, M - 1) * groups
    w_scale_row = w_scale_ptr + tl.minimum(column, N - 1) * groups
    if INT8 and not GROUPED:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(first, tl.minimum(first + share, steps)):
        if DESCRIPTORS:
            x = x_ptr.load([row_0, step * BLOCK_K])
            w = w_ptr.load([column_0, step * BLOCK_K]).T
        else:
            k = step * BLOCK_K + inner
            if WHOLE_DEPTH:
                x = tl.load(x_row + k[None, :])
                w = tl.load(w_row + k[:, None])
            else:
                x = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0)
                w = tl.load(w_row + k[:, None], mask=(k < K)[:, None], other=0)
        if INT8 and GROUPED:
            group = step * BLOCK_K // GROUP
            scale = tl.load(x_scale_row + group)[:, None] * tl.load(w_scale_row + group).to(tl.float32)[None, :]
            acc += tl.dot(x, w, out_dtype=tl.int32).to(tl.float32) * scale
        elif INT8:
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        elif GROUPED:
            scale = tl.load(w_scale_row + step * BLOCK_K // GROUP).to(tl.float32)[None, :]
            acc += tl.dot(x, w.to(x.dtype), input_precision=PRECISION) * scale
        else:
            acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)
    y = acc
    if not GROUPED:
        scale = tl.load(w_scale_row).to(tl.float32)[None, :]
        if INT8:
            scale = tl.load(x_scale_row)[:, None] * scale
        y = acc.to(tl.float32) * scale
    live = (row < M)[:, None] & (column < N)[None, :]
    if SPLIT_K > 1:
        to = (split.to(tl.int64) * M + row)[:, None] * N + column[None, :]
        tl.store(out_ptr + to, y, mask=live)
    else:
        if BIAS:
            y += tl.load(bias_ptr + tl.minimum(column, N - 1)).to(tl.float32)[None, :]
        to = row.to(tl.int64)[:, None] * out_stride + column[None, :]
        tl.store(out_ptr + to, y.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M"])
def int8_matmul_kernel(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    groups,
    x_stride,
    out_stride,
    INT8: tl.constexpr,
    GROUPED: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program per tile; PERSISTENT: n programs take every n-th tile.

    `x_ptr` and `w_ptr` are tensor descriptors where DESCRIPTORS. Without INT8 x is a float tensor and has no scales.
    """
    if PERSISTENT:
        tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) * SPLIT_K
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
            _tile(
                tile, x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, M, N, K, groups,
                x_stride, out_stride, INT8, GROUPED, BIAS, SPLIT_K, WHOLE_DEPTH, DESCRIPTORS, PRECISION, BLOCK_M,
                BLOCK_N, BLOCK_K, GROUP_M,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, M, N, K, groups,
            x_stride, out_stride, INT8, GROUPED, BIAS, SPLIT_K, WHOLE_DEPTH, DESCRIPTORS, PRECISION, BLOCK_M, BLOCK_N,
            BLOCK_K, GROUP_M,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def add_splits_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    out_stride,
    SPLIT_K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the parts of BLOCK outputs of a row, from the first part to the last."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < N
    y = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT_K):
        y += tl.load(partial_ptr + (split * M.to(tl.int64) + row) * N + column, mask=live, other=0.0)
    if BIAS:
        y += tl.load(bias_ptr + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + column, y.to(out_ptr.dtype.element_ty), mask=live)
