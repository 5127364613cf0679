"""Copying: random words and numbers, to be said again.

Look-ups teach the model to find an earlier place and go on from there, but a look-up has only three digits to
learn it from. Here nearly every token is practice.
"""

from __future__ import annotations

import random

from .document import READ_WEIGHT, Document, Segment, Turn, chat
from .lexicon import KEY_WORDS

_ASK = ("Repeat this:", "Say this again:", "Copy this line:")


def words(rng: random.Random, count: int) -> str:
    """``count`` random words, one in four of them a number of three digits instead."""
    return " ".join(str(rng.randint(100, 999)) if rng.random() < 0.25 else rng.choice(KEY_WORDS) for _ in range(count))


def document(rng: random.Random) -> Document:
    """A chat of one or two lines to repeat, or a line that comes two or three times."""
    if rng.random() < 0.4:
        lines = [words(rng, rng.randint(2, 16)) for _ in range(rng.randint(1, 2))]
        return chat("copying", [Turn(f"{rng.choice(_ASK)}\n{line}", line) for line in lines])
    line = words(rng, rng.randint(4, 30)) + "\n"
    again = Segment(line)
    return Document("copying", (Segment(line, READ_WEIGHT), *[again] * rng.randint(1, 2)))
