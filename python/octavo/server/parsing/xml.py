"""Tool calls with a mark for each argument (Qwen3-Coder):

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    value
    </parameter>
    </function>
    </tool_call>

Arguments are converted to JSON. String values have no quotes in the text; all other values are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping

from octavo.server.parsing.calls import SPACE
from octavo.server.parsing.pieces import (
    Arguments,
    Call,
    Content,
    Piece,
    Stepwise,
    add,
    overlap,
    up_to,
)

_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
# Maximum length of a name, including the `>` after it.
_LONGEST = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}>")


class Xml(Stepwise):
    """Reads calls between `begin` and `end`.

    Args:
        texts: for each function, its string parameters.
    """

    def __init__(
        self, texts: Mapping[str, Container[str]], begin: str = "<tool_call>", end: str = "</tool_call>"
    ) -> None:
        super().__init__()
        self._texts = texts
        self._begin = begin
        self._end = end
        self._state = "text"
        # Text since the mark, until a call begins.
        self._raw = ""
        self._name = ""
        self._of_function: Container[str] = ()
        self._keys = 0
        self._value = Value(text=False)
        # A call has ended: white space until the next call is not content.
        self._called = False

    def _step(self, data: str, at: int, out: list[Piece]) -> int:
        if self._state == "text":
            return self._text(data, at, out)
        if self._state == "name":
            return self._function(data, at, out)
        if self._state == "key":
            return self._key(data, at, out)
        if self._state == "value":
            return self._argument(data, at, out)
        return self._between(data, at, out)

    def _text(self, data: str, at: int, out: list[Piece]) -> int:
        if self._called and data[at] in SPACE:
            return at + 1
        self._called = False
        at, found = up_to(self._begin, data, at, out)
        if found == self._begin:
            self._state, self._raw = "opened", self._begin
        else:
            self._held = found
        return at

    def _between(self, data: str, at: int, out: list[Piece]) -> int:
        """Before, in and after a function, where only marks and white space are allowed."""
        if data[at] in SPACE:
            self._raw += data[at] if self._raw else ""
            return at + 1
        marks = {"opened": (_FUNCTION,), "inside": (_PARAMETER, _END_FUNCTION), "closed": (_FUNCTION, self._end)}
        for mark in marks[self._state]:
            if data.startswith(mark, at):
                self._passed(mark, out)
                return at + len(mark)
        if any(mark.startswith(data[at:]) for mark in marks[self._state]):
            self._held = data[at:]
            return len(data)
        if self._state == "inside":
            # Any other text ends the call.
            add(out, Arguments("}"))
        # No call follows the mark: the mark is content.
        add(out, Content(self._raw))
        self._state, self._raw = "text", ""
        return at

    def _passed(self, mark: str, out: list[Piece]) -> None:
        if mark == _FUNCTION:
            self._state, self._name = "name", ""
            self._raw += mark if self._raw else ""
        elif mark == _PARAMETER:
            self._state, self._name = "key", ""
        elif mark == _END_FUNCTION:
            add(out, Arguments("}"))
            self._state = "closed"
        else:
            self._state, self._called = "text", True

    def _take_name(self, data: str, at: int) -> int:
        """Reads a name and the `>` after it, up to the maximum length."""
        found = data.find(">", at)
        end = min(len(data) if found < 0 else found + 1, at + _LONGEST - len(self._name))
        self._name += data[at:end]
        return end

    def _function(self, data: str, at: int, out: list[Piece]) -> int:
        at = self._take_name(data, at)
        name = self._name.removesuffix(">")
        if name == self._name and len(name) < _LONGEST:
            return at
        if _NAME.fullmatch(self._name):
            out.append(Call(name))
            add(out, Arguments("{"))
            self._of_function, self._keys, self._state = self._texts.get(name, ()), 0, "inside"
        else:
            add(out, Content((self._raw or _FUNCTION) + self._name))
            self._state = "text"
        self._raw = ""
        return at

    def _key(self, data: str, at: int, out: list[Piece]) -> int:
        at = self._take_name(data, at)
        if self._name.endswith(">") or len(self._name) >= _LONGEST:
            key = self._name.removesuffix(">")
            add(out, Arguments((", " if self._keys else "") + json.dumps(key, ensure_ascii=False) + ": "))
            self._keys += 1
            self._value, self._state = Value(text=key in self._of_function), "value"
            add(out, Arguments(self._value.begin))
        return at

    def _argument(self, data: str, at: int, out: list[Piece]) -> int:
        found = data.find(_END_PARAMETER, at)
        if found < 0:
            # Part of the end mark, or of the newline before it.
            keep = overlap(data[at:], "\n" + _END_PARAMETER) or overlap(data[at:], _END_PARAMETER)
            add(out, Arguments(self._value.more(data[at : len(data) - keep])))
            self._held = data[len(data) - keep :]
            return len(data)
        add(out, Arguments(self._value.more(data[at:found].removesuffix("\n")) + self._value.end()))
        self._state = "inside"
        return found + len(_END_PARAMETER)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        out: list[Piece] = []
        if self._state == "text":
            add(out, Content(self._held))
        elif self._state == "value":
            add(out, Arguments(self._value.more(self._held)))
        elif self._state == "name":
            add(out, Content((self._raw or _FUNCTION) + self._name))
        elif self._raw:
            add(out, Content(self._raw + self._held))
        self._state, self._held, self._raw, self._called = "text", "", "", False
        return out


class Value:
    """Converts the value of one argument to JSON.

    Args:
        text: the value is a string without quotes, emitted in parts; else it is JSON, emitted at its end.
    """

    def __init__(self, *, text: bool) -> None:
        self._text = text
        self._parts: list[str] = []
        # At the newline after the key's mark.
        self._at_mark = True
        self.begin = '"' if text else ""

    def more(self, part: str) -> str:
        if part and self._at_mark:
            self._at_mark = False
            part = part.removeprefix("\n")
        if self._text:
            return json.dumps(part, ensure_ascii=False)[1:-1]
        self._parts.append(part)
        return ""

    def end(self) -> str:
        if self._text:
            return '"'
        value = "".join(self._parts).strip()
        try:
            json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            # Some models write a string in place of another type.
            return json.dumps(value, ensure_ascii=False)
        return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
