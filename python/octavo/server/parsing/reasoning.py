"""Reasoning in a model's text: `<think> ... </think>` before the answer."""

from __future__ import annotations

import re

from octavo.server.parsing.pieces import Parser, Piece, Reasoning, overlap


class Thinking(Parser):
    """Separates reasoning, and passes the rest to another parser.

    Args:
        rest: parser of the text after the reasoning.
        begin, end: the marks.
        inside: the text begins with reasoning, because the template wrote `begin`. A second `begin` is dropped.
    """

    def __init__(self, rest: Parser, begin: str = "<think>", end: str = "</think>", *, inside: bool = False) -> None:
        self._rest = rest
        self._begin = begin
        self._end = end
        self._state = "before"
        self._without = "inside" if inside else "after"
        self._held = ""
        # White space before the text, in parts. Each part is read once.
        self._space: list[str] = []

    def feed(self, text: str) -> list[Piece]:
        out: list[Piece] = []
        data = self._held + text
        self._held = ""
        if self._state == "before":
            start = data.lstrip()
            self._space.append(data[: len(data) - len(start)])
            if len(start) < len(self._begin) and self._begin.startswith(start):
                self._held = start
                return out
            if start.startswith(self._begin):
                self._state = "inside"
                data = start.removeprefix(self._begin)
            else:
                self._state = self._without
                data = "".join(self._space) + start
            self._space = []
        if self._state == "inside":
            found = data.find(self._end)
            if found < 0:
                keep = overlap(data, self._end)
                if len(data) > keep:
                    out.append(Reasoning(data[: len(data) - keep]))
                self._held = data[len(data) - keep :] if keep else ""
                return out
            if found:
                out.append(Reasoning(data[:found]))
            self._state = "gap"
            data = data[found + len(self._end) :]
        if self._state == "gap":
            # Empty lines after the mark are dropped.
            data = data.lstrip()
            if not data:
                return out
            self._state = "after"
        return out + self._rest.feed(data)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        held, self._held, self._space = "".join(self._space) + self._held, "", []
        if not held:
            return self._rest.finish(cut=cut)
        if self._state == "inside" or (self._state == "before" and self._without == "inside"):
            return [Reasoning(held), *self._rest.finish(cut=cut)]
        return [*self._rest.feed(held), *self._rest.finish(cut=cut)]


class Without(Parser):
    """Removes marks, and passes the rest to another parser."""

    def __init__(self, rest: Parser, *marks: str) -> None:
        self._rest = rest
        self._marks = marks
        self._any = re.compile("|".join(map(re.escape, marks)))
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        *before, last = self._any.split(self._held + text)
        keep = max(overlap(last, mark) for mark in self._marks)
        self._held = last[len(last) - keep :]
        found = "".join(before) + last[: len(last) - keep]
        return self._rest.feed(found) if found else []

    def finish(self, *, cut: bool = False) -> list[Piece]:
        held, self._held = self._held, ""
        return [*(self._rest.feed(held) if held else []), *self._rest.finish(cut=cut)]
