"""Kernels of `paged_attention`: attention of a tile of queries, and the combination of a split context."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import tanh


@triton.jit
def _online_softmax_update(
    qk,
    visible,
    v,
    v_scale,
    m_i,
    l_i,
    acc,
    factor,
    cap,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step of the online softmax: new (m_i, l_i, acc). `factor` or `cap` contains log2(e) for exp2."""
    s = qk * factor
    if CAPPED:
        s = tanh(s) * cap
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(s, 1))
    # A row that has seen no key yet keeps -inf, and must not compute -inf - -inf.
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - base[:, None])
    alpha = tl.exp2(m_i - base)
    l_i = l_i * alpha + tl.sum(p, 1)
    if SCALED:
        p = p * v_scale[None, :]
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return m_new, l_i, acc


@triton.jit
def _dequantize_keys(
    high, low, lo, step, SECOND: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr
):
    """Half of the channels of some blocks, `[BLOCK_N, WIDTH]`: low nibbles of the planes; SECOND: high nibbles."""
    if SECOND:
        codes = (high & 0xF0) | (low >> 4)
    else:
        codes = ((high & 0xF) << 4) | (low & 0xF)
    k = lo.to(tl.float32)[:, None, :] + step.to(tl.float32)[:, None, :] * codes.to(tl.float32)
    return tl.reshape(k.to(dtype), (BLOCK_N, WIDTH))


