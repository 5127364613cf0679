"""Tokens of documents, packed into batches of rows. A batch is a function of the documents and a seed alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import InvalidRequestError

__all__ = ["Batch", "Document", "batch_tokens_of", "batches_of", "calibration_rows"]

SHORTEST_ROW = 128
# A row is at least so many times as long as its documents: several fill it. Attention costs grow with rows.
_SPARE = 1.5
# Rows that are not full yet, per length. More of them leave less room empty.
_OPEN_ROWS = 16
# Tokens that activations are measured with.
CALIBRATION_TOKENS = 1 << 17
# Optimizer steps that a pass should have at least, and the bounds of a batch in tokens.
_STEPS = 2048
_BATCH_TOKENS = (2048, 1 << 18)


@dataclass(frozen=True)
class Document:
    """Token ids and the weight of each in the loss: how much the prediction of this token counts."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """One optimizer step: ids and weights [rows, length]. Empty places have id 0 and weight 0."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


def batch_tokens_of(tokens: int) -> int:
    """Tokens of a batch for data of so many tokens: a power of two, for about 2,048 steps or more a pass."""
    low, high = _BATCH_TOKENS
    return min(high, max(low, 1 << max(0, (tokens // _STEPS).bit_length() - 1)))


def batches_of(documents: Sequence[Document], batch_tokens: int, longest: int, passes: int, seed: int) -> list[Batch]:
    """Batches of equal size in tokens, in a random order. All rows of a batch have one length, a power of two.

    Args:
        documents: at least one. A document that is longer than `longest` is cut into pieces.
        batch_tokens: tokens of a batch; rows are not longer than this.
        longest: the model's longest context.
        passes: how often each document is seen. Each pass has an order and rows of its own.
    """
    if not documents:
        raise InvalidRequestError("there are no documents to train on")
    longest = min(batch_tokens, 1 << (longest.bit_length() - 1))
    made = []
    for number in range(passes):
        rng = random.Random(f"{seed}/{number}")
        order = [piece for document in documents for piece in _pieces(document, longest)]
        rng.shuffle(order)
        rows: dict[int, list[Document]] = {}
        for length, row in _rows(order, longest):
            rows.setdefault(length, []).append(row)
        batches = [
            _batch(of_length[first : first + batch_tokens // length], length, batch_tokens // length)
            for length, of_length in sorted(rows.items())
            for first in range(0, len(of_length), batch_tokens // length)
        ]
        rng.shuffle(batches)
        made += batches
    return made


def calibration_rows(documents: Sequence[Document], longest: int, seed: int) -> list[NDArray[np.int32]]:
    """Rows [rows, length] of some documents, to measure activations with."""
    rng = random.Random(seed)
    order = list(documents)
    rng.shuffle(order)
    taken, tokens = [], 0
    for document in order:
        taken.append(document)
        tokens += len(document.ids)
        if tokens >= CALIBRATION_TOKENS:
            break
    return [batch.ids for batch in batches_of(taken, _BATCH_TOKENS[0], longest, 1, seed)]


def _pieces(document: Document, longest: int) -> Iterator[Document]:
    for first in range(0, len(document.ids), longest):
        yield Document(document.ids[first : first + longest], document.weights[first : first + longest])


def _rows(documents: Sequence[Document], longest: int) -> Iterator[tuple[int, Document]]:
    """Rows of documents that follow each other, with the power of two that they are padded to."""
    open_rows: dict[int, list[Document]] = {}
    for document in documents:
        length = min(longest, max(SHORTEST_ROW, 1 << (math.ceil(_SPARE * len(document.ids)) - 1).bit_length()))
        rows = open_rows.setdefault(length, [])
        room = next((row for row in rows if len(row.ids) + len(document.ids) <= length), None)
        if room is None:
            if len(rows) == _OPEN_ROWS:
                yield length, rows.pop(max(range(len(rows)), key=lambda i: len(rows[i].ids)))
            rows.append(room := Document([], []))
        room.ids.extend(document.ids)
        room.weights.extend(document.weights)
    for length, rows in open_rows.items():
        for row in rows:
            yield length, row


def _batch(rows: Sequence[Document], length: int, count: int) -> Batch:
    ids, weights = np.zeros((count, length), np.int32), np.zeros((count, length), np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        weights[number, : len(row.ids)] = row.weights
    return Batch(ids, weights)
