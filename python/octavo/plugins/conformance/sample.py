"""Arguments made up from a schema: examples and defaults first, then the smallest value that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from octavo.errors import OctavoError
from octavo.plugins.validation import matches

_MAX_DEPTH = 8
# Characters of a text, and parts of a value: a schema may demand more than can be made.
_MAX_SIZE = 10_000
_FORMATS = {
    "date": "2030-01-15",
    "date-time": "2030-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "email": "ada@example.org",
    "uri": "https://example.org/",
    "uuid": "12345678-1234-4234-8234-123456789abc",
}


def sample(schema: Any) -> Any:
    """A value that fits a schema without references; None if none can be made up, or a large one alone."""
    try:
        made = _Maker().value(schema, 0)
        return made if made is not None and matches(schema, made) else None
    except (OctavoError, _TooLargeError):
        return None


class _TooLargeError(Exception):
    """The smallest value that fits is too large."""


class _Maker:
    def __init__(self) -> None:
        self._parts = 0

    def value(self, schema: Any, depth: int) -> Any:
        self._parts += 1
        if self._parts > _MAX_SIZE:
            raise _TooLargeError
        return _value(schema, depth, self)


def _value(schema: Any, depth: int, maker: _Maker) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return "text" if schema is True else None
    if "const" in schema:
        return schema["const"]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            found = [made for part in schema[key] if (made := maker.value(part, depth + 1)) is not None]
            return found[0] if found else None
    return _typed(schema, depth, maker)


def _typed(schema: dict[str, Any], depth: int, maker: _Maker) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = next((k for k in kind if k != "null"), "null") if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: maker.value(properties.get(name, True), depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [maker.value(schema.get("items", True), depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        text = _FORMATS.get(schema.get("format", ""), "Corrin")
        text = text[: schema.get("maxLength", len(text))]
        if schema.get("minLength", 0) > _MAX_SIZE:
            raise _TooLargeError
        return text + "a" * (schema.get("minLength", 0) - len(text))
    if kind in ("integer", "number"):
        return _number(schema, 1 if kind == "integer" else None)
    return False if kind == "boolean" else None


def _number(schema: dict[str, Any], step: int | None) -> int | float:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    value: Any = 1
    if low is not None:
        value = low
    elif above is not None:
        value = (above + below) / 2 if step is None and below is not None else above + (step or 0.5)
    elif high is not None:
        value = high
    elif below is not None:
        value = below - (step or 0.5)
    multiple = schema.get("multipleOf")
    made: int | float = value if not multiple or value % multiple == 0 else value + multiple - value % multiple
    return made


def variants(schema: Any, arguments: Any) -> Iterator[dict[str, Any]]:
    """Other arguments that fit a schema, each with one value changed, left out or added."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    for name, part in (properties or {}).items():
        old = arguments.get(name)
        values = [f"{old} b", f"{old}"[:-1], not old, sample(part)]
        if isinstance(part, dict):
            values += [*(part["enum"] if isinstance(part.get("enum"), list) else ()), part.get("maximum")]
        if isinstance(old, (int, float)) and not isinstance(old, bool):
            values += [old + 1, old - 1]
        if isinstance(old, list):
            values += [old + old[:1], old[:-1]]
        made = [{**arguments, name: value} for value in values]
        made.append({key: value for key, value in arguments.items() if key != name})
        # 1 and True are equal in Python, and not in JSON.
        other = [each for each in made if json.dumps(each) != json.dumps(arguments) and matches(schema, each)]
        yield from other[:2]
