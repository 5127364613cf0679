"""Arguments as parts of a request, in the styles of OpenAPI 3.1: segments of the path, query parameters, headers.

These hold texts alone, and most have no form for `null`, an empty list or a comma inside of a list. A service that gets
none of an argument uses a default of its own. Thus a value without a form of its own is refused, never left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from octavo.plugins.host.outcome import Failure

Place = Literal["path", "query", "header"]

_HEADER_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)
_PLACES = {"path": "the URL's path", "query": "the query", "header": "a header"}
# Larger whole numbers are not exact as floats.
_EXACT = 1 << 53


@dataclass(frozen=True)
class Parameter:
    """Where an argument of a plain operation goes.

    Attributes:
        name: in the request.
        explode: whether a list becomes repeated parameters, else one with commas.
        deep: whether an object becomes `name[key]=value` (OpenAPI's deepObject).
        empty: whether an empty list or object is left out: it is the default, thus the service reads the same.
    """

    place: Place
    name: str
    explode: bool = True
    deep: bool = False
    empty: bool = False


def segment(argument: str, where: Parameter, value: Any) -> str:
    """A value as one segment of a path, which must not climb in the path.

    Raises:
        Failure: `invalid_arguments`: a path has no form for the value.
    """
    text = _joined(argument, where, value)
    if not text or any(part in (".", "..") for part in re.split(r"[/\\]", text)) or "\x00" in text:
        raise _refused(argument, where, "it must not be empty, '.' or '..'")
    return text


def query(argument: str, where: Parameter, value: Any) -> list[tuple[str, str]]:
    """A value as query parameters.

    Raises:
        Failure: `invalid_arguments`: a query has no form for the value.
    """
    if where.deep:
        return _deep(argument, where, value)
    if isinstance(value, list) and where.explode and value:
        return [(where.name, _scalar(argument, where, item)) for item in value]
    return [(where.name, _joined(argument, where, value))]


def header(argument: str, where: Parameter, value: Any) -> str:
    """A value as that of a header.

    Raises:
        Failure: `invalid_arguments`: a header has no form for the value.
    """
    text = _joined(argument, where, value)
    if not _HEADER_VALUE.fullmatch(text) or text != text.strip():
        raise _refused(argument, where, "it must be printable ASCII on one line, without spaces around it")
    if isinstance(value, list) and any(item != item.strip() for item in text.split(",")):
        raise _refused(argument, where, "its items must not have spaces around them")
    return text


def _deep(argument: str, where: Parameter, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict) or not value:
        raise _refused(argument, where, "it must be an object with members")
    if any("[" in key or "]" in key for key in value):
        raise _refused(argument, where, "the names of its members must not have brackets")
    return [(f"{where.name}[{key}]", _scalar(argument, where, item)) for key, item in value.items()]


def _joined(argument: str, where: Parameter, value: Any) -> str:
    """A scalar, or a list of them joined by commas."""
    if not isinstance(value, list):
        return _scalar(argument, where, value)
    if not value:
        raise _refused(argument, where, "it must not be an empty list: leave it out, or give an item")
    texts = [_scalar(argument, where, item) for item in value]
    if any("," in text or not text for text in texts):
        raise _refused(argument, where, "its items are joined by commas: they must not have commas, or be empty")
    return ",".join(texts)


def _scalar(argument: str, where: Parameter, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    kind = "null" if value is None else "a list in a list" if isinstance(value, list) else "an object"
    raise _refused(argument, where, f"it must not hold {kind}")


def _refused(argument: str, where: Parameter, why: str) -> Failure:
    return Failure("invalid_arguments", f"the argument {argument!r} goes into {_PLACES[where.place]}: {why}")


def fitting(schema: Any, where: Parameter) -> tuple[Any, Parameter]:
    """The schema of an argument without the values that have no form in its place, where it is plain to say so."""
    if not isinstance(schema, dict) or "$ref" in schema:
        return schema, where
    found = _without_null(schema)
    for kind, bound, empty in (("array", "minItems", []), ("object", "minProperties", {})):
        if found.get("type") != kind or (kind == "object" and not where.deep):
            continue
        if found.get("default") == empty and where.place != "path":
            return found, replace(where, empty=True)
        found[bound] = max(1, found.get(bound, 1))
    return found, where


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in schema.items() if key != "default" or value is not None}
    kinds = found.get("type")
    if isinstance(kinds, list) and "null" in kinds and len(kinds) > 1:
        rest = [kind for kind in kinds if kind != "null"]
        found["type"] = rest[0] if len(rest) == 1 else rest
    if isinstance(found.get("enum"), list) and any(value is not None for value in found["enum"]):
        found["enum"] = [value for value in found["enum"] if value is not None]
    for key in ("anyOf", "oneOf"):
        branches = found.get(key)
        if not isinstance(branches, list):
            continue
        rest = [branch for branch in branches if branch != {"type": "null"}]
        if len(rest) == 1 and len(branches) > 1 and isinstance(rest[0], dict) and not rest[0].keys() & found.keys():
            del found[key]
            found |= rest[0]
        elif rest:
            found[key] = rest
    return found
