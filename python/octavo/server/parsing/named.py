"""Tool calls with the name before the arguments: `begin NAME sep {...} end`."""

from __future__ import annotations

import re

from octavo.server.parsing.calls import SPACE, ObjectReader
from octavo.server.parsing.pieces import Arguments, Call, Content, Parser, Piece, Plain, Stepwise, add, up_to

# Maximum length of a name, including text around it.
_LONGEST = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_FIRST_LINE = re.compile(r"\s*([A-Za-z0-9_.-]{1,128})[ \t]*\r?\n\s*\{")
_FIRST_LINE_BEGUN = re.compile(r"\s*[A-Za-z0-9_.-]{0,128}[ \t]*(\r?\n\s*)?")


class Named(Stepwise):
    """Calls that begin with a mark, then the name.

    Args:
        begin: the mark before the first call. Text before it is content.
        sep: between name and arguments.
        ends: marks that end calls. These marks, and white space between calls, are dropped.
        repeat: the mark of each call, if it differs from `begin`.
        drop: the name begins after this text. cut: the name ends before this text.
    """

    def __init__(
        self, begin: str, sep: str, ends: tuple[str, ...] = (), *, repeat: str = "", drop: str = "", cut: str = ""
    ) -> None:
        super().__init__()
        self._begin = begin
        self._marks = tuple(dict.fromkeys(m for m in (begin, repeat, *ends) if m))
        self._repeat = repeat or begin
        self._sep = sep
        self._drop = drop
        self._cut = cut
        self._state = "text"
        self._name = ""
        self._reader: ObjectReader | None = None
        # The first mark, if no call has followed it yet.
        self._opened = ""

    def _step(self, data: str, at: int, out: list[Piece]) -> int:
        if self._state == "text":
            return self._text(data, at, out)
        if self._state == "name":
            return self._take_name(data, at, out)
        if self._state == "arguments":
            return self._arguments(data, at, out)
        return self._between(data, at, out)

    def _text(self, data: str, at: int, out: list[Piece]) -> int:
        at, found = up_to(self._begin, data, at, out)
        if found != self._begin:
            self._held = found
            return at
        self._name = ""
        self._state = "name"
        if self._repeat != self._begin:
            self._state, self._opened = "between", self._begin
        return at

    def _take_name(self, data: str, at: int, out: list[Piece]) -> int:
        # The held text is bounded: each character is read a bounded number of times.
        before = len(self._name)
        self._name += data[at : at + _LONGEST - before]
        found = self._name.find(self._sep, max(0, before - len(self._sep)))
        if found < 0 and len(self._name) < _LONGEST:
            return len(data)
        end = len(self._name) if found < 0 else found + len(self._sep)
        name = self._name[: max(found, 0)]
        name = name.rpartition(self._drop)[2] if self._drop else name
        name = (name.partition(self._cut)[0] if self._cut else name).strip()
        if _NAME.fullmatch(name):
            out.append(Call(name))
            self._reader = ObjectReader()
            self._state = "arguments"
        else:
            # No call follows the mark: the mark is content.
            add(out, Content(self._opened + self._repeat + self._name[:end]))
            self._state = "text"
        self._opened = ""
        return at + end - before

    def _arguments(self, data: str, at: int, out: list[Piece]) -> int:
        reader = self._reader
        assert reader is not None
        begin = at
        while at < len(data) and not reader.done:
            if reader.depth == 0 and data[at] in SPACE:
                begin = at + 1
            elif not reader.feed(data[at]):
                break
            at += 1
        add(out, Arguments(data[begin:at]))
        if at < len(data) or reader.done:
            self._state = "between"
            self._reader = None
        return at

    def _between(self, data: str, at: int, out: list[Piece]) -> int:
        if data[at] in SPACE:
            return at + 1
        rest = data[at : at + max(map(len, self._marks))]
        for mark in self._marks:
            if rest.startswith(mark):
                # A name follows `repeat` only.
                if mark == self._repeat:
                    self._name, self._state = "", "name"
                return at + len(mark)
        if any(mark.startswith(rest) for mark in self._marks) and at + len(rest) == len(data):
            self._held = rest
            return len(data)
        add(out, Content(self._opened))
        self._state, self._opened = "text", ""
        return at

    def finish(self, *, cut: bool = False) -> list[Piece]:
        out: list[Piece] = []
        if self._state == "name":
            add(out, Content(self._opened + self._repeat + self._name))
        else:
            add(out, Content(self._opened + self._held))
        self._opened, self._held, self._name, self._reader, self._state = "", "", "", None, "text"
        return out


class FirstLine(Parser):
    """One call, which is the complete text: the name on the first line, then the arguments (GLM-4)."""

    def __init__(self) -> None:
        self._start = ""
        self._inner: Parser | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._inner is not None:
            return self._inner.feed(text)
        self._start += text
        head = self._start[:_LONGEST]
        call = _FIRST_LINE.match(head)
        if call:
            self._inner = Named("\0", "\n")
            return [*self._inner.feed(f"\0{call.group(1)}\n"), *self._inner.feed(self._start[call.end() - 1 :])]
        if len(head) < _LONGEST and _FIRST_LINE_BEGUN.fullmatch(head):
            return []
        self._inner = Plain()
        return [Content(self._start)]

    def finish(self, *, cut: bool = False) -> list[Piece]:
        if self._inner is not None:
            return self._inner.finish(cut=cut)
        return [Content(self._start)] if self._start else []
