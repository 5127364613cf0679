"""The arguments of earlier calls: an object for the chat template, whatever a model or a client wrote."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Key of what is no JSON object.
UNREADABLE = "arguments"
# Deeper arguments are shown as text.
_DEEPEST = 48
# Python reads no longer integers.
_LONGEST_INTEGER = 4000
# A string with its closing quote, if it has one, or what structures JSON.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[{}\[\],]', re.DOTALL)


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
            value = _DECODER.decode(given)
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


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _LONGEST_INTEGER else text


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


_DECODER = json.JSONDecoder(strict=False, parse_int=_integer, parse_float=_number, parse_constant=str)


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
    """The object that `text` begins, as far as it goes; None if it begins none, or if more than its end is lost."""
    if not text.lstrip().startswith("{"):
        return None
    closed = _object(text.rstrip("}] \n") + "}")
    if closed:
        return closed
    end, brackets, closing, in_text = _scan(text)
    candidates = [text[:end] + brackets]
    if in_text:
        # The text may end inside an escape.
        candidates = [text + '"' + closing, text[: text.rfind("\\")] + '"' + closing, *candidates]
    elif not closing:
        return None
    else:
        candidates.insert(0, text + closing)
    found = next((value for c in candidates if (value := _object(c)) is not None), None)
    return found or ({} if not text.strip(" {\n") else None)


def _scan(text: str) -> tuple[int, str, str, bool]:
    """The end of the last whole item and the brackets that close it there, the brackets that close all of `text`, and
    whether it ends inside a string."""
    last, brackets, closing, in_text = 0, "", "", False
    for found in _TOKEN.finditer(text):
        c = found[0][0]
        if c == '"':
            in_text = not found[1]
        elif c in "{[":
            closing = ("}" if c == "{" else "]") + closing
            last, brackets = found.end(), closing
            if len(closing) > _DEEPEST:
                break
        elif c in "}]":
            closing = closing[1:]
        else:
            last, brackets = found.start(), closing
    return last, brackets, closing, in_text


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
