"""Arguments made up from a schema: examples and defaults first, then the smallest value that fits."""

from __future__ import annotations

from typing import Any

from octavo.errors import OctavoError
from octavo.plugins.validation import matches

_MAX_DEPTH = 8
_FORMATS = {
    "date": "2030-01-15",
    "date-time": "2030-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "email": "ada@example.org",
    "uri": "https://example.org/",
    "uuid": "12345678-1234-4234-8234-123456789abc",
}


def sample(schema: Any) -> Any:
    """A value that fits a schema without references; None if none can be made up."""
    made = _value(schema, 0)
    try:
        return made if made is not None and matches(schema, made) else None
    except OctavoError:
        return None


def _value(schema: Any, depth: int) -> Any:
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
            found = [made for part in schema[key] if (made := _value(part, depth + 1)) is not None]
            return found[0] if found else None
    return _typed(schema, depth)


def _typed(schema: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = next((k for k in kind if k != "null"), "null") if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _value(properties.get(name, True), depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [_value(schema.get("items", True), depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        text = _FORMATS.get(schema.get("format", ""), "Corrin")
        text = text[: schema.get("maxLength", len(text))]
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
