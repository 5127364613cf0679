"""Which rows a step sees. It depends on the data and the seed, and on nothing of the machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

__all__ = ["row_order"]


def row_order(
    lengths: Sequence[int], replay_lengths: Sequence[int], steps: int, batch_rows: int, replay_rows: int, seed: int
) -> list[int]:
    """Indices of the rows of all steps, one after another: steps x batch_rows.

    Args:
        lengths: tokens of the data's own rows, which have the indices from 0 on.
        replay_lengths: tokens of the replayed rows, which follow them.
        replay_rows: rows of each step that are replayed.
    """
    both = [*lengths, *replay_lengths]
    rows, replay = len(lengths), len(replay_lengths)
    own = _shuffled(list(range(rows)), random.Random(f"rows/{seed}"))
    again = _shuffled(list(range(rows, rows + replay)), random.Random(f"replay/{seed}"))
    order = []
    for _ in range(steps):
        step = [next(own) for _ in range(batch_rows - replay_rows)] + [next(again) for _ in range(replay_rows)]
        # Rows of like length share a micro-batch: less padding, and the sum over the step is the same.
        order += sorted(step, key=lambda row: both[row], reverse=True)
    return order


def _shuffled(items: list[int], rng: random.Random) -> Iterator[int]:
    """All items in a new order, again and again."""
    while items:
        rng.shuffle(items)
        yield from items
