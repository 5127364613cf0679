"""Limits of an engine on a GPU, and how much memory goes where.

The weights are loaded first, then the largest step runs once: what it takes at its peak is measured, and the KV pool
gets of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import DeviceMemoryError, InvalidRequestError
from octavo.gpu.batch import BLOCK_SIZE

MAX_NUM_SEQS = 256
MAX_BATCHED_TOKENS = 8192
MAX_QUEUE = 1024
SHARE = 0.9
"""Of the memory that is free after the largest step: allocators and libraries need the rest."""


@dataclass(frozen=True)
class Wishes:
    """What the caller sets; None: not set."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_queue: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_fraction: float | None = None


@dataclass(frozen=True)
class Limits:
    """As `octavo info` shows them; `num_blocks` blocks of 32 tokens."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue: int
    num_blocks: int


def most_tokens(wishes: Wishes) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens)."""
    seqs = wishes.max_num_seqs or MAX_NUM_SEQS
    return seqs, wishes.max_num_batched_tokens or max(MAX_BATCHED_TOKENS, seqs)


def context(wishes: Wishes, max_position: int, longest: int) -> int:
    """The longest sequence that is wanted.

    Raises:
        InvalidRequestError: it is longer than the model can take.
    """
    wanted = wishes.max_model_len or max_position
    if wanted > longest:
        raise InvalidRequestError(
            f"max_model_len is {wanted}: this model was made for at most {longest} tokens (max_position_embeddings)"
        )
    if wanted < 2:
        raise InvalidRequestError(f"max_model_len is {wanted}: an integer from 2 on is expected")
    return wanted


def limits(wishes: Wishes, wanted_len: int, block_bytes: int, free: int, total: int) -> tuple[Limits, str]:
    """The limits, and the reason of the KV pool's size. `free`: bytes beside weights and the largest step.

    Raises:
        InvalidRequestError: the caller's numbers cannot hold together; the message says which to change.
        DeviceMemoryError: the device is too small for one sequence.
    """
    seqs, batched = most_tokens(wishes)
    if wishes.kv_cache_bytes is not None:
        budget, source = wishes.kv_cache_bytes, "kv_cache_memory"
    elif wishes.kv_cache_fraction is not None:
        budget = int(total * wishes.kv_cache_fraction)
        source = f"kv_cache_memory: {wishes.kv_cache_fraction} of the device's {total} bytes"
    else:
        budget, source = int(free * SHARE), f"{SHARE:.0%} of what is free beside weights and the largest step"
    explicit = wishes.kv_cache_bytes is not None or wishes.kv_cache_fraction is not None
    if explicit and budget > free:
        raise DeviceMemoryError(
            f"the KV cache is to have {budget} bytes ({source}), and {free} are free beside weights and the largest "
            "step: lower kv_cache_memory, max_num_batched_tokens or max_num_seqs"
        )
    per_sequence = -(-wanted_len // BLOCK_SIZE)
    needed = seqs * per_sequence
    affordable = budget // block_bytes
    num_blocks = affordable if explicit else min(affordable, needed)
    # Slots are int32.
    num_blocks = min(num_blocks, (2**31 - 1) // BLOCK_SIZE)
    length = wanted_len
    if num_blocks < per_sequence:
        length = num_blocks * BLOCK_SIZE
        if wishes.max_model_len is not None or num_blocks < 1:
            kind = InvalidRequestError if explicit else DeviceMemoryError
            raise kind(
                f"the KV cache has {budget} bytes ({source}) and one sequence of {wanted_len} tokens needs "
                f"{per_sequence * block_bytes}: raise kv_cache_memory, or lower max_model_len or max_num_batched_tokens"
            )
    if explicit or num_blocks < needed:
        reason = f"{num_blocks} blocks of {BLOCK_SIZE} tokens, as {source} gives"
    else:
        reason = f"{num_blocks} blocks of {BLOCK_SIZE} tokens: {seqs} sequences of {length} tokens at full length"
    return Limits(length, seqs, batched, wishes.max_queue or MAX_QUEUE, num_blocks), reason
