"""The kernels of `dynamic_attention`: scores of all keys, the choice, the chosen values, the end with its report."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import tanh

BUCKETS = tl.constexpr(224)
"""Of shares of the mass: four an octave, down to 2^-56. The mass itself is in the first."""

DENSE_ABOVE = tl.constexpr(0.9)
"""Share of the blocks above which a query reads all: what little it would spare is not worth the bound."""

REPORT_FIELDS = tl.constexpr(6)


@triton.jit
def _limbs(x, codes, PRECISION: tl.constexpr, EXACT: tl.constexpr):
    """x [ROWS, n] times integer codes [KEYS, n] up to 256, in f32 or in two bfloat16 parts of x."""
    if EXACT:
        return tl.dot(x, tl.trans(codes.to(tl.float32)), input_precision=PRECISION)
    k = tl.trans(codes.to(tl.bfloat16))
    first = x.to(tl.bfloat16)
    second = (x - first.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(first, k, tl.dot(second, k))


@triton.jit
def _keep(scores, row_live, token, scores_ptr, mass_ptr, at, BLOCK_SIZE: tl.constexpr):
    """Stores the scores of a block, exponents of two, and the logarithm of the sum of their powers. `at`: of rows."""
    tl.store(scores_ptr + at[:, None] * BLOCK_SIZE + token[None, :], scores, mask=row_live[:, None])
    highest = tl.max(scores, 1)
    tl.store(mass_ptr + at, highest + tl.log2(tl.sum(tl.exp2(scores - highest[:, None]), 1)), mask=row_live)


@triton.jit(do_not_specialize=["splits"])
def score_kernel(
    q_ptr,
    k_ptr,
    k_high_ptr,
    k_low_ptr,
    k_lo_ptr,
    k_step_ptr,
    tail_of_ptr,
    tables_ptr,
    lens_ptr,
    starts_ptr,
    scores_ptr,
    mass_ptr,
    tail_reach_ptr,
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
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program takes some blocks of a sequence for one KV head; the one with the query's own block also its tail."""
    HALF: tl.constexpr = HEAD_DIM // 2
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    own = (context - 1) // BLOCK_SIZE
    share = (own + splits) // splits
    begin = split * share
    row = tl.arange(0, ROWS)
    token = tl.arange(0, BLOCK_SIZE)
    channel = tl.arange(0, HALF_WIDTH)
    row_live = row < GROUP
    live = channel < HALF
    q_row = q_ptr + sequence.to(tl.int64) * q_token_stride + (head * GROUP + row) * q_head_stride
    q_live = row_live[:, None] & live[None, :]
    q_0 = tl.load(q_row[:, None] + channel[None, :], mask=q_live, other=0.0)
    q_1 = tl.load(q_row[:, None] + HALF + channel[None, :], mask=q_live, other=0.0)
    wide_0 = q_0.to(tl.float32)
    wide_1 = q_1.to(tl.float32)
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    # Places of the rows in the workspace, for the sequence's first block.
    first_place = tl.load(starts_ptr + sequence).to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + row
    for number in tl.range(begin, tl.minimum(begin + share, own)):
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
        scores = _limbs(wide_0 * step_0[None, :], ((high & 0xF) << 4) | (low & 0xF), PRECISION, EXACT)
        scores += _limbs(wide_1 * step_1[None, :], (high & 0xF0) | (low >> 4), PRECISION, EXACT)
        scores = (scores + base[:, None]) * factor
        if CAPPED:
            scores = tanh(scores) * cap
        at = first_place + number * (KV_HEADS * GROUP)
        _keep(scores, row_live, token, scores_ptr, mass_ptr, at, BLOCK_SIZE)
    if (own >= begin) & (own < begin + share):
        tail = tl.load(tail_of_ptr + tl.load(table + own)).to(tl.int64) * KV_HEADS + head
        seen = own * BLOCK_SIZE + token < context
        place = (tail * BLOCK_SIZE + token)[:, None] * HEAD_DIM + channel[None, :]
        k_live = seen[:, None] & live[None, :]
        k_0 = tl.load(k_ptr + place, mask=k_live, other=0.0)
        k_1 = tl.load(k_ptr + place + HALF, mask=k_live, other=0.0)
        scores = tl.dot(q_0, tl.trans(k_0), input_precision=PRECISION)
        scores = tl.dot(q_1, tl.trans(k_1), scores, input_precision=PRECISION) * factor
        if CAPPED:
            scores = tanh(scores) * cap
        scores = tl.where(seen[None, :], scores, float("-inf"))
        _keep(
            scores,
            row_live,
            token,
            scores_ptr,
            mass_ptr,
            first_place + own.to(tl.int64) * (KV_HEADS * GROUP),
            BLOCK_SIZE,
        )
        most_0 = tl.max(tl.abs(k_0.to(tl.float32)), 0)
        most_1 = tl.max(tl.abs(k_1.to(tl.float32)), 0)
        reach = tl.sqrt(tl.sum(most_0 * most_0 + most_1 * most_1, 0)) * 1.001
        tl.store(tail_reach_ptr + sequence * KV_HEADS + head, reach)


