"""Tool calls in Python syntax: `[f(x=1, s='a'), g()]`. Arguments are converted to JSON while they are read."""

from __future__ import annotations

import json

from octavo.server.parsing.calls import SPACE
from octavo.server.parsing.pieces import (
    Arguments,
    Call,
    Content,
    Piece,
    Plain,
    Stepwise,
    add,
    up_to,
)

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
# Escapes of Python that differ from JSON -> JSON; and the number of hexadecimal digits after \\x, \\u and \\U.
_ESCAPES = {"'": "'", "a": "\\u0007", "v": "\\u000b", "0": "\\u0000", "\n": ""}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_LONGEST = 256
# Characters that no name of an argument has.
_NO_NAME = frozenset(SPACE + "=,()\"'\\")


class CallsReader:
    """Reads calls one character at a time. `broken`: the text is not a call."""

    def __init__(self, closer: str) -> None:
        self._closer = closer
        self._state = "call"
        self._word = ""
        self._quote = ""
        self._escape = ""
        self._stack: list[str] = []
        self._keys = 0
        self.done = False
        self.broken = False
        self.calls = 0

    @property
    def between(self) -> bool:
        """Outside of a call and of its name."""
        return self._state == "call" and not self._word

    def feed(self, char: str, out: list[Piece]) -> None:
        if self._state == "call":
            self._call(char, out)
        elif self._state == "key":
            self._key(char, out)
        elif self._state == "value":
            self._value(char, out)
        else:
            self._string(char, out)

    def _call(self, char: str, out: list[Piece]) -> None:
        """Between calls, or in a name."""
        if char == "(" and self._word.replace(".", "_").replace("-", "_").isidentifier():
            out.append(Call(self._word))
            add(out, Arguments("{"))
            self._word, self._keys, self._state = "", 0, "key"
            self.calls += 1
        elif self._word and (char.isalnum() or char in "_.-"):
            self._word += char
            self.broken = len(self._word) > _LONGEST
        elif not self._word and (char.isalpha() or char == "_"):
            self._word = char
        elif not self._word and char == self._closer:
            self.done = True
        elif self._word or char not in SPACE + ",;":
            self.broken = True

    def _key(self, char: str, out: list[Piece]) -> None:
        if char == ")" and not self._word:
            add(out, Arguments("}"))
            self._state = "call"
        elif char == "=" and self._word:
            add(out, Arguments((", " if self._keys else "") + json.dumps(self._word) + ": "))
            self._keys += 1
            self._word, self._state = "", "value"
        elif char not in _NO_NAME:
            # Also what Python has no word for: names of arguments come from schemas.
            self._word += char
            self.broken = len(self._word) > _LONGEST
        elif char not in SPACE + ",":
            self.broken = True

    def _value(self, char: str, out: list[Piece]) -> None:
        """In a value, outside of strings."""
        if char.isalnum() or char in "+-._":
            self._word += char
            self.broken = len(self._word) > _LONGEST
            return
        if self._word:
            word, self._word = self._word, ""
            self._say_word(word, out)
        if char in "\"'":
            self._quote, self._state = char, "string"
            add(out, Arguments('"'))
        elif char in "[({":
            self._stack.append("}" if char == "{" else "]")
            add(out, Arguments("{" if char == "{" else "["))
        elif char in "])}" and self._stack:
            add(out, Arguments(self._stack.pop()))
        elif char == ")":
            add(out, Arguments("}"))
            self._state = "call"
        elif char == "," and not self._stack:
            self._state = "key"
        elif char in ",:" and self._stack:
            add(out, Arguments(f"{char} "))
        elif char not in SPACE:
            self.broken = True

    def _say_word(self, word: str, out: list[Piece]) -> None:
        text = _WORDS.get(word)
        if text is None:
            try:
                text = json.dumps(json.loads(word.replace("_", "").removeprefix("+")), allow_nan=False)
            except ValueError:
                # Some models omit the quotes.
                text = json.dumps(word)
            else:
                # Unchanged: a number may have more digits than a double.
                text = word.replace("_", "").removeprefix("+")
        add(out, Arguments(text))

    def _string(self, char: str, out: list[Piece]) -> None:
        if self._escape:
            self._escaped(char, out)
        elif char == "\\":
            self._escape = "\\"
        elif char == self._quote:
            self._state = "value"
            add(out, Arguments('"'))
        else:
            add(out, Arguments(json.dumps(char, ensure_ascii=False)[1:-1]))

    def _escaped(self, char: str, out: list[Piece]) -> None:
        self._escape += char
        kind = self._escape[1]
        wanted = _DIGITS.get(kind, 0)
        if len(self._escape) < 2 + wanted:
            return
        digits, self._escape = self._escape[2:], ""
        if wanted:
            try:
                code = int(digits, 16)
                text = f"\\u{code:04x}" if code < 0x10000 else json.dumps(chr(code))[1:-1]
            except (ValueError, OverflowError):
                text = json.dumps(f"\\{kind}{digits}", ensure_ascii=False)[1:-1]
        elif kind in '"\\/bfnrt':
            text = f"\\{kind}"
        else:
            text = _ESCAPES.get(kind, json.dumps(f"\\{kind}", ensure_ascii=False)[1:-1])
        add(out, Arguments(text))


