"""Which rows a step sees. It depends on the data and the seed, and on nothing of the machine."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["row_order"]


def row_order(rows: int, replay: int, steps: int, batch_rows: int, replay_rows: int, seed: int) -> list[int]:
    """Indices of the rows of all steps, one after another: steps x batch_rows.

    Args:
        rows: number of the data's own rows, which have the indices from 0 on.
        replay: number of replayed rows, which follow them.
        replay_rows: rows of each step that are replayed; they come last in it.
    """
    own = _shuffled(list(range(rows)), random.Random(f"rows/{seed}"))
    again = _shuffled(list(range(rows, rows + replay)), random.Random(f"replay/{seed}"))
    order = []
    for _ in range(steps):
        step = [next(own) for _ in range(batch_rows - replay_rows)] + [next(again) for _ in range(replay_rows)]
        # Micro-batches shall hold both kinds: else their lengths differ most.
        random.Random(f"step/{seed}/{len(order)}").shuffle(step)
        order += step
    return order


def _shuffled(items: list[int], rng: random.Random) -> Iterator[int]:
    """All items in a new order, again and again."""
    while items:
        rng.shuffle(items)
        yield from items
