"""The kernels of `sample` and `logprobs`. A program takes a row; nothing is sorted.

A set that top-k or top-p leaves is described by its lowest logit: the search for it bisects the order of floats,
counting or weighing what lies above. The draw is found in the same way: it is the token at which the mass from the top
passes a target. Tokens of equal logits come in the order of their ids.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _key(x):
    """Integers in the order of floats."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _weight_of_key(key, highest, temperature):
    """exp((x - highest) / temperature) of the float at a place in the order, as f64."""
    bits = key.to(tl.int32)
    x = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    return tl.exp((x - highest) / temperature).to(tl.float64)


@triton.jit
def _best(row_ptr, vocab, BLOCK: tl.constexpr):
    """The largest value and the lowest index that has it."""
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.full((), 0, tl.int32)
    for start in tl.range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        highest = tl.max(x, 0)
        first = tl.min(tl.where(x == highest, at, vocab), 0)
        index = tl.where(highest > best, first, index)
        best = tl.maximum(best, highest)
    return best, index


@triton.jit
def _above(row_ptr, vocab, key, highest, temperature, BLOCK: tl.constexpr):
    """How many tokens are at or above a place in the order, and their mass; both as f64."""
    count = tl.full((), 0.0, tl.float64)
    mass = tl.full((), 0.0, tl.float64)
    for start in tl.range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf"))
        inside = (_key(x) >= key) & (at < vocab)
        count += tl.sum(tl.where(inside, 1, 0), 0)
        mass += tl.sum(tl.where(inside, tl.exp((x - highest) / temperature), 0.0).to(tl.float64), 0)
    return count, mass


