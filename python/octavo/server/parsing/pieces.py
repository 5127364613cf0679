"""The pieces that a parser makes of a model's text."""

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
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True)
class Call:
    """A tool call begins."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the JSON text of the arguments of the latest call."""

    text: str


Piece: TypeAlias = Content | Reasoning | Call | Arguments


class Parser(ABC):
    """Takes text in any portions and gives pieces, in linear time. How the text was cut makes no difference."""

    @abstractmethod
    def feed(self, text: str) -> list[Piece]:
        """Pieces that have become certain."""

    @abstractmethod
    def finish(self) -> list[Piece]:
        """What is left: a format that was begun and not ended is content as it stands."""


class Plain(Parser):
    """All is content."""

    def feed(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


# Characters that are joined one by one: a long text at once would take time that grows with its square.
_PORTION = 1024


class Stepwise(Parser):
    """Reads the text step by step. What may yet become a mark is held back until more has come."""

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
        """Reads on in `data` from `at`, adds pieces to `out`, and says where the next step begins.

        What it leaves in `_held` comes again, before the text that follows.
        """


def add(out: list[Piece], piece: Content | Arguments) -> None:
    """Joins what belongs together, so that a portion of text makes few pieces."""
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
    """Length of the longest end of `text` that begins `mark`: it may become the mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


def up_to(mark: str, data: str, at: int, out: list[Piece]) -> tuple[int, str]:
    """Gives what stands in `data` from `at` to `mark` as content.

    Returns:
        Where the mark ends, and the mark; or where `data` ends, and what is held back since it may become the mark.
    """
    found = data.find(mark, at)
    keep = overlap(data[at:], mark) if found < 0 else 0
    end = len(data) - keep if found < 0 else found
    add(out, Content(data[at:end]))
    return (len(data), data[end:]) if found < 0 else (found + len(mark), mark)
