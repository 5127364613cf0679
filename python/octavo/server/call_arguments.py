"""The arguments of earlier calls: an object for the chat template, whatever a model or a client wrote."""

from __future__ import annotations

import json
import math
from typing import Any

# Key of what is no JSON object.
UNREADABLE = "arguments"
# Deeper arguments are shown as text.
_DEEPEST = 48
# Python reads no longer integers.
_LONGEST_INTEGER = 4000
# Attempts to mend a text that was cut off.
_TRIES = 16


def arguments_object(given: Any) -> tuple[dict[str, Any], bool]:
    """The arguments as an object, and whether `given` was one, or its JSON, or nothing.

    A text that was cut off is closed. Anything else is kept below the key `arguments`: a conversation never ends
    because of it.
    """
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}, True
    value = given
    if isinstance(given, str):
        try:
            value = _load(given)
        except (ValueError, RecursionError):
            mended = _mended(given)
            value = given if mended is None else mended
            return _wrapped(value, given), False
    if value is None:
        return {}, True
    return _wrapped(value, given), isinstance(value, dict)


def _wrapped(value: Any, given: Any) -> dict[str, Any]:
    try:
        clean = _clean(value, _DEEPEST)
    except RecursionError:
        clean = _text(given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))
    return clean if isinstance(clean, dict) else {UNREADABLE: clean}


def _load(text: str) -> Any:
    return json.loads(text, strict=False, parse_int=_integer, parse_float=_number, parse_constant=str)


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _LONGEST_INTEGER else text


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _clean(value: Any, depth: int) -> Any:
    """`value` without text that is no Unicode.

    Raises:
        RecursionError: it is nested too deeply.
    """
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        raise RecursionError
    if isinstance(value, dict):
        return {_text(key): _clean(item, depth - 1) for key, item in value.items()}
    return [_clean(item, depth - 1) for item in value]


def _text(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mended(text: str) -> dict[str, Any] | None:
    """The object that `text` begins, as far as it goes; None if it begins none."""
    if not text.lstrip().startswith("{"):
        return None
    # Positions where an item can end: before a comma, and after an opening bracket.
    ends, closing, in_text = _scan(text)
    for candidate in [text + '"' + closing, text[:-1] + '"' + closing] if in_text else [text + closing]:
        found = _object(candidate)
        if found is not None:
            return found
    for end, brackets in reversed(ends[-_TRIES:]):
        found = _object(text[:end] + brackets)
        if found is not None:
            return found
    return None


def _scan(text: str) -> tuple[list[tuple[int, str]], str, bool]:
    """Places to cut `text` with the brackets that close it there, the brackets that close all of it, and whether it
    ends inside a string."""
    ends: list[tuple[int, str]] = []
    closing = ""
    in_text = escaped = False
    for i, c in enumerate(text):
        if in_text:
            in_text = escaped or c != '"'
            escaped = not escaped and c == "\\"
        elif c == '"':
            in_text = True
        elif c in "{[":
            closing = ("}" if c == "{" else "]") + closing
            ends.append((i + 1, closing))
        elif c in "}]":
            closing = closing[1:]
        elif c == ",":
            ends.append((i, closing))
    return ends, closing, in_text


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = _load(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
