"""JSON values from a plugin: which of them can be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# Levels of an answer, and of a document: what reads them recursively must not run out of stack.
ANSWER_LEVELS = 100
DOCUMENT_LEVELS = 200


def json_fault(value: Any, levels: int = ANSWER_LEVELS) -> str | None:
    """Why a value of a plugin cannot be used as JSON; None: it can."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > levels:
            return f"it nests deeper than {levels} levels"
        level = [inner for item in level for inner in _members(item)]
    try:
        # A lone surrogate cannot be sent on to a model, and 1e999 is read as Infinity.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError) as error:
        return str(error)[:120]
    return None


def _members(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
