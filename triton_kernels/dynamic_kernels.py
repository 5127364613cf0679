"""Kernels of decodes that select blocks: scores of all keys, values of the selected blocks, combination and report."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import tanh

REPORT_FIELDS = tl.constexpr(6)


@triton.jit
def _dot_codes(x, codes, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """x [BLOCK_M, n] times integer codes [BLOCK_N, n] up to 256, in f32 or in two bfloat16 parts of x."""
    if EXACT:
        return tl.dot(x, tl.trans(codes.to(tl.float32)), input_precision=PRECISION)
    k = tl.trans(codes.to(tl.bfloat16))
    first = x.to(tl.bfloat16)
    second = (x - first.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(first, k, tl.dot(second, k))


@triton.jit
def _store_scores(qk, row_mask, token, scores_ptr, mass_ptr, at, BLOCK_SIZE: tl.constexpr):
    """Stores the scores of a block, exponents of two, and the logarithm of the sum of their powers. `at`: of rows."""
    tl.store(scores_ptr + at[:, None] * BLOCK_SIZE + token[None, :], qk, mask=row_mask[:, None])
    highest = tl.max(qk, 1)
    tl.store(mass_ptr + at, highest + tl.log2(tl.sum(tl.exp2(qk - highest[:, None]), 1)), mask=row_mask)


@triton.jit(do_not_specialize=["splits"])
def qk_kernel(
    q_ptr,
    k_ptr,
    k_high_ptr,
    k_low_ptr,
    k_lo_ptr,
    k_step_ptr,
    open_block_of_ptr,
    block_tables_ptr,
    lens_ptr,
    starts_ptr,
    scores_ptr,
    mass_ptr,
    open_reach_ptr,
    factor,
    cap,
    splits,
    q_token_stride,
    q_head_stride,
    table_stride,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per KV head and part of the blocks; one of them also scores the current block."""
    HALF: tl.constexpr = HEAD_DIM // 2
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    current_block = (context - 1) // BLOCK_SIZE
    share = (current_block + splits) // splits
    begin = split * share
    row = tl.arange(0, BLOCK_M)
    token = tl.arange(0, BLOCK_SIZE)
    channel = tl.arange(0, HALF_WIDTH)
    row_mask = row < GROUP
    live = channel < HALF
    q_row = q_ptr + sequence.to(tl.int64) * q_token_stride + (head * GROUP + row) * q_head_stride
    q_mask = row_mask[:, None] & live[None, :]
    q_0 = tl.load(q_row[:, None] + channel[None, :], mask=q_mask, other=0.0)
    q_1 = tl.load(q_row[:, None] + HALF + channel[None, :], mask=q_mask, other=0.0)
    wide_0 = q_0.to(tl.float32)
    wide_1 = q_1.to(tl.float32)
    table = block_tables_ptr + sequence.to(tl.int64) * table_stride
    # Offsets of the rows in the workspace, for the sequence's first block.
    first_offset = tl.load(starts_ptr + sequence).to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + row
    for number in tl.range(begin, tl.minimum(begin + share, current_block)):
        block = tl.load(table + number).to(tl.int64) * KV_HEADS + head
        plane = (block * BLOCK_SIZE + token)[:, None] * HALF + channel[None, :]
        high = tl.load(k_high_ptr + plane, mask=live[None, :], other=0)
        low = tl.load(k_low_ptr + plane, mask=live[None, :], other=0)
        range_at = block * HEAD_DIM + channel
        lo_0 = tl.load(k_lo_ptr + range_at, mask=live, other=0.0).to(tl.float32)
        lo_1 = tl.load(k_lo_ptr + range_at + HALF, mask=live, other=0.0).to(tl.float32)
        step_0 = tl.load(k_step_ptr + range_at, mask=live, other=0.0).to(tl.float32)
        step_1 = tl.load(k_step_ptr + range_at + HALF, mask=live, other=0.0).to(tl.float32)
        base = tl.sum(wide_0 * lo_0[None, :] + wide_1 * lo_1[None, :], 1)
        qk = _dot_codes(wide_0 * step_0[None, :], ((high & 0xF) << 4) | (low & 0xF), PRECISION, EXACT)
        qk += _dot_codes(wide_1 * step_1[None, :], (high & 0xF0) | (low >> 4), PRECISION, EXACT)
        qk = (qk + base[:, None]) * factor
        if CAPPED:
            qk = tanh(qk) * cap
        at = first_offset + number * (KV_HEADS * GROUP)
        _store_scores(qk, row_mask, token, scores_ptr, mass_ptr, at, BLOCK_SIZE)
    if (current_block >= begin) & (current_block < begin + share):
        open_block = tl.load(open_block_of_ptr + tl.load(table + current_block)).to(tl.int64) * KV_HEADS + head
        seen = current_block * BLOCK_SIZE + token < context
        offset = (open_block * BLOCK_SIZE + token)[:, None] * HEAD_DIM + channel[None, :]
        k_mask = seen[:, None] & live[None, :]
        k_0 = tl.load(k_ptr + offset, mask=k_mask, other=0.0)
        k_1 = tl.load(k_ptr + offset + HALF, mask=k_mask, other=0.0)
        qk = tl.dot(q_0, tl.trans(k_0), input_precision=PRECISION)
        qk = tl.dot(q_1, tl.trans(k_1), qk, input_precision=PRECISION) * factor
        if CAPPED:
            qk = tanh(qk) * cap
        qk = tl.where(seen[None, :], qk, float("-inf"))
        _store_scores(
            qk,
            row_mask,
            token,
            scores_ptr,
            mass_ptr,
            first_offset + current_block.to(tl.int64) * (KV_HEADS * GROUP),
            BLOCK_SIZE,
        )
        max_0 = tl.max(tl.abs(k_0.to(tl.float32)), 0)
        max_1 = tl.max(tl.abs(k_1.to(tl.float32)), 0)
        reach = tl.sqrt(tl.sum(max_0 * max_0 + max_1 * max_1, 0)) * 1.001
        tl.store(open_reach_ptr + sequence * KV_HEADS + head, reach)


