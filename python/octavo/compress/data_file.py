"""Examples of a file of JSON lines: texts, prompts with completions, instructions with outputs, or chats."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError

__all__ = ["read_examples"]

# Fields of each format: required, then optional ones. An example has those of one.
_FORMATS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "messages": (frozenset(["messages"]), frozenset(["tools"])),
    "prompt": (frozenset(["prompt", "completion"]), frozenset()),
    "instruction": (frozenset(["instruction", "output"]), frozenset(["input"])),
    "text": (frozenset(["text"]), frozenset()),
}


def read_examples(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The examples of a file, one JSON object a line. Empty lines are skipped.

    An example is `{"messages": [...]}` (and `"tools"`), `{"prompt", "completion"}`, `{"instruction", "output"}` (and
    `"input"`; it becomes a chat) or `{"text"}`.

    Raises:
        InvalidRequestError: the file cannot be read, or a line is no example; the message has its number.
    """
    name = os.fspath(path)
    try:
        raw = Path(name).expanduser().read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{name}: {error.strerror or error}") from error
    examples = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            examples.append(_example(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{name}, line {number}: {error}") from error
    if not examples:
        raise InvalidRequestError(f"{name}: there is no example in it; a JSON object a line is expected")
    return examples


def _example(row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError("a JSON object is expected")
    found = next((kind for kind in _FORMATS if kind in row), None)
    if found is None:
        raise ValueError(f"one of {', '.join(_FORMATS)} is expected; the fields are {', '.join(sorted(row)) or 'none'}")
    required, optional = _FORMATS[found]
    if missing := sorted(required - set(row)):
        raise ValueError(f"{missing[0]} is missing beside {found}")
    if unknown := sorted(set(row) - required - optional):
        raise ValueError(f"unknown field {unknown[0]!r} beside {found}")
    if found == "messages":
        _check_messages(row["messages"])
        return dict(row)
    for field in required | (optional & set(row)):
        if not isinstance(row[field], str) or (field != "input" and not row[field]):
            raise ValueError(f"{field} is {row[field]!r}: a text is expected")
    if found != "instruction":
        return dict(row)
    asked = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    answer = {"role": "assistant", "content": row["output"]}
    return {"messages": [{"role": "user", "content": asked}, answer]}


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: a list of {'role': ..., 'content': ...} is expected")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{place}]: {{'role': ..., 'content': ...}} is expected")
        if not isinstance(message.get("content"), str) and "tool_calls" not in message:
            raise ValueError(f"messages[{place}]: content is {message.get('content')!r}: a text is expected")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("messages have no answer: a message with the role assistant is expected")
