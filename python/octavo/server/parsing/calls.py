"""Tool calls in a model's text: JSON objects between marks."""

from __future__ import annotations

from collections.abc import Container

from octavo.server.parsing.pieces import (
    Arguments,
    Call,
    Content,
    Parser,
    Piece,
    Plain,
    Stepwise,
    add,
    up_to,
)

SPACE = " \t\r\n"


class CallReader:
    """Reads one object `{"name": "...", "arguments": {...}}` one character at a time, and emits arguments at once.

    The keys may have either order. Arguments before the name are held until the name is read.

    Args:
        names: names of functions; an object with another name is no call. None: any name.
    """

    def __init__(self, keys: tuple[str, ...], name_key: str = "name", names: Container[str] | None = None) -> None:
        self._keys = keys
        self._name_key = name_key
        self._names = names
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._text: list[str] = []
        # The current string at depth 1, and the last key.
        self._string: list[str] = []
        self._key = ""
        self._after_colon = False
        self._taking = False
        self._waiting: list[str] = []
        self.name: str | None = None
        self.done = False
        self.broken = False

    @property
    def text(self) -> str:
        """All text read so far."""
        return "".join(self._text)

    def feed(self, char: str, out: list[Piece]) -> None:
        self._text.append(char)
        if self._in_string:
            self._in_text(char, out)
        elif char == '"':
            self._in_string = True
            self._string = []
            self._start_value()
            self._take(char, out)
        elif char in "{[":
            self._start_value()
            self._depth += 1
            self._take(char, out)
        elif char in "}]":
            self._depth -= 1
            if self._taking and self._depth == 0:
                self._end_value()
            self._take(char, out)
            if self._taking and self._depth == 1:
                self._end_value()
            if self._depth == 0:
                self.done = True
                self.broken = self.name is None
        elif self._depth == 1 and char == ":":
            self._after_colon = True
        elif self._depth == 1 and char == ",":
            if self._taking:
                self._end_value()
            self._after_colon = False
        elif char not in SPACE and self._depth == 0:
            self.done = self.broken = True
        else:
            if char not in SPACE:
                self._start_value()
            self._take(char, out)

    def _start_value(self) -> None:
        if self._depth == 1 and self._after_colon and not self._taking and self._key in self._keys:
            self._taking = True

    def _end_value(self) -> None:
        self._taking = False
        self._after_colon = False
        self._key = ""

    def _take(self, char: str, out: list[Piece]) -> None:
        if not self._taking:
            return
        if self.name is None:
            self._waiting.append(char)
        else:
            add(out, Arguments(char))

    def _in_text(self, char: str, out: list[Piece]) -> None:
        self._take(char, out)
        if self._escaped:
            self._escaped = False
            self._string.append("\\" + char)
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1 and not self._taking:
                self._end_of_string("".join(self._string), out)
            elif self._depth == 1 and self._taking:
                self._end_value()
        else:
            self._string.append(char)

    def _end_of_string(self, text: str, out: list[Piece]) -> None:
        if not self._after_colon:
            self._key = text
        elif self._key == self._name_key and self.name is None:
            if self._names is not None and text not in self._names:
                self.done = self.broken = True
                return
            self.name = text
            out.append(Call(text))
            if self._waiting:
                out.append(Arguments("".join(self._waiting)))
                self._waiting = []


