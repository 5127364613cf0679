"""Where the floats of partly filled blocks lie in an int8 cache: the bookkeeping, on the host.

A block gets a tail in the step that first writes to it and loses it in the step that fills it, when its int8 form is
written. A block that is given up half full keeps its tail until `release`, or passes it on with its number. The
assignment is the same in every layer; the device has it in `tail_of` `[num_blocks]`, which the kernels read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.gpu.batch import BLOCK_SIZE, HostBatch
from octavo.gpu.plan import Ints

NONE = -1


@dataclass(frozen=True)
class TailStep:
    """What a step does to tails, int32: `changes` `[n, 2]` of (block, its tail from now on), `filled` `[m]` blocks."""

    changes: Ints
    filled: Ints


NO_TAILS = TailStep(np.empty((0, 2), np.int32), np.empty(0, np.int32))


def most_tails(num_blocks: int, max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """As many as there can ever be at once.

    Before a step at most `max_num_seqs` blocks are not full, one a sequence, even if the scheduler has since ended
    these sequences and others run in their place. The step touches at most one more block for every 32 of its tokens,
    and one for each of its sequences. Where it begins before the step before it has ended, the blocks of sequences
    that ended in the one before that are not released yet: again one a sequence.
    """
    return min(num_blocks, 3 * max_num_seqs + -(-max_num_batched_tokens // BLOCK_SIZE))


class Tails:
    """Which block has which tail."""

    def __init__(self, num_blocks: int, count: int) -> None:
        self._of = np.full(num_blocks, NONE, np.int32)
        self._free = list(range(count))[::-1]
        self._blocks: set[int] = set()
        self._changed: set[int] = set()

    def blocks(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """The blocks that have a tail now, uint32."""
        return np.fromiter(self._blocks, np.uint32, len(self._blocks))

    def get(self, block: int) -> int:
        """The tail of `block`; -1: it has none."""
        return int(self._of[block])

    def take(self, block: int) -> int:
        """The tail of `block`, a new one if it has none."""
        tail = int(self._of[block])
        if tail == NONE:
            tail = self._free.pop()
            self._of[block] = tail
            self._blocks.add(block)
            self._changed.add(block)
        return tail

    def begin(self, host_batch: HostBatch, copies: Ints) -> TailStep:
        """Tails for all that a step writes, after the block copies of its plan."""
        for source, target in copies.tolist():
            if self.get(source) != NONE:
                self.take(target)
        lens = np.diff(host_batch.query_start)
        first = (host_batch.context_lens - lens) // BLOCK_SIZE
        filled: list[int] = []
        for s, (begin, context) in enumerate(zip(first.tolist(), host_batch.context_lens.tolist(), strict=True)):
            new = host_batch.block_tables[s, begin : -(-context // BLOCK_SIZE)].tolist()
            for block in new:
                self.take(block)
            filled += new[: context // BLOCK_SIZE - begin]
        changed = np.fromiter(self._changed, np.int32, len(self._changed))
        return TailStep(np.stack([changed, self._of[changed]], 1), np.array(filled, np.int32))

    def end(self, step: TailStep) -> None:
        """Called when a step has run: gives back the tails of the blocks that it has filled."""
        # Changes of a step that failed on its way to the device are sent once more.
        self._changed.clear()
        self.release(step.filled.tolist())

    def release(self, blocks: Iterable[int]) -> None:
        """Gives back the tails of blocks, if they have one."""
        for block in blocks:
            tail = int(self._of[block])
            if tail != NONE:
                self._of[block] = NONE
                self._free.append(tail)
                self._blocks.discard(block)
                self._changed.add(block)
