"""Parsers around others, for output that a grammar holds."""

from __future__ import annotations

from octavo.server.parsing.calls import SPACE
from octavo.server.parsing.pieces import Call, Content, Parser, Piece, Plain


class Calls(Parser):
    """Calls in a model's text. Of an output that was cut off, an unfinished mark or call is dropped.

    Args:
        inner: the parser of the calls.
        begin: the mark before a call, or "".
        forced: nothing but calls can come.
    """

    def __init__(self, inner: Parser, begin: str, *, forced: bool) -> None:
        self._inner = inner
        self._begin = begin
        self._forced = forced
        self._called = False
        # Text outside of forced calls: a part of their marks, unless the output ends by itself.
        self._stray: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        pieces = self._inner.feed(text)
        self._called = self._called or any(isinstance(piece, Call) for piece in pieces)
        if not self._forced:
            return pieces
        self._stray += [piece for piece in pieces if isinstance(piece, Content)]
        return [piece for piece in pieces if not isinstance(piece, Content)]

    def finish(self, *, cut: bool = False) -> list[Piece]:
        pieces = [*self._stray, *self._inner.finish(cut=cut)]
        self._stray = []
        return [piece for piece in pieces if not (cut and isinstance(piece, Content) and self._is_markup(piece.text))]

    def _is_markup(self, text: str) -> bool:
        """Whether `text`, which the parser held back until the end, is the beginning of a call."""
        return self._forced or self._called or bool(self._begin and text.startswith(self._begin))


class Either(Parser):
    """The whole text is calls if it begins with `begin`; else it is content.

    Args:
        calls: the parser of the calls.
    """

    def __init__(self, calls: Parser, begin: str) -> None:
        self._calls = calls
        self._begin = begin
        self._held = ""
        self._inner: Parser | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._inner is None:
            self._held += text
            start = self._held.lstrip(SPACE)
            if len(start) < len(self._begin) and self._begin.startswith(start):
                return []
            self._inner = self._calls if start.startswith(self._begin) else Plain()
            text, self._held = self._held, ""
        return self._inner.feed(text)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        if self._inner is not None:
            return self._inner.finish(cut=cut)
        held, self._held = self._held, ""
        return [Content(held)] if held else []
