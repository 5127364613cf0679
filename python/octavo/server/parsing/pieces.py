"""Parsers split a model's text into pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Reasoning of the model."""

    text: str


@dataclass(frozen=True)
class Call:
    """The beginning of a tool call."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """Next part of the JSON text of the last call's arguments."""

    text: str


Piece: TypeAlias = Content | Reasoning | Call | Arguments


class Parser(ABC):
    """Splits text into pieces in linear time. The result does not depend on how the text is divided into portions."""

    @abstractmethod
    def feed(self, text: str) -> list[Piece]:
        """Reads a portion; returns the pieces that are complete."""

    @abstractmethod
    def finish(self, *, cut: bool = False) -> list[Piece]:
        """The remaining pieces. An unfinished format is content."""


class Plain(Parser):
    """All text is content."""

    def feed(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def finish(self, *, cut: bool = False) -> list[Piece]:
        return []


# Maximum portion. Characters are joined one by one, which takes quadratic time in the length of a portion.
_PORTION = 1024


class Stepwise(Parser):
    """Reads the text in steps. Text that may become a mark is held until more text is read."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        if len(text) > _PORTION:
            starts = range(0, len(text), _PORTION)
            return [piece for start in starts for piece in self.feed(text[start : start + _PORTION])]
        out: list[Piece] = []
        data = self._held + text
        self._held = ""
        at = 0
        while at < len(data):
            at = self._step(data, at, out)
        return out

    @abstractmethod
    def _step(self, data: str, at: int, out: list[Piece]) -> int:
        """Reads `data` from `at` and adds pieces to `out`. Returns where the next step begins.

        Text left in `_held` is read again, before the next portion.
        """


def add(out: list[Piece], piece: Content | Arguments) -> None:
    """Adds `piece`, joined with the last piece if both have the same type."""
    if not piece.text:
        return
    last = out[-1] if out else None
    if isinstance(last, Content) and isinstance(piece, Content):
        out[-1] = Content(last.text + piece.text)
    elif isinstance(last, Arguments) and isinstance(piece, Arguments):
        out[-1] = Arguments(last.text + piece.text)
    else:
        out.append(piece)


def overlap(text: str, mark: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `mark`: it may become the mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


def up_to(mark: str, data: str, at: int, out: list[Piece]) -> tuple[int, str]:
    """Adds the text of `data` from `at` to `mark` as content.

    Returns:
        The end of the mark, and the mark; or the end of `data`, and the held suffix that may become the mark.
    """
    found = data.find(mark, at)
    keep = overlap(data[at:], mark) if found < 0 else 0
    end = len(data) - keep if found < 0 else found
    add(out, Content(data[at:end]))
    return (len(data), data[end:]) if found < 0 else (found + len(mark), mark)