@triton.jit(do_not_specialize=["splits"])
def pv_kernel(
    v_ptr,
    v_codes_ptr,
    v_scale_ptr,
    open_block_of_ptr,
    block_tables_ptr,
    lens_ptr,
    starts_ptr,
    scores_ptr,
    selected_ptr,
    selected_counts_ptr,
    highest_ptr,
    partial_ptr,
    partial_sum_ptr,
    splits,
    table_stride,
    capacity,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per KV head and part of the selected blocks: sum of p v; the last one adds the current block."""
    BLOCK_N: tl.constexpr = PAGES * BLOCK_SIZE
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    current_block = (context - 1) // BLOCK_SIZE
    row = tl.arange(0, BLOCK_M)
    row_mask = row < GROUP
    key = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, WIDTH)
    stride = KV_HEADS * GROUP
    cell = sequence * KV_HEADS + head
    row_at = tl.load(starts_ptr + sequence).to(tl.int64) * stride + head * GROUP + row
    out_row = sequence.to(tl.int64) * stride + head * GROUP + row
    highest = tl.load(highest_ptr + out_row, mask=row_mask, other=0.0)
    table = block_tables_ptr + sequence.to(tl.int64) * table_stride
    chosen = selected_ptr + cell.to(tl.int64) * capacity
    entries = tl.load(selected_counts_ptr + cell)
    steps = (entries + PAGES - 1) // PAGES
    share = (steps + splits - 1) // splits
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    dtype = v_ptr.dtype.element_ty
    for step in tl.range(split * share, tl.minimum(split * share + share, steps)):
        entry = step * PAGES + key // BLOCK_SIZE
        inside = entry < entries
        number = tl.load(chosen + entry, mask=inside, other=0)
        block = tl.load(table + number, mask=inside, other=0).to(tl.int64) * KV_HEADS + head
        token_at = block * BLOCK_SIZE + key % BLOCK_SIZE
        v_mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
        v = tl.load(v_codes_ptr + token_at[:, None] * HEAD_DIM + channel[None, :], mask=v_mask, other=0)
        scale = tl.load(v_scale_ptr + token_at, mask=inside, other=0.0).to(tl.float32)
        score_at = (row_at[:, None] + number.to(tl.int64)[None, :] * stride) * BLOCK_SIZE + (key % BLOCK_SIZE)[None, :]
        live = row_mask[:, None] & inside[None, :]
        p = tl.exp2(tl.load(scores_ptr + score_at, mask=live, other=float("-inf")) - highest[:, None])
        total += tl.sum(p, 1)
        acc = tl.dot((p * scale[None, :]).to(dtype), v.to(dtype), acc, input_precision=PRECISION)
    if split == splits - 1:
        token = tl.arange(0, BLOCK_SIZE)
        open_block = tl.load(open_block_of_ptr + tl.load(table + current_block)).to(tl.int64) * KV_HEADS + head
        seen = current_block * BLOCK_SIZE + token < context
        v_at = (open_block * BLOCK_SIZE + token)[:, None] * HEAD_DIM + channel[None, :]
        v = tl.load(v_ptr + v_at, mask=seen[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)
        score_at = (row_at + current_block.to(tl.int64) * stride)[:, None] * BLOCK_SIZE + token[None, :]
        qk = tl.load(scores_ptr + score_at, mask=row_mask[:, None], other=float("-inf"))
        p = tl.exp2(qk - highest[:, None])
        total += tl.sum(p, 1)
        acc = tl.dot(p.to(dtype), v, acc, input_precision=PRECISION)
    part = out_row * splits + split
    tl.store(partial_sum_ptr + part, total, mask=row_mask)
    live = row_mask[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], acc, mask=live)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    out_ptr,
    lens_ptr,
    selected_counts_ptr,
    omitted_ptr,
    max_v_norm_ptr,
    partial_ptr,
    partial_sum_ptr,
    report_ptr,
    splits,
    out_token_stride,
    out_head_stride,
    report_stride,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    VALUE_BYTES: tl.constexpr,
):
    """One program per sequence and KV head: adds the parts in order, and updates the report."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    current_block = (context - 1) // BLOCK_SIZE
    group = tl.arange(0, GROUP_PADDED)
    channel = tl.arange(0, WIDTH)
    live = group < GROUP
    out_mask = live[:, None] & (channel < HEAD_DIM)[None, :]
    row = sequence.to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + group
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    acc = tl.zeros((GROUP_PADDED, WIDTH), tl.float32)
    for split in tl.range(0, splits):
        part = row * splits + split
        total += tl.load(partial_sum_ptr + part, mask=live, other=1.0)
        acc += tl.load(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], mask=out_mask, other=0.0)
    out = acc / total[:, None]
    to = sequence.to(tl.int64) * out_token_stride + (head * GROUP + group)[:, None] * out_head_stride + channel[None, :]
    tl.store(out_ptr + to, out.to(out_ptr.dtype.element_ty), mask=out_mask)
    cell = sequence * KV_HEADS + head
    left = current_block - tl.load(selected_counts_ptr + cell)
    if left > 0:
        omitted = tl.load(omitted_ptr + row, mask=live, other=0.0)
        norm = tl.sqrt(tl.sum(tl.where(out_mask, out * out, 0.0), 1))
        error = omitted * (tl.load(max_v_norm_ptr + cell) + norm) * 1.001
        # The cell is this program's alone; layers follow each other.
        report = report_ptr + sequence * report_stride + head * REPORT_FIELDS
        tl.store(report, tl.load(report) + GROUP)
        tl.store(report + 1, tl.load(report + 1) + left)
        tl.store(report + 2, tl.load(report + 2) + left.to(tl.float32) * VALUE_BYTES)
        tl.store(report + 3, tl.maximum(tl.load(report + 3), tl.max(omitted)))
        tl.store(report + 4, tl.load(report + 4) + tl.sum(omitted))
        tl.store(report + 5, tl.maximum(tl.load(report + 5), tl.max(tl.where(live, error, 0.0))))
