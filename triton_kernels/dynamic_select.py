"""Kernel of `dynamic_attention` that selects blocks: the lightest are left out, as many as the error bound allows."""

from __future__ import annotations

import triton
import triton.language as tl

BUCKETS = tl.constexpr(224)
"""Histogram of block masses: four buckets an octave, down to 2^-56 of the total. The total is in the first."""

DENSE_ABOVE = tl.constexpr(0.9)
"""Selected share of the blocks above which a query reads all blocks."""


@triton.jit
def _buckets(x, total):
    """Buckets of masses x [GROUP, n] relative to `total` [GROUP]: exponent and two leading bits of the mantissa."""
    whole = total.to(tl.int32, bitcast=True) >> 21
    return tl.minimum(tl.maximum(whole[:, None] - (x.to(tl.int32, bitcast=True) >> 21), 0), BUCKETS - 1)


@triton.jit
def _block_mass(mass_ptr, row_at, highest, number, blocks, stride, group_mask):
    """Softmax masses of some blocks `[GROUP, n]`, relative to 2^highest."""
    live = group_mask[:, None] & (number < blocks)[None, :]
    x = tl.load(mass_ptr + row_at[:, None] + number.to(tl.int64)[None, :] * stride, mask=live, other=float("-inf"))
    return tl.exp2(x - highest[:, None])


@triton.jit
def _required(x, total, cut, number, current_block, sink_blocks, local_blocks):
    """1 for earlier blocks that some row requires or that are always read, else 0."""
    needed = tl.max(tl.where(_buckets(x, total) < cut[:, None], 1, 0), 0)
    always = tl.where((number < sink_blocks) | (number >= current_block - local_blocks), 1, 0)
    return tl.where(number < current_block, tl.maximum(needed, always), 0)


@triton.jit
def select_blocks_kernel(
    q_ptr,
    block_tables_ptr,
    lens_ptr,
    starts_ptr,
    mass_ptr,
    open_reach_ptr,
    k_reach_ptr,
    v_norm_ptr,
    selected_ptr,
    selected_counts_ptr,
    highest_ptr,
    omitted_ptr,
    max_v_norm_ptr,
    error_bound,
    error_factor,
    cap_error,
    sink_blocks,
    local_blocks,
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
    """One program per sequence and KV head: selects the blocks that its query heads read together."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    context = tl.load(lens_ptr + sequence)
    if context == 0:
        return
    current_block = (context - 1) // BLOCK_SIZE
    cell = sequence * KV_HEADS + head
    group = tl.arange(0, GROUP_PADDED)
    group_mask = group < GROUP
    column = tl.arange(0, CHUNK)
    stride = KV_HEADS * GROUP
    row_at = tl.load(starts_ptr + sequence).to(tl.int64) * stride + head * GROUP + group
    table = block_tables_ptr + sequence.to(tl.int64) * table_stride

    highest = tl.full((GROUP_PADDED,), float("-inf"), tl.float32)
    reach = tl.load(open_reach_ptr + cell)
    for begin in tl.range(0, current_block + 1, CHUNK):
        number = begin + column
        live = group_mask[:, None] & (number <= current_block)[None, :]
        x = tl.load(mass_ptr + row_at[:, None] + number.to(tl.int64)[None, :] * stride, mask=live, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(x, 1))
        block = tl.load(table + number, mask=number < current_block, other=0).to(tl.int64)
        reach = tl.maximum(
            reach, tl.max(tl.load(k_reach_ptr + block * KV_HEADS + head, mask=number < current_block, other=0.0))
        )
    highest = tl.where(group_mask, highest, 0.0)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    for begin in tl.range(0, current_block + 1, CHUNK):
        total += tl.sum(
            _block_mass(mass_ptr, row_at, highest, begin + column, current_block + 1, stride, group_mask), 1
        )
    sound = (total > 0.0) & (total < float("inf"))
    total = tl.where(sound, total, 1.0)

    channel = tl.arange(0, WIDTH)
    q_at = sequence.to(tl.int64) * q_token_stride + (head * GROUP + group)[:, None] * q_head_stride + channel[None, :]
    q_mask = group_mask[:, None] & (channel < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0).to(tl.float32)
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
        for begin in tl.range(0, current_block, CHUNK):
            number = begin + column
            x = _block_mass(mass_ptr, row_at, highest, number, current_block, stride, group_mask)
            free = (number >= sink_blocks) & (number < current_block - local_blocks)
            light += tl.sum(tl.where(free[None, :] & (_buckets(x, total) >= middle[:, None]), x, 0.0), 1)
        within = light <= bound * total
        high = tl.where(within, middle, high)
        low = tl.where(within, low, middle + 1)
    # Padding of the group selects nothing. A row with NaN or infinite masses selects all blocks: its output is NaN too.
    cut = tl.where(group_mask, tl.where(sound, tl.minimum(high, BUCKETS), BUCKETS), 0)

    count = 0
    for begin in tl.range(0, current_block, CHUNK):
        number = begin + column
        x = _block_mass(mass_ptr, row_at, highest, number, current_block, stride, group_mask)
        count += tl.sum(_required(x, total, cut, number, current_block, sink_blocks, local_blocks))
    every = tl.where(count > DENSE_ABOVE * current_block, 1, 0)

    count = 0
    omitted = tl.zeros((GROUP_PADDED,), tl.float32)
    kept = tl.zeros((GROUP_PADDED,), tl.float32)
    max_v_norm = 0.0
    chosen = selected_ptr + cell.to(tl.int64) * capacity
    for begin in tl.range(0, current_block + 1, CHUNK):
        number = begin + column
        x = _block_mass(mass_ptr, row_at, highest, number, current_block + 1, stride, group_mask)
        inside = tl.where(number < current_block, 1, 0)
        read = tl.maximum(_required(x, total, cut, number, current_block, sink_blocks, local_blocks), every * inside)
        left = read < inside
        offset = count + tl.cumsum(read, 0) - 1
        tl.store(chosen + offset, number, mask=read > 0)
        count += tl.sum(read)
        omitted += tl.sum(tl.where(left[None, :], x, 0.0), 1)
        kept += tl.sum(tl.where(left[None, :], 0.0, x), 1)
        block = tl.load(table + number, mask=left, other=0).to(tl.int64)
        max_v_norm = tl.maximum(max_v_norm, tl.max(tl.load(v_norm_ptr + block * KV_HEADS + head, mask=left, other=0.0)))
    tl.store(selected_counts_ptr + cell, count)
    tl.store(max_v_norm_ptr + cell, max_v_norm)
    row = sequence * KV_HEADS * GROUP + head * GROUP + group
    tl.store(highest_ptr + row, highest, mask=group_mask)
    share = tl.minimum(omitted / tl.where(group_mask, omitted + kept, 1.0) * slack, 1.0)
    tl.store(omitted_ptr + row, tl.where(count == current_block, 0.0, share), mask=group_mask)
