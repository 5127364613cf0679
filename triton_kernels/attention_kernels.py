"""The kernels of `paged_attention`: one over tiles of queries, one that adds the parts of a split context."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import tanh


@triton.jit
def _attend(
    scores,
    visible,
    v,
    v_scale,
    m,
    total,
    acc,
    factor,
    cap,
    MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the online softmax. `factor` holds log2(e) (or `cap` does): exponents are powers of two."""
    s = scores * factor
    if CAPPED:
        s = tanh(s) * cap
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    highest = tl.maximum(m, tl.max(s, 1))
    # A row that has seen no key yet keeps -inf, and must not compute -inf - -inf.
    base = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp2(s - base[:, None])
    keep = tl.exp2(m - base)
    total = total * keep + tl.sum(p, 1)
    if SCALED:
        p = p * v_scale[None, :]
    acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return highest, total, acc


@triton.jit
def _dequantised_keys(
    high, low, lo, step, SECOND: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr
):
    """Half of the channels of some blocks, `[KEYS, WIDTH]`: the low halves of the planes' bytes, or the high ones."""
    if SECOND:
        codes = (high & 0xF0) | (low >> 4)
    else:
        codes = ((high & 0xF) << 4) | (low & 0xF)
    k = lo.to(tl.float32)[:, None, :] + step.to(tl.float32)[:, None, :] * codes.to(tl.float32)
    return tl.reshape(k.to(dtype), (KEYS, WIDTH))


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
    tail_of_ptr,
    tables_ptr,
    query_start_ptr,
    context_ptr,
    selected_ptr,
    counts_ptr,
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
    ROWS: tl.constexpr,
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
    """A program takes the tile of some queries of a sequence, for one KV head and one part of its context."""
    HALF: tl.constexpr = HEAD_DIM // 2
    KEYS: tl.constexpr = PAGES * BLOCK_SIZE
    QUERIES: tl.constexpr = ROWS // GROUP
    OWN_APART: tl.constexpr = INT8 or SELECTED
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
    context = tl.load(context_ptr + sequence)
    first = context - length + tile_query
    last = tl.minimum(first + QUERIES, context) - 1

    row = tl.arange(0, ROWS)
    query = tile_query + row // GROUP
    row_live = (row < QUERIES * GROUP) & (query < length)
    position = context - length + query
    own = position // BLOCK_SIZE
    token_at = (begin + query).to(tl.int64)
    head_at = head * GROUP + row % GROUP
    q_row = q_ptr + token_at * q_token_stride + head_at * q_head_stride
    channel = tl.arange(0, WIDTH)
    half_channel = tl.arange(0, HALF_WIDTH)
    if INT8:
        half_live = row_live[:, None] & (half_channel < HALF)[None, :]
        q = tl.load(q_row[:, None] + half_channel[None, :], mask=half_live, other=0.0)
        q_second = tl.load(q_row[:, None] + HALF + half_channel[None, :], mask=half_live, other=0.0)
    else:
        q = tl.load(
            q_row[:, None] + channel[None, :], mask=row_live[:, None] & (channel < HEAD_DIM)[None, :], other=0.0
        )
        q_second = q
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    chosen = selected_ptr
    if SELECTED:
        chosen = selected_ptr + (sequence.to(tl.int64) * KV_HEADS + head) * capacity

    m = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)

    # The blocks of the first pass, and the steps (of PAGES blocks) that this program makes of them.
    if SELECTED:
        entries = tl.minimum(tl.load(counts_ptr + sequence * KV_HEADS + head), capacity)
    elif INT8:
        entries = last // BLOCK_SIZE
    else:
        entries = (last + BLOCK_SIZE) // BLOCK_SIZE
    start_step = 0
    end_step = (entries + PAGES - 1) // PAGES
    if WINDOWED and not SELECTED:
        # A multiple of KEYS, so that a key is in the same step for every query.
        start_step = tl.maximum(first - window + 1, 0) // KEYS
    if SPLIT:
        share = (end_step - start_step + splits - 1) // splits
        start_step = start_step + split * share
        end_step = tl.minimum(end_step, start_step + share)
    if DECODE or WINDOWED or SELECTED:
        full_step = start_step
    elif OWN_APART:
        full_step = tl.minimum(first // BLOCK_SIZE // PAGES, end_step)
    else:
        full_step = tl.minimum((first + 1) // KEYS, end_step)

    limit = context
    if OWN_APART:
        limit = last // BLOCK_SIZE * BLOCK_SIZE
    key = tl.arange(0, KEYS)
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
                    page_live = page_entry < entries
                    page_logical = page_entry
                    if SELECTED:
                        page_logical = tl.load(chosen + page_entry, mask=page_live, other=0)
                    page_live = page_live & (page_logical * BLOCK_SIZE < limit)
                    block = tl.load(table + page_logical, mask=page_live, other=0).to(tl.int64) * KV_HEADS + head
                    plane = (block[:, None] * BLOCK_SIZE + token[None, :])[:, :, None] * HALF + half_channel[
                        None, None, :
                    ]
                    plane_live = page_live[:, None, None] & (half_channel < HALF)[None, None, :]
                    high = tl.load(k_high_ptr + plane, mask=plane_live, other=0)
                    low = tl.load(k_low_ptr + plane, mask=plane_live, other=0)
                    range_at = block[:, None] * HEAD_DIM + half_channel[None, :]
                    range_live = page_live[:, None] & (half_channel < HALF)[None, :]
                    lo = tl.load(k_lo_ptr + range_at, mask=range_live, other=0.0)
                    size = tl.load(k_step_ptr + range_at, mask=range_live, other=0.0)
                    lo_second = tl.load(k_lo_ptr + range_at + HALF, mask=range_live, other=0.0)
                    size_second = tl.load(k_step_ptr + range_at + HALF, mask=range_live, other=0.0)
                    v_at = (block[:, None] * BLOCK_SIZE + token[None, :])[:, :, None] * HEAD_DIM + channel[
                        None, None, :
                    ]
                    v_live = page_live[:, None, None] & (channel < HEAD_DIM)[None, None, :]
                    v_codes = tl.load(v_codes_ptr + v_at, mask=v_live, other=0)
                    scale_at = block[:, None] * BLOCK_SIZE + token[None, :]
                    v_scale = tl.load(v_scale_ptr + scale_at, mask=page_live[:, None], other=0.0).to(tl.float32)
                    k = _dequantised_keys(high, low, lo, size, False, KEYS, HALF_WIDTH, q.dtype)
                    k_second = _dequantised_keys(high, low, lo_second, size_second, True, KEYS, HALF_WIDTH, q.dtype)
                    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                    scores = tl.dot(q_second, tl.trans(k_second), scores, input_precision=PRECISION)
                    v = tl.reshape(v_codes, (KEYS, WIDTH)).to(q.dtype)
                    v_scale = tl.reshape(v_scale, (KEYS,))
                else:
                    block = tl.load(table + logical, mask=inside, other=0).to(tl.int64) * KV_HEADS + head
                    place = (block * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM
                    k_live = inside[None, :] & (channel < HEAD_DIM)[:, None]
                    k = tl.load(k_ptr + place[None, :] + channel[:, None], mask=k_live, other=0.0)
                    v_live = inside[:, None] & (channel < HEAD_DIM)[None, :]
                    v = tl.load(v_ptr + place[:, None] + channel[None, :], mask=v_live, other=0.0)
                    v_scale = total
                    scores = tl.dot(q, k, input_precision=PRECISION)
                if OWN_APART:
                    visible = inside[None, :] & (logical[None, :] < own[:, None])
                else:
                    visible = inside[None, :] & (at[None, :] <= position[:, None])
                if WINDOWED:
                    visible = visible & (at[None, :] > position[:, None] - window)
                m, total, acc = _attend(
                    scores, visible, v, v_scale, m, total, acc, factor, cap, masked == 1, CAPPED, INT8, PRECISION
                )

    if OWN_APART:
        own_begin = tl.maximum(first, 0) // BLOCK_SIZE
        own_end = last // BLOCK_SIZE + 1
        if SPLIT:
            own_end = tl.where(split == splits - 1, own_end, own_begin)
        for number in tl.range(own_begin, own_end, num_stages=1):
            at = number * BLOCK_SIZE + token
            block = tl.load(table + number, mask=number * BLOCK_SIZE < context, other=0)
            if INT8:
                block = tl.load(tail_of_ptr + block)
            inside = at < tl.where(block >= 0, context, 0)
            place = ((block.to(tl.int64) * KV_HEADS + head) * BLOCK_SIZE + token) * HEAD_DIM
            if INT8:
                k_live = inside[None, :] & (half_channel < HALF)[:, None]
                k = tl.load(k_ptr + place[None, :] + half_channel[:, None], mask=k_live, other=0.0)
                k_second = tl.load(k_ptr + place[None, :] + HALF + half_channel[:, None], mask=k_live, other=0.0)
                scores = tl.dot(q, k, input_precision=PRECISION)
                scores = tl.dot(q_second, k_second, scores, input_precision=PRECISION)
            else:
                k_live = inside[None, :] & (channel < HEAD_DIM)[:, None]
                k = tl.load(k_ptr + place[None, :] + channel[:, None], mask=k_live, other=0.0)
                scores = tl.dot(q, k, input_precision=PRECISION)
            v_live = inside[:, None] & (channel < HEAD_DIM)[None, :]
            v = tl.load(v_ptr + place[:, None] + channel[None, :], mask=v_live, other=0.0)
            visible = inside[None, :] & (own == number)[:, None] & (at[None, :] <= position[:, None])
            if WINDOWED:
                visible = visible & (at[None, :] > position[:, None] - window)
            m, total, acc = _attend(
                scores, visible, v, total, m, total, acc, factor, cap, True, CAPPED, False, PRECISION
            )

    out_live = row_live[:, None] & (channel < HEAD_DIM)[None, :]
    if SPLIT:
        part = (token_at * (KV_HEADS * GROUP) + head_at) * splits + split
        tl.store(partial_m_ptr + part, m, mask=row_live)
        tl.store(partial_sum_ptr + part, total, mask=row_live)
        tl.store(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], acc, mask=out_live)
    else:
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        to = out_ptr + (token_at * out_token_stride + head_at * out_head_stride)[:, None] + channel[None, :]
        tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=out_live)


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
    """A program adds the parts of one row, always in the same order."""
    token = (first_token + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)
    part = (token * tl.num_programs(1) + head) * splits + tl.arange(0, SPLITS)
    live = tl.arange(0, SPLITS) < splits
    channel = tl.arange(0, WIDTH)
    m = tl.load(partial_m_ptr + part, mask=live, other=float("-inf"))
    highest = tl.max(m, 0)
    weight = tl.exp2(m - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(tl.load(partial_sum_ptr + part, mask=live, other=0.0) * weight, 0)
    acc_live = live[:, None] & (channel < HEAD_DIM)[None, :]
    acc = tl.load(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], mask=acc_live, other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    to = out_ptr + token * out_token_stride + head * out_head_stride + channel
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=channel < HEAD_DIM)