class Pythonic(Stepwise):
    """Calls in a list, which is the complete text (Llama), or calls between marks (OLMo 3).

    Args:
        begin: the mark before the calls; "": the complete text is a list of calls.
        end: the mark after the calls.
        around: marks around the text, which are dropped.
    """

    def __init__(self, begin: str = "", end: str = "", around: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._begin = begin
        self._end = end
        self._around = around
        self._raw = ""
        self._reader: CallsReader | None = None
        self._state = "text" if begin else "start"

    def _step(self, data: str, at: int, out: list[Piece]) -> int:
        if self._state == "start":
            return self._start(data, at, out)
        if self._state == "calls":
            return self._calls(data, at, out)
        if self._state == "after":
            return self._after(data, at, out)
        return self._text(data, at, out)

    def _start(self, data: str, at: int, out: list[Piece]) -> int:
        """At the beginning of the text, which may be a list."""
        rest = data[at:].lstrip()
        after = self._past_mark(data, rest)
        if after:
            return after
        if len(data) - at < _LONGEST and (not rest or any(mark.startswith(rest) for mark in self._around)):
            self._held = data[at:]
            return len(data)
        if rest.startswith("["):
            self._reader = CallsReader("]")
            self._raw, self._state = data[at : len(data) - len(rest)] + "[", "calls"
            return len(data) - len(rest) + 1
        self._state = "plain"
        return at

    def _past_mark(self, data: str, rest: str) -> int:
        """End in `data` of the mark that `rest`, a suffix of `data`, begins with; 0: there is none."""
        found = next((mark for mark in self._around if rest.startswith(mark)), "")
        return len(data) - len(rest) + len(found) if found else 0

    def _text(self, data: str, at: int, out: list[Piece]) -> int:
        if not self._begin:
            out += Plain().feed(data[at:])
            return len(data)
        at, found = up_to(self._begin, data, at, out)
        if found == self._begin:
            self._reader = CallsReader("")
            self._raw, self._state = self._begin, "calls"
        else:
            self._held = found
        return at

    def _calls(self, data: str, at: int, out: list[Piece]) -> int:
        reader = self._reader
        assert reader is not None
        raw: list[str] = []
        while at < len(data) and not (reader.done or reader.broken):
            char = data[at]
            if self._end and char == self._end[0] and reader.between:
                rest = data[at : at + len(self._end)]
                if rest == self._end:
                    self._state = "after"
                    return at + len(rest)
                if self._end.startswith(rest) and at + len(rest) == len(data):
                    self._held = rest
                    break
            reader.feed(char, out)
            raw.append(char)
            at += 1
        if not reader.calls:
            self._raw += "".join(raw)
        if self._held:
            return len(data)
        if reader.broken:
            if reader.calls:
                # The character that is not part of a call is content.
                at -= 1
            else:
                add(out, Content(self._raw))
            self._state = "text"
        elif reader.done:
            self._state = "after"
            if not reader.calls:
                # An empty list is content.
                add(out, Content(self._raw))
                self._state = "text"
        return at

    def _after(self, data: str, at: int, out: list[Piece]) -> int:
        """After the calls: drops white space and marks."""
        rest = data[at:].lstrip()
        after = self._past_mark(data, rest)
        if after:
            return after
        if rest and any(mark.startswith(rest) for mark in self._around):
            self._held = rest
            return len(data)
        if rest:
            self._state = "text"
        return len(data) - len(rest)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        out: list[Piece] = []
        if self._state == "calls" and self._reader is not None and not self._reader.calls:
            add(out, Content(self._raw + self._held))
        elif self._state in ("text", "start", "plain"):
            add(out, Content(self._held))
        self._held, self._raw, self._reader, self._state = "", "", None, "plain"
        return out