class ObjectReader:
    """Finds the end of one JSON object."""

    def __init__(self) -> None:
        self.depth = 0
        self.done = False
        self._in_string = False
        self._escaped = False

    def feed(self, char: str) -> bool:
        """Reads a character; False: it is outside of an object."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char in "{[":
            if not self.depth and char != "{":
                return False
            self.depth += 1
        elif not self.depth:
            return False
        elif char in "}]":
            self.depth -= 1
            self.done = not self.depth
        elif char == '"':
            self._in_string = True
        return True


class Marked(Stepwise):
    """Calls that begin with a mark: `begin {...} end`, or `begin [{...}, {...}]`.

    Args:
        begin: the mark. Text before it is content.
        end: the mark after each call, or "".
        keys: names under which the arguments may stand.
        name_key: under which the name stands.
        begun: the text begins after the mark.
        names: see CallReader.
    """

    def __init__(
        self,
        begin: str,
        end: str,
        keys: tuple[str, ...] = ("arguments", "parameters"),
        *,
        name_key: str = "name",
        begun: bool = False,
        names: Container[str] | None = None,
    ) -> None:
        super().__init__()
        self._begin = begin
        self._end = end
        self._keys = keys
        self._name_key = name_key
        self._names = names
        self._reader: CallReader | None = None
        # True between the mark and the end of the calls.
        self._inside = begun
        self._raw: list[str] = []
        # A call has ended, and no content followed yet.
        self._called = False

    def _step(self, data: str, at: int, out: list[Piece]) -> int:
        if self._reader is not None:
            return self._read(data, at, out)
        if self._inside:
            return self._between(data, at, out)
        return self._outside(data, at, out)

    def _outside(self, data: str, at: int, out: list[Piece]) -> int:
        if self._called:
            # White space between calls is not content.
            if data[at] in SPACE:
                return at + 1
            self._called = False
        at, found = up_to(self._begin, data, at, out)
        if found == self._begin:
            self._inside = True
            self._raw = [self._begin]
        else:
            self._held = found
        return at

    def _between(self, data: str, at: int, out: list[Piece]) -> int:
        """Between calls: spaces, brackets, commas, marks; an object begins a call, anything else ends them."""
        char = data[at]
        if char == "{":
            self._reader = CallReader(self._keys, self._name_key, self._names)
            return at
        if self._end and self._end.startswith(data[at : at + len(self._end)]):
            if len(data) - at < len(self._end):
                self._held = data[at:]
                return len(data)
            self._inside = False
            self._called = self._raw[:1] != [self._begin]
            self._raw = []
            return at + len(self._end)
        if char in SPACE or char in "[],;":
            self._raw.append(char)
            if char == "]" and not (self._end and self._raw[:1] != [self._begin]):
                self._inside = False
                self._called = True
                self._raw = []
            return at + 1
        # No call follows the mark: the mark is content.
        add(out, Content("".join(self._raw) if self._raw[:1] == [self._begin] else ""))
        self._inside = False
        self._raw = []
        return at

    def _read(self, data: str, at: int, out: list[Piece]) -> int:
        reader = self._reader
        assert reader is not None
        while at < len(data) and not reader.done:
            reader.feed(data[at], out)
            at += 1
        if reader.done:
            self._reader = None
            if reader.broken:
                add(out, Content("".join(self._raw) + reader.text))
                self._inside = False
            self._raw = []
        return at

    def finish(self, *, cut: bool = False) -> list[Piece]:
        out: list[Piece] = []
        if self._reader is not None and self._reader.name is None:
            add(out, Content("".join(self._raw) + self._reader.text))
        elif self._reader is None and self._inside and self._raw and self._raw[0] == self._begin:
            add(out, Content("".join(self._raw) + self._held))
        elif not self._inside:
            add(out, Content(self._held))
        self._reader, self._held, self._raw, self._inside = None, "", [], False
        return out


class Bare(Parser):
    """Calls without a mark: the whole text is one object, or several separated by `;` (Llama 3).

    Args:
        names: see CallReader.
    """

    def __init__(self, mark: str = "<|python_tag|>", *, names: Container[str] | None = None) -> None:
        self._mark = mark
        self._names = names
        # White space before the text, in parts. Each part is read once.
        self._space: list[str] = []
        self._start = ""
        self._inner: Parser | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._inner is not None:
            return self._inner.feed(text)
        data = self._start + text
        start = self._start = data.lstrip()
        self._space.append(data[: len(data) - len(start)])
        if not start or (len(start) < len(self._mark) and self._mark.startswith(start)):
            return []
        if start.startswith(self._mark) or start.startswith("{"):
            # The text after the mark is parsed as calls.
            self._inner = Marked(self._mark, "", begun=True, names=self._names)
            return self._inner.feed(start.removeprefix(self._mark))
        self._inner = Plain()
        return self._content()

    def finish(self, *, cut: bool = False) -> list[Piece]:
        return self._content() if self._inner is None else self._inner.finish(cut=cut)

    def _content(self) -> list[Piece]:
        text = "".join(self._space) + self._start
        return [Content(text)] if text else []
