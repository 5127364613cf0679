"""Copying: random words and numbers, to be said again.

Look-ups teach the model to find an earlier place and go on from there, but a look-up has only three digits to
learn it from. Here nearly every token is practice. Names are among the words: nothing else tells the model one
name from another, and it would say any of them in a story or a record.
"""

from __future__ import annotations

import random

from .document import READ_WEIGHT, Document, Segment, Turn, chat
from .lexicon import KEY_WORDS, NAMES

_ASK = ("Repeat this:", "Say this again:", "Copy this line:")


def words(rng: random.Random, count: int) -> str:
    """``count`` random words: half of them nouns, the others names and numbers of three digits."""

    def word() -> str:
        kind = rng.random()
        if kind < 0.25:
            return str(rng.randint(100, 999))
        return rng.choice(NAMES if kind < 0.5 else KEY_WORDS)

    return " ".join(word() for _ in range(count))


def document(rng: random.Random) -> Document:
    """A chat of one or two lines to repeat, or a line that comes two or three times."""
    if rng.random() < 0.4:
        lines = [words(rng, rng.randint(2, 16)) for _ in range(rng.randint(1, 2))]
        return chat("copying", [Turn(f"{rng.choice(_ASK)}\n{line}", line) for line in lines])
    line = words(rng, rng.randint(4, 30)) + "\n"
    again = Segment(line)
    return Document("copying", (Segment(line, READ_WEIGHT), *[again] * rng.randint(1, 2)))