@triton.jit(do_not_specialize=["first_sequence", "sequences", "splits", "window"])
def paged_attention_kernel(
    q_ptr,
    out_ptr,
    partial_ptr,
    partial_m_ptr,
    partial_sum_ptr,
    k_ptr,
    v_ptr,
    k_high_ptr,
    k_low_ptr,
    k_lo_ptr,
    k_step_ptr,
    v_codes_ptr,
    v_scale_ptr,
    open_block_of_ptr,
    block_tables_ptr,
    query_start_ptr,
    context_lens_ptr,
    selected_ptr,
    selected_counts_ptr,
    factor,
    cap,
    window,
    first_sequence,
    sequences,
    splits,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    table_stride,
    capacity,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    SELECTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of queries of a sequence, KV head and part of the context."""
    HALF: tl.constexpr = HEAD_DIM // 2
    BLOCK_N: tl.constexpr = PAGES * BLOCK_SIZE
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    CURRENT_APART: tl.constexpr = INT8 or SELECTED
    head = tl.program_id(1)
    split = tl.program_id(2)
    if DECODE:
        sequence = tl.program_id(0)
        begin = sequence
        tile_query = 0
        length = 1
    else:
        # The longest contexts come last in a prefill: start with them.
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
        # Sequence s begins at tile (its first query) // QUERIES + s at the latest: enough room for all of its tiles.
        base = tl.load(query_start_ptr + first_sequence)
        low_end = 0
        high_end = sequences
        while high_end - low_end > 1:
            middle = (low_end + high_end) // 2
            start = tl.load(query_start_ptr + first_sequence + middle) - base
            if start // QUERIES + middle <= tile:
                low_end = middle
            else:
                high_end = middle
        sequence = first_sequence + low_end
        begin = tl.load(query_start_ptr + sequence)
        length = tl.load(query_start_ptr + sequence + 1) - begin
        tile_query = (tile - (begin - base) // QUERIES - low_end) * QUERIES
        if tile_query >= length:
            return
    context = tl.load(context_lens_ptr + sequence)
    first = context - length + tile_query
    last = tl.minimum(first + QUERIES, context) - 1

    row = tl.arange(0, BLOCK_M)
    query = tile_query + row // GROUP
    row_mask = (row < QUERIES * GROUP) & (query < length)
    position = context - length + query
    current_block = position // BLOCK_SIZE
    token_at = (begin + query).to(tl.int64)
    head_at = head * GROUP + row % GROUP
    q_row = q_ptr + token_at * q_token_stride + head_at * q_head_stride
    channel = tl.arange(0, WIDTH)
    half_channel = tl.arange(0, HALF_WIDTH)
    if INT8:
        half_mask = row_mask[:, None] & (half_channel < HALF)[None, :]
        q = tl.load(q_row[:, None] + half_channel[None, :], mask=half_mask, other=0.0)
        q_second = tl.load(q_row[:, None] + HALF + half_channel[None, :], mask=half_mask, other=0.0)
    else:
        q = tl.load(
            q_row[:, None] + channel[None, :], mask=row_mask[:, None] & (channel < HEAD_DIM)[None, :], other=0.0
        )
        q_second = q
    table = block_tables_ptr + sequence.to(tl.int64) * table_stride
    chosen = selected_ptr
    if SELECTED:
        chosen = selected_ptr + (sequence.to(tl.int64) * KV_HEADS + head) * capacity

    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, WIDTH), tl.float32)

    # The blocks of the first pass, and the steps (of PAGES blocks) that this program makes of them.
    if SELECTED:
        entries = tl.minimum(tl.load(selected_counts_ptr + sequence * KV_HEADS + head), capacity)
    elif INT8:
        entries = last // BLOCK_SIZE
    else:
        entries = (last + BLOCK_SIZE) // BLOCK_SIZE
    start_step = 0
    end_step = (entries + PAGES - 1) // PAGES
    if WINDOWED and not SELECTED:
        # A multiple of BLOCK_N: a key is in the same step for every query.
        start_step = tl.maximum(first - window + 1, 0) // BLOCK_N
    if SPLIT:
        share = (end_step - start_step + splits - 1) // splits
        start_step = start_step + split * share
        end_step = tl.minimum(end_step, start_step + share)
    if DECODE or WINDOWED or SELECTED:
        full_step = start_step
    elif CURRENT_APART:
        full_step = tl.minimum(first // BLOCK_SIZE // PAGES, end_step)
    else:
        full_step = tl.minimum((first + 1) // BLOCK_N, end_step)

    limit = context
    if CURRENT_APART:
        limit = last // BLOCK_SIZE * BLOCK_SIZE
    key = tl.arange(0, BLOCK_N)
    token = tl.arange(0, BLOCK_SIZE)
    page = tl.arange(0, PAGES)
    # First the steps that every row sees whole, then those that need masks.
    for masked in tl.static_range(2):
        if masked == 0:
            from_step = start_step
            to_step = full_step
        else:
            from_step = tl.maximum(start_step, full_step)
            to_step = end_step
        if masked == 1 or not (DECODE or WINDOWED or SELECTED):
            for step in tl.range(from_step, to_step):
                entry = step * PAGES + key // BLOCK_SIZE
                inside = entry < entries
                logical = entry
                if SELECTED:
                    logical = tl.load(chosen + entry, mask=inside, other=0)
                at = logical * BLOCK_SIZE + key % BLOCK_SIZE
                # Blocks after the last query's own may hold anything, its own has no int8 form yet.
                inside = inside & (at < limit)
                if INT8:
                    page_entry = step * PAGES + page
                    page_mask = page_entry < entries
                    page_logical = page_entry
                    if SELECTED:
                        page_logical = tl.load(chosen + page_entry, mask=page_mask, other=0)
                    page_mask = page_mask & (page_logical * BLOCK_SIZE < limit)
                    block = tl.load(table + page_logical, mask=page_mask, other=0).to(tl.int64) * KV_HEADS + head
                    plane = (block[:, None] * BLOCK_SIZE + token[None, :])[:, :, None] * HALF + half_channel[
                        None, None, :
                    ]
                    plane_mask = page_mask[:, None, None] & (half_channel < HALF)[None, None, :]
                    high = tl.load(k_high_ptr + plane, mask=plane_mask, other=0)
                    low = tl.load(k_low_ptr + plane, mask=plane_mask, other=0)
                    range_at = block[:, None] * HEAD_DIM + half_channel[None, :]
                    range_mask = page_mask[:, None] & (half_channel < HALF)[None, :]
                    lo = tl.load(k_lo_ptr + range_at, mask=range_mask, other=0.0)
                    size = tl.load(k_step_ptr + range_at, mask=range_mask, other=0.0)
                    lo_second = tl.load(k_lo_ptr + range_at + HALF, mask=range_mask, other=0.0)
                    size_second = tl.load(k_step_ptr + range_at + HALF, mask=range_mask, other=0.0)
                    v_at = (block[:, None] * BLOCK_SIZE + token[None, :])[:, :, None] * HEAD_DIM + channel[
                        None, None, :
                    ]
                    v_mask = page_mask[:, None, None] & (channel < HEAD_DIM)[None, None, :]
                    v_codes = tl.load(v_codes_ptr + v_at, mask=v_mask, other=0)
                    scale_at = block[:, None] * BLOCK_SIZE + token[None, :]
                    v_scale = tl.load(v_scale_ptr + scale_at, mask=page_mask[:, None], other=0.0).to(tl.float32)
                    k = _dequantize_keys(high, low, lo, size, False, BLOCK_N, HALF_WIDTH, q.dtype)
                    k_second = _dequantize_keys(high, low, lo_second, size_second, True, BLOCK_N, HALF_WIDTH, q.dtype)
                    qk = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                    qk = tl.dot(q_second, tl.trans(k_second), qk, input_precision=PRECISION)
                    v = tl.reshape(v_codes, (BLOCK_N, WIDTH)).to(q.dtype)
                    v_scale = tl.reshape(v_scale, (BLOCK_N,))
                else:
                    block = tl.load(table + logical, mask=inside, other=0).to(tl.int64) * KV_HEADS + head
                    offset = (block * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM
                    k_mask = inside[None, :] & (channel < HEAD_DIM)[:, None]
                    k = tl.load(k_ptr + offset[None, :] + channel[:, None], mask=k_mask, other=0.0)
                    v_mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
                    v = tl.load(v_ptr + offset[:, None] + channel[None, :], mask=v_mask, other=0.0)
                    v_scale = l_i
                    qk = tl.dot(q, k, input_precision=PRECISION)
                if CURRENT_APART:
                    visible = inside[None, :] & (logical[None, :] < current_block[:, None])
                else:
                    visible = inside[None, :] & (at[None, :] <= position[:, None])
                if WINDOWED:
                    visible = visible & (at[None, :] > position[:, None] - window)
                m_i, l_i, acc = _online_softmax_update(
                    qk, visible, v, v_scale, m_i, l_i, acc, factor, cap, masked == 1, CAPPED, INT8, PRECISION
                )

    if CURRENT_APART:
        current_begin = tl.maximum(first, 0) // BLOCK_SIZE
        current_end = last // BLOCK_SIZE + 1
        if SPLIT:
            current_end = tl.where(split == splits - 1, current_end, current_begin)
        for number in tl.range(current_begin, current_end, num_stages=1):
            at = number * BLOCK_SIZE + token
            block = tl.load(table + number, mask=number * BLOCK_SIZE < context, other=0)
            if INT8:
                block = tl.load(open_block_of_ptr + block)
            inside = at < tl.where(block >= 0, context, 0)
            offset = ((block.to(tl.int64) * KV_HEADS + head) * BLOCK_SIZE + token) * HEAD_DIM
            if INT8:
                k_mask = inside[None, :] & (half_channel < HALF)[:, None]
                k = tl.load(k_ptr + offset[None, :] + half_channel[:, None], mask=k_mask, other=0.0)
                k_second = tl.load(k_ptr + offset[None, :] + HALF + half_channel[:, None], mask=k_mask, other=0.0)
                qk = tl.dot(q, k, input_precision=PRECISION)
                qk = tl.dot(q_second, k_second, qk, input_precision=PRECISION)
            else:
                k_mask = inside[None, :] & (channel < HEAD_DIM)[:, None]
                k = tl.load(k_ptr + offset[None, :] + channel[:, None], mask=k_mask, other=0.0)
                qk = tl.dot(q, k, input_precision=PRECISION)
            v_mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
            v = tl.load(v_ptr + offset[:, None] + channel[None, :], mask=v_mask, other=0.0)
            visible = inside[None, :] & (current_block == number)[:, None] & (at[None, :] <= position[:, None])
            if WINDOWED:
                visible = visible & (at[None, :] > position[:, None] - window)
            m_i, l_i, acc = _online_softmax_update(
                qk, visible, v, l_i, m_i, l_i, acc, factor, cap, True, CAPPED, False, PRECISION
            )

    out_mask = row_mask[:, None] & (channel < HEAD_DIM)[None, :]
    if SPLIT:
        part = (token_at * (KV_HEADS * GROUP) + head_at) * splits + split
        tl.store(partial_m_ptr + part, m_i, mask=row_mask)
        tl.store(partial_sum_ptr + part, l_i, mask=row_mask)
        tl.store(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], acc, mask=out_mask)
    else:
        acc = acc / tl.where(l_i > 0.0, l_i, 1.0)[:, None]
        to = out_ptr + (token_at * out_token_stride + head_at * out_head_stride)[:, None] + channel[None, :]
        tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit(do_not_specialize=["first_token", "splits"])
def combine_splits_kernel(
    out_ptr,
    partial_ptr,
    partial_m_ptr,
    partial_sum_ptr,
    first_token,
    splits,
    out_token_stride,
    out_head_stride,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program per row: adds its parts in a fixed order."""
    token = (first_token + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)
    part = (token * tl.num_programs(1) + head) * splits + tl.arange(0, SPLITS)
    live = tl.arange(0, SPLITS) < splits
    channel = tl.arange(0, WIDTH)
    m_i = tl.load(partial_m_ptr + part, mask=live, other=float("-inf"))
    m_new = tl.max(m_i, 0)
    weight = tl.exp2(m_i - tl.where(m_new == float("-inf"), 0.0, m_new))
    l_i = tl.sum(tl.load(partial_sum_ptr + part, mask=live, other=0.0) * weight, 0)
    acc_mask = live[:, None] & (channel < HEAD_DIM)[None, :]
    acc = tl.load(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], mask=acc_mask, other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.where(l_i > 0.0, l_i, 1.0)
    to = out_ptr + token * out_token_stride + head * out_head_stride + channel
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=channel < HEAD_DIM)