@triton.jit
def _search(
    row_ptr,
    vocab,
    low,
    high,
    wanted,
    highest,
    temperature,
    COUNT: tl.constexpr,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The highest place from `low` on whose tokens at or above it reach `wanted` (count, or mass; PASS: exceed it)."""
    while high - low > 1:
        middle = (low + high) >> 1
        value = tl.full((), 0.0, tl.float64)
        for start in tl.range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf"))
            bits = x.to(tl.int32, bitcast=True)
            inside = (tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >= middle) & (at < vocab)
            if COUNT:
                value += tl.sum(tl.where(inside, 1, 0), 0)
            else:
                value += tl.sum(tl.where(inside, tl.exp((x - highest) / temperature), 0.0).to(tl.float64), 0)
        enough = value >= wanted
        if PASS:
            enough = value > wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def _nth_equal(row_ptr, vocab, key, n, BLOCK: tl.constexpr):
    """The id of token number n (from 0) among those at one place in the order."""
    seen = tl.full((), 0, tl.int32)
    found = tl.full((), 0, tl.int32)
    for start in tl.range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf"))
        equal = tl.where((_key(x) == key) & (at < vocab), 1, 0)
        number = seen + tl.cumsum(equal, 0) - equal
        found += tl.sum(tl.where((equal == 1) & (number == n), at, 0), 0)
        seen += tl.sum(equal, 0)
    return found


@triton.jit
def _walk(row_ptr, vocab, limit, target, highest, temperature, BLOCK: tl.constexpr):
    """The first id at which the mass of tokens not below `limit` passes `target`; the last with mass if none does."""
    mass = tl.full((), 0.0, tl.float64)
    chosen = tl.full((), -1, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in tl.range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf"))
        weight = tl.where(x >= limit, tl.exp((x - highest) / temperature), 0.0).to(tl.float64)
        passed = mass + tl.cumsum(weight, 0) > target
        first = tl.min(tl.where(passed & (weight > 0.0), at, vocab), 0)
        chosen = tl.where((chosen < 0) & (first < vocab), first, chosen)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, at, 0), 0))
        mass += tl.sum(weight, 0)
    return tl.where(chosen < 0, last, chosen)


@triton.jit
def _uniform(seed, sample, position):
    """A number in [0, 1) with 53 random bits, of Philox 4x32-10 with counter (position, sample, 0, 0) and key seed."""
    zero = position * 0
    a, b, _, _ = tl.philox(seed, position, sample, zero, zero)
    bits = ((a.to(tl.uint64) << 32) | b.to(tl.uint64)) >> 11
    return bits.to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def process_kernel(
    logits_ptr,
    allowed_ptr,
    allowed_rows_ptr,
    out_ptr,
    vocab,
    words,
    logits_stride,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logits as f32; -inf where a row's mask does not allow a token."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + at, mask=at < vocab, other=0.0).to(tl.float32)
    if MASK:
        if tl.load(allowed_rows_ptr + row) != 0:
            word = tl.load(allowed_ptr + row * words + at // 32, mask=at < vocab, other=0)
            x = tl.where((word >> (at % 32)) & 1 == 1, x, float("-inf"))
    tl.store(out_ptr + row * vocab + at, x, mask=at < vocab)


@triton.jit
def rules_kernel(
    logits_ptr,
    banned_ptr,
    bias_ids_ptr,
    bias_ptr,
    seen_ids_ptr,
    seen_counts_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    vocab,
    banned_count,
    bias_count,
    seen_count,
    BANNED: tl.constexpr,
    BIAS: tl.constexpr,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bans, biases, penalties, in this order; ids of -1 are padding, and no list names an id twice."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab
    if BANNED:
        for start in tl.range(0, banned_count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            token = tl.load(banned_ptr + row * banned_count + at, mask=at < banned_count, other=-1)
            tl.store(logits_ptr + token, float("-inf"), mask=(token >= 0) & (token < vocab))
        tl.debug_barrier()
    if BIAS:
        for start in tl.range(0, bias_count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            token = tl.load(bias_ids_ptr + row * bias_count + at, mask=at < bias_count, other=-1)
            live = (token >= 0) & (token < vocab)
            bias = tl.load(bias_ptr + row * bias_count + at, mask=at < bias_count, other=0.0)
            tl.store(logits_ptr + token, tl.load(logits_ptr + token, mask=live, other=0.0) + bias, mask=live)
        tl.debug_barrier()
    if PENALTIES:
        repetition = tl.load(repetition_ptr + row)
        presence = tl.load(presence_ptr + row)
        frequency = tl.load(frequency_ptr + row)
        for start in tl.range(0, seen_count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            token = tl.load(seen_ids_ptr + row * seen_count + at, mask=at < seen_count, other=-1)
            live = (token >= 0) & (token < vocab)
            count = tl.load(seen_counts_ptr + row * seen_count + at, mask=at < seen_count, other=0)
            x = tl.load(logits_ptr + token, mask=live, other=0.0)
            x = tl.where(x > 0.0, x / repetition, x * repetition)
            x = tl.where(count > 0, x - (frequency * count.to(tl.float32) + presence), x)
            tl.store(logits_ptr + token, x, mask=live)


@triton.jit
def sample_kernel(
    logits_ptr,
    raw_ptr,
    allowed_ptr,
    allowed_rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    sample_ptr,
    position_ptr,
    out_ptr,
    vocab,
    words,
    logits_stride,
    raw_stride,
    MASK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Chooses the token of a row of processed logits."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * logits_stride
    highest, token = _best(x_ptr, vocab, BLOCK)
    if MASK:
        # Where the other rules ban all that the mask allows, they yield.
        if (highest == float("-inf")) & (tl.load(allowed_rows_ptr + row) != 0):
            for start in tl.range(0, vocab, BLOCK):
                at = start + tl.arange(0, BLOCK)
                raw = tl.load(raw_ptr + row * raw_stride + at, mask=at < vocab, other=0.0).to(tl.float32)
                word = tl.load(allowed_ptr + row * words + at // 32, mask=at < vocab, other=0)
                raw = tl.maximum(raw, -1.7014117331926443e38)
                x = tl.where((word >> (at % 32)) & 1 == 1, raw, float("-inf"))
                tl.store(x_ptr + at, x, mask=at < vocab)
            tl.debug_barrier()
            highest, token = _best(x_ptr, vocab, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if (temperature >= 1e-5) & (highest > float("-inf")):
        draw = _uniform(tl.load(seed_ptr + row), tl.load(sample_ptr + row), tl.load(position_ptr + row))
        limit = tl.full((), -3.4028234663852886e38, tl.float32)
        if MIN_P:
            min_p = tl.load(min_p_ptr + row)
            limit = tl.where(min_p > 0.0, highest + temperature * tl.log(min_p), limit)
        top_k = tl.full((), 0, tl.int32)
        if TOP_K:
            top_k = tl.load(top_k_ptr + row)
            top_k = tl.where((top_k <= 0) | (top_k >= vocab), 0, top_k)
        top_p = tl.full((), 1.0, tl.float32)
        if TOP_P:
            top_p = tl.load(top_p_ptr + row)
        lowest = _key(limit)
        count, mass = _above(x_ptr, vocab, lowest, highest, temperature, BLOCK)
        if (top_k == 0) & (top_p >= 1.0):
            token = _walk(x_ptr, vocab, limit, draw * mass, highest, temperature, BLOCK)
        else:
            end = _key(highest) + 1
            edge = lowest
            # Of the tokens at `edge` the first `ties` by id are in the set.
            ties = tl.full((), 2147483647, tl.int32)
            if TOP_K:
                if (top_k > 0) & (top_k < count):
                    wanted = top_k.to(tl.float64)
                    edge = _search(x_ptr, vocab, lowest, end, wanted, highest, temperature, True, False, BLOCK)
                    over, over_mass = _above(x_ptr, vocab, edge + 1, highest, temperature, BLOCK)
                    ties = top_k - over.to(tl.int32)
                    mass = over_mass + ties.to(tl.float64) * _weight_of_key(edge, highest, temperature)
            if TOP_P:
                if top_p < 1.0:
                    goal = mass * top_p.to(tl.float64)
                    nucleus = _search(x_ptr, vocab, edge, end, goal, highest, temperature, False, False, BLOCK)
                    weight = _weight_of_key(nucleus, highest, temperature)
                    over, over_mass = _above(x_ptr, vocab, nucleus + 1, highest, temperature, BLOCK)
                    upto, upto_mass = _above(x_ptr, vocab, nucleus, highest, temperature, BLOCK)
                    there = tl.where(
                        nucleus == edge, tl.minimum(ties, (upto - over).to(tl.int32)), (upto - over).to(tl.int32)
                    )
                    needed = (goal - over_mass) / tl.where(weight > 0.0, weight, 1.0)
                    ties = tl.minimum(tl.maximum(tl.ceil(needed).to(tl.int32), 1), there)
                    edge = nucleus
                    mass = over_mass + ties.to(tl.float64) * weight
            target = draw * mass
            key_at = _search(x_ptr, vocab, edge, end, target, highest, temperature, False, True, BLOCK)
            weight = _weight_of_key(key_at, highest, temperature)
            over, over_mass = _above(x_ptr, vocab, key_at + 1, highest, temperature, BLOCK)
            upto, upto_mass = _above(x_ptr, vocab, key_at, highest, temperature, BLOCK)
            there = tl.where(key_at == edge, tl.minimum(ties, (upto - over).to(tl.int32)), (upto - over).to(tl.int32))
            number = tl.floor((target - over_mass) / tl.where(weight > 0.0, weight, 1.0)).to(tl.int32)
            number = tl.minimum(tl.maximum(number, 0), there - 1)
            token = _nth_equal(x_ptr, vocab, key_at, number, BLOCK)
    tl.store(out_ptr + row, token)


@triton.jit
def logprobs_kernel(
    logits_ptr,
    ids_ptr,
    logprob_ptr,
    rank_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    vocab,
    top,
    logits_stride,
    BLOCK: tl.constexpr,
):
    """Log-probability and rank of a token, and the `top` best tokens, one pass over the row for each."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * logits_stride
    highest, index = _best(x_ptr, vocab, BLOCK)
    chosen = tl.load(ids_ptr + row)
    mine = tl.load(x_ptr + chosen).to(tl.float32)
    mass = tl.full((), 0.0, tl.float64)
    better = tl.full((), 0, tl.int32)
    for start in tl.range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        mass += tl.sum(tl.exp(x - highest).to(tl.float64), 0)
        ahead = (at < vocab) & ((x > mine) | ((x == mine) & (at < chosen)))
        better += tl.sum(tl.where(ahead, 1, 0), 0)
    log_mass = highest.to(tl.float64) + tl.log(mass)
    tl.store(logprob_ptr + row, (mine.to(tl.float64) - log_mass).to(tl.float32))
    tl.store(rank_ptr + row, better + 1)
    # The best token so far; the next one is the best of those that come after it.
    value = highest
    for key_at in tl.range(0, top):
        tl.store(top_ids_ptr + row * top + key_at, index)
        tl.store(top_logprobs_ptr + row * top + key_at, (value.to(tl.float64) - log_mass).to(tl.float32))
        next_value = tl.full((), float("-inf"), tl.float32)
        next_index = tl.full((), 2147483647, tl.int32)
        for start in tl.range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            after = (at < vocab) & ((x < value) | ((x == value) & (at > index)))
            x = tl.where(after, x, float("-inf"))
            best = tl.max(x, 0)
            first = tl.min(tl.where(after & (x == best), at, 2147483647), 0)
            take = (best > next_value) | ((best == next_value) & (first < next_index))
            next_value = tl.where(take, best, next_value)
            next_index = tl.where(take, first, next_index)
        value = next_value
        index = next_index
