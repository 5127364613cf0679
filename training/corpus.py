"""The mix of all generators, packed into rows of tokens. A batch is a function of (seed, step) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from . import arithmetic, conversation, copying, extraction, lookup, questions, reading
from .document import END_OF_TEXT, Document
from .tokenizer import token_id


@dataclass(frozen=True)
class Mix:
    """Shares of documents by skill (not of tokens: a story is longer than a sum)."""

    shares: Mapping[str, float]
    # Whether short look-ups come more often than long ones.
    short_lookups: bool


# At first the model learns words and facts. Then copying comes in, and look-ups become easy to begin with. In
# the decay what is still hard gets the room that copying no longer needs.
FIRST_MIX = Mix(
    {
        "story": 0.21,
        "question": 0.28,
        "lookup": 0.14,
        "arithmetic": 0.17,
        "extraction": 0.14,
        "conversation": 0.08,
    },
    short_lookups=False,
)
MIX = Mix({**FIRST_MIX.shares, "lookup": 0.2, "copying": 0.3}, short_lookups=True)
LAST_MIX = Mix(
    {
        "story": 0.26,
        "question": 0.17,
        "lookup": 0.12,
        "arithmetic": 0.22,
        "extraction": 0.18,
        "conversation": 0.08,
        "copying": 0.04,
    },
    short_lookups=False,
)
# For a model that has the other skills and learns to read.
READING_MIX = Mix(
    {
        "story": 0.09,
        "question": 0.09,
        "lookup": 0.06,
        "arithmetic": 0.13,
        "extraction": 0.07,
        "conversation": 0.05,
        "copying": 0.04,
        "reading": 0.47,
    },
    short_lookups=True,
)
# In its decay the old skills get more room again: they settle there.
LAST_READING_MIX = Mix(
    {
        "story": 0.1,
        "question": 0.1,
        "lookup": 0.04,
        "arithmetic": 0.19,
        "extraction": 0.12,
        "conversation": 0.09,
        "copying": 0.06,
        "reading": 0.3,
    },
    short_lookups=True,
)
# The makers of documents that fit a given room.
SIZED = {"lookup": lookup.document, "reading": reading.document}
SHORTEST_LOOKUP = 80
FIT_ATTEMPTS = 4


def generators() -> dict[str, Callable[[random.Random], Document]]:
    """The generators that need no length."""
    return {
        "story": conversation.story,
        "question": questions.document,
        "arithmetic": arithmetic.document,
        "extraction": extraction.document,
        "conversation": conversation.document,
        "copying": copying.document,
    }


def document(rng: random.Random, space: int, mix: Mix) -> Document:
    """One document of the mix; look-ups and readings are sized to fit ``space`` tokens, the others may not fit."""
    skill = rng.choices(list(mix.shares), weights=list(mix.shares.values()))[0]
    if skill in SIZED and space < SHORTEST_LOOKUP:
        return arithmetic.document(rng)
    if skill not in SIZED:
        return generators()[skill](rng)
    if mix.short_lookups:
        return SIZED[skill](rng, int(SHORTEST_LOOKUP * (space / SHORTEST_LOOKUP) ** rng.random()))
    return SIZED[skill](rng, rng.randint(SHORTEST_LOOKUP, space))


def texts(seed: int, count: int) -> Iterator[str]:
    """Text of ``count`` documents, for the tokenizer."""
    rng = random.Random(f"texts/{seed}")
    for _ in range(count):
        yield document(rng, 400, FIRST_MIX).text


class Encoder:
    """Turns documents into token ids with a loss weight each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = token_id(tokenizer, END_OF_TEXT)

    def encode(self, doc: Document) -> tuple[list[int], list[float]]:
        """Ids and weights, with the end mark. Segments end where words end: ids equal those of the whole."""
        ids: list[int] = []
        weights: list[float] = []
        for segment, encoding in zip(
            doc.segments, self.tokenizer.encode_batch([s.text for s in doc.segments]), strict=True
        ):
            ids += encoding.ids
            weights += [segment.weight] * len(encoding.ids)
        return [*ids, self.end], [*weights, 1.0]

    def row(self, rng: random.Random, length: int, mix: Mix) -> tuple[list[int], list[float]]:
        """Whole documents packed into ``length`` tokens; what stays empty at the end has weight 0."""
        ids: list[int] = []
        weights: list[float] = []
        while True:
            for _ in range(FIT_ATTEMPTS):
                more, more_weights = self.encode(document(rng, length - len(ids), mix))
                if len(ids) + len(more) <= length:
                    ids += more
                    weights += more_weights
                    break
            else:
                empty = length - len(ids)
                return ids + [self.end] * empty, weights + [0.0] * empty

    def long_row(self, rng: random.Random, length: int, skill: str = "lookup") -> tuple[list[int], list[float]]:
        """A row that one look-up or one reading fills as far as it can."""
        size = length
        while True:
            ids, weights = self.encode(SIZED[skill](rng, size))
            if len(ids) <= length:
                empty = length - len(ids)
                return ids + [self.end] * empty, weights + [0.0] * empty
            size = size * 9 // 10


def batch(
    encoder: Encoder, seed: int, step: int, rows: int, length: int, mix: Mix | None, readings: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tokens and weights, each [rows, length + 1]; position i + 1 is the target of position i.

    Without a mix each row is one long look-up, or with the chance ``readings`` one long reading.
    """
    ids, weights = [], []
    for row in range(rows):
        rng = random.Random(f"{seed}/{step}/{row}")
        if mix is None:
            # No draw without readings: the batches of a run that has none stay what they were.
            read = readings > 0 and rng.random() < readings
            found = encoder.long_row(rng, length + 1, "reading" if read else "lookup")
        else:
            found = encoder.row(rng, length + 1, mix)
        ids.append(found[0])
        weights.append(found[1])
    return np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)