@triton.jit
def _buckets(x, total):
    """Buckets of shares x [GROUP, n] of the mass `total` [GROUP]: equal exponent and leading bits of the mantissa."""
    whole = total.to(tl.int32, bitcast=True) >> 21
    return tl.minimum(tl.maximum(whole[:, None] - (x.to(tl.int32, bitcast=True) >> 21), 0), BUCKETS - 1)


@triton.jit
def _shares(mass_ptr, row_at, highest, number, blocks, stride, group_live):
    """Masses of some blocks, relative to e^highest, `[GROUP, n]`."""
    live = group_live[:, None] & (number < blocks)[None, :]
    x = tl.load(mass_ptr + row_at[:, None] + number.to(tl.int64)[None, :] * stride, mask=live, other=float("-inf"))
    return tl.exp2(x - highest[:, None])


@triton.jit
def _needed(x, total, cut, number, own, sinks, locals_):
    """1 for blocks before `own` that some row needs or that are always read, else 0."""
    needed = tl.max(tl.where(_buckets(x, total) < cut[:, None], 1, 0), 0)
    always = tl.where((number < sinks) | (number >= own - locals_), 1, 0)
    return tl.where(number < own, tl.maximum(needed, always), 0)


@triton.jit
def select_kernel(
    q_ptr,
    tables_ptr,
    lens_ptr,
    starts_ptr,
    mass_ptr,
    tail_reach_ptr,
    k_reach_ptr,
    v_norm_ptr,
    selected_ptr,
    counts_ptr,
    highest_ptr,
    omitted_ptr,
    longest_ptr,
    error_bound,
    error_factor,
    cap_error,
    sinks,
    locals_,
    q_token_stride,
    q_head_stride,
    table_stride,
    capacity,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program chooses what the query of a sequence reads of one KV head, for all of the query heads that share it."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    own = (context - 1) // BLOCK_SIZE
    cell = sequence * KV_HEADS + head
    group = tl.arange(0, GROUP_PADDED)
    group_live = group < GROUP
    column = tl.arange(0, CHUNK)
    stride = KV_HEADS * GROUP
    row_at = tl.load(starts_ptr + sequence).to(tl.int64) * stride + head * GROUP + group
    table = tables_ptr + sequence.to(tl.int64) * table_stride

    highest = tl.full((GROUP_PADDED,), float("-inf"), tl.float32)
    reach = tl.load(tail_reach_ptr + cell)
    for begin in tl.range(0, own + 1, CHUNK):
        number = begin + column
        live = group_live[:, None] & (number <= own)[None, :]
        x = tl.load(mass_ptr + row_at[:, None] + number.to(tl.int64)[None, :] * stride, mask=live, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(x, 1))
        block = tl.load(table + number, mask=number < own, other=0).to(tl.int64)
        reach = tl.maximum(reach, tl.max(tl.load(k_reach_ptr + block * KV_HEADS + head, mask=number < own, other=0.0)))
    highest = tl.where(group_live, highest, 0.0)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    for begin in tl.range(0, own + 1, CHUNK):
        total += tl.sum(_shares(mass_ptr, row_at, highest, begin + column, own + 1, stride, group_live), 1)
    sound = (total > 0.0) & (total < float("inf"))
    total = tl.where(sound, total, 1.0)

    channel = tl.arange(0, WIDTH)
    q_at = sequence.to(tl.int64) * q_token_stride + (head * GROUP + group)[:, None] * q_head_stride + channel[None, :]
    q_live = group_live[:, None] & (channel < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + q_at, mask=q_live, other=0.0).to(tl.float32)
    norm = tl.max(tl.sqrt(tl.sum(q * q, 1))) * 1.001
    # Scores are off by at most this, so ratios of their powers of e by e^(2 error); the rest is of sums and powers.
    slack = 1.001 * tl.exp(2.0 * (error_factor * reach * norm + cap_error))
    bound = error_bound / slack

    # The lightest buckets are left out, as many as stay within the bound: a bisection for the first of them.
    low = tl.zeros((GROUP_PADDED,), tl.int32)
    high = tl.full((GROUP_PADDED,), BUCKETS, tl.int32)
    for _ in tl.range(0, 8):
        middle = (low + high) // 2
        light = tl.zeros((GROUP_PADDED,), tl.float32)
        for begin in tl.range(0, own, CHUNK):
            number = begin + column
            x = _shares(mass_ptr, row_at, highest, number, own, stride, group_live)
            free = (number >= sinks) & (number < own - locals_)
            light += tl.sum(tl.where(free[None, :] & (_buckets(x, total) >= middle[:, None]), x, 0.0), 1)
        within = light <= bound * total
        high = tl.where(within, middle, high)
        low = tl.where(within, low, middle + 1)
    # Padding of the group asks for nothing. Where something is not a number, everything is needed: whoever reads all of
    # it says so in the result.
    cut = tl.where(group_live, tl.where(sound, tl.minimum(high, BUCKETS), BUCKETS), 0)

    count = 0
    for begin in tl.range(0, own, CHUNK):
        number = begin + column
        x = _shares(mass_ptr, row_at, highest, number, own, stride, group_live)
        count += tl.sum(_needed(x, total, cut, number, own, sinks, locals_))
    every = tl.where(count > DENSE_ABOVE * own, 1, 0)

    count = 0
    omitted = tl.zeros((GROUP_PADDED,), tl.float32)
    kept = tl.zeros((GROUP_PADDED,), tl.float32)
    longest = 0.0
    chosen = selected_ptr + cell.to(tl.int64) * capacity
    for begin in tl.range(0, own + 1, CHUNK):
        number = begin + column
        x = _shares(mass_ptr, row_at, highest, number, own + 1, stride, group_live)
        inside = tl.where(number < own, 1, 0)
        read = tl.maximum(_needed(x, total, cut, number, own, sinks, locals_), every * inside)
        left = read < inside
        place = count + tl.cumsum(read, 0) - 1
        tl.store(chosen + place, number, mask=read > 0)
        count += tl.sum(read)
        omitted += tl.sum(tl.where(left[None, :], x, 0.0), 1)
        kept += tl.sum(tl.where(left[None, :], 0.0, x), 1)
        block = tl.load(table + number, mask=left, other=0).to(tl.int64)
        longest = tl.maximum(longest, tl.max(tl.load(v_norm_ptr + block * KV_HEADS + head, mask=left, other=0.0)))
    tl.store(counts_ptr + cell, count)
    tl.store(longest_ptr + cell, longest)
    row = sequence * KV_HEADS * GROUP + head * GROUP + group
    tl.store(highest_ptr + row, highest, mask=group_live)
    share = tl.minimum(omitted / tl.where(group_live, omitted + kept, 1.0) * slack, 1.0)
    tl.store(omitted_ptr + row, tl.where(count == own, 0.0, share), mask=group_live)


@triton.jit(do_not_specialize=["splits"])
def values_kernel(
    v_ptr,
    v_codes_ptr,
    v_scale_ptr,
    tail_of_ptr,
    tables_ptr,
    lens_ptr,
    starts_ptr,
    scores_ptr,
    selected_ptr,
    counts_ptr,
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
    ROWS: tl.constexpr,
    PAGES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program sums some of the chosen blocks' values under their weights; the last one also the query's own block."""
    KEYS: tl.constexpr = PAGES * BLOCK_SIZE
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    own = (context - 1) // BLOCK_SIZE
    row = tl.arange(0, ROWS)
    row_live = row < GROUP
    key = tl.arange(0, KEYS)
    channel = tl.arange(0, WIDTH)
    stride = KV_HEADS * GROUP
    cell = sequence * KV_HEADS + head
    row_at = tl.load(starts_ptr + sequence).to(tl.int64) * stride + head * GROUP + row
    out_row = sequence.to(tl.int64) * stride + head * GROUP + row
    highest = tl.load(highest_ptr + out_row, mask=row_live, other=0.0)
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    chosen = selected_ptr + cell.to(tl.int64) * capacity
    entries = tl.load(counts_ptr + cell)
    steps = (entries + PAGES - 1) // PAGES
    share = (steps + splits - 1) // splits
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    dtype = v_ptr.dtype.element_ty
    for step in tl.range(split * share, tl.minimum(split * share + share, steps)):
        entry = step * PAGES + key // BLOCK_SIZE
        inside = entry < entries
        number = tl.load(chosen + entry, mask=inside, other=0)
        block = tl.load(table + number, mask=inside, other=0).to(tl.int64) * KV_HEADS + head
        token_at = block * BLOCK_SIZE + key % BLOCK_SIZE
        v_live = inside[:, None] & (channel < HEAD_DIM)[None, :]
        v = tl.load(v_codes_ptr + token_at[:, None] * HEAD_DIM + channel[None, :], mask=v_live, other=0)
        scale = tl.load(v_scale_ptr + token_at, mask=inside, other=0.0).to(tl.float32)
        score_at = (row_at[:, None] + number.to(tl.int64)[None, :] * stride) * BLOCK_SIZE + (key % BLOCK_SIZE)[None, :]
        live = row_live[:, None] & inside[None, :]
        p = tl.exp2(tl.load(scores_ptr + score_at, mask=live, other=float("-inf")) - highest[:, None])
        total += tl.sum(p, 1)
        acc = tl.dot((p * scale[None, :]).to(dtype), v.to(dtype), acc, input_precision=PRECISION)
    if split == splits - 1:
        token = tl.arange(0, BLOCK_SIZE)
        tail = tl.load(tail_of_ptr + tl.load(table + own)).to(tl.int64) * KV_HEADS + head
        seen = own * BLOCK_SIZE + token < context
        v_at = (tail * BLOCK_SIZE + token)[:, None] * HEAD_DIM + channel[None, :]
        v = tl.load(v_ptr + v_at, mask=seen[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)
        score_at = (row_at + own.to(tl.int64) * stride)[:, None] * BLOCK_SIZE + token[None, :]
        scores = tl.load(scores_ptr + score_at, mask=row_live[:, None], other=float("-inf"))
        p = tl.exp2(scores - highest[:, None])
        total += tl.sum(p, 1)
        acc = tl.dot(p.to(dtype), v, acc, input_precision=PRECISION)
    part = out_row * splits + split
    tl.store(partial_sum_ptr + part, total, mask=row_live)
    live = row_live[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], acc, mask=live)


@triton.jit(do_not_specialize=["splits"])
def finish_kernel(
    out_ptr,
    lens_ptr,
    counts_ptr,
    omitted_ptr,
    longest_ptr,
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
    """A program adds the parts of the rows of one KV head, first to last, and its calls to the report."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    own = (context - 1) // BLOCK_SIZE
    group = tl.arange(0, GROUP_PADDED)
    channel = tl.arange(0, WIDTH)
    live = group < GROUP
    out_live = live[:, None] & (channel < HEAD_DIM)[None, :]
    row = sequence.to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + group
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    acc = tl.zeros((GROUP_PADDED, WIDTH), tl.float32)
    for split in tl.range(0, splits):
        part = row * splits + split
        total += tl.load(partial_sum_ptr + part, mask=live, other=1.0)
        acc += tl.load(partial_ptr + part[:, None] * HEAD_DIM + channel[None, :], mask=out_live, other=0.0)
    out = acc / total[:, None]
    to = sequence.to(tl.int64) * out_token_stride + (head * GROUP + group)[:, None] * out_head_stride + channel[None, :]
    tl.store(out_ptr + to, out.to(out_ptr.dtype.element_ty), mask=out_live)
    cell = sequence * KV_HEADS + head
    left = own - tl.load(counts_ptr + cell)
    if left > 0:
        omitted = tl.load(omitted_ptr + row, mask=live, other=0.0)
        norm = tl.sqrt(tl.sum(tl.where(out_live, out * out, 0.0), 1))
        error = omitted * (tl.load(longest_ptr + cell) + norm) * 1.001
        # The cell is this program's alone; layers follow each other.
        report = report_ptr + sequence * report_stride + head * REPORT_FIELDS
        tl.store(report, tl.load(report) + GROUP)
        tl.store(report + 1, tl.load(report + 1) + left)
        tl.store(report + 2, tl.load(report + 2) + left.to(tl.float32) * VALUE_BYTES)
        tl.store(report + 3, tl.maximum(tl.load(report + 3), tl.max(omitted)))
        tl.store(report + 4, tl.load(report + 4) + tl.sum(omitted))
        tl.store(report + 5, tl.maximum(tl.load(report + 5), tl.max(tl.where(live, error, 0.0))))
