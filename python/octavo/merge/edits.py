"""Changes of the rows of a tensor. Each works on blocks of rows in float32: memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from octavo.merge.tensor_file import Floats, Tensor

__all__ = ["AddProduct", "AddVector", "Apply", "Blocks", "Edit", "Replace", "ReplaceRows"]

Apply = Callable[[Floats, int], Floats]
"""Changes a block of rows, of which the second argument is the first's number within the edit's rows."""
Blocks = Callable[[], Iterable[tuple[int, Floats]]]
"""Yields all rows of the edit's range, as the edits before it leave them."""


class Edit(Protocol):
    """A change of a range of rows."""

    @property
    def whole(self) -> bool:
        """Whether the values before it do not matter."""

    def start(self, blocks: Blocks) -> Apply:
        """Reads what the change needs."""


@dataclass(frozen=True)
class Factor:
    """A matrix of an adapter, or the part of one that belongs to an expert.

    Attributes:
        tensor: the stored matrix.
        experts: how many experts it holds.
        expert: the one that is meant.
        stacked: ranks of an expert lie together (the first matrix), instead of experts of a rank (the second one).
        transposed: it is stored the other way round.
        rows: a slice of the result's rows; None for all.
    """

    tensor: Tensor
    experts: int = 1
    expert: int = 0
    stacked: bool = False
    transposed: bool = False
    rows: slice | None = None

    def floats(self) -> Floats:
        """The matrix."""
        raw = self.tensor.raw()
        if self.stacked:
            rank = raw.shape[0] // self.experts
            raw = raw[self.expert * rank : (self.expert + 1) * rank]
        else:
            raw = raw[:, self.expert :: self.experts]
        values = self.tensor.floats(raw.T if self.transposed else raw)
        return values if self.rows is None else values[self.rows]


@dataclass(frozen=True)
class AddProduct:
    """Adds `scale * second @ first`; with lengths, gives every row (or column) the length that it has there.

    Attributes:
        second: `[rows, rank]`.
        first: `[rank, columns]`.
        scale: of the product.
        lengths: of the rows of the sum, or None. DoRA calls them magnitudes.
        of_columns: the lengths are those of columns, as DoRA has them in embeddings.
    """

    second: Factor
    first: Factor
    scale: float
    lengths: Tensor | None = None
    of_columns: bool = False
    whole = False

    def start(self, blocks: Blocks) -> Apply:
        first, second = self.first.floats(), self.second.floats()
        scale = np.float32(self.scale)

        def add(block: Floats, at: int) -> Floats:
            return block + (second[at : at + len(block)] @ first) * scale

        if self.lengths is None:
            return add
        lengths = self.lengths.floats()[:, 0]
        if self.of_columns:
            squares = np.zeros(len(lengths), np.float64)
            for at, block in blocks():
                squares += np.square(add(block, at), dtype=np.float64).sum(axis=0)
            factors = _ratio(lengths, squares)
            return lambda block, at: add(block, at) * factors

        def stretch(block: Floats, at: int) -> Floats:
            total = add(block, at)
            squares = np.square(total, dtype=np.float64).sum(axis=1)
            return total * _ratio(lengths[at : at + len(block)], squares)[:, None]

        return stretch


def _ratio(lengths: Floats, squares: npt.NDArray[np.float64]) -> Floats:
    """Factors that give vectors with these sums of squares new lengths. A vector of zeros has none: not finite."""
    return (lengths / np.sqrt(squares)).astype(np.float32)


@dataclass(frozen=True)
class AddVector:
    """Adds `scale * vector`, to a bias."""

    vector: Tensor
    scale: float
    whole = False

    def start(self, blocks: Blocks) -> Apply:
        vector = self.vector.floats() * np.float32(self.scale)  # [rows, 1]
        return lambda block, at: block + vector[at : at + len(block)]


@dataclass(frozen=True)
class Replace:
    """Takes the rows of another tensor, from `first` on."""

    tensor: Tensor
    first: int = 0
    whole = True

    def start(self, blocks: Blocks) -> Apply:
        raw = self.tensor.raw()
        return lambda block, at: self.tensor.floats(raw[self.first + at : self.first + at + len(block)])


@dataclass(frozen=True)
class ReplaceRows:
    """Gives certain rows the values of another tensor's rows."""

    tensor: Tensor
    rows: Sequence[int]
    whole = False

    def start(self, blocks: Blocks) -> Apply:
        values = self.tensor.floats()
        numbers = np.asarray(self.rows, np.int64)

        def replace(block: Floats, at: int) -> Floats:
            inside = (numbers >= at) & (numbers < at + len(block))
            out = block.copy()
            out[numbers[inside] - at] = values[inside]
            return out

        return replace
