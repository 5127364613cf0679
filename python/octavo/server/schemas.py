"""JSON schemas of requests as the grammar holds them: exact where they must be, else loosened part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from octavo import _core
from octavo.errors import InvalidRequestError
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request

# A longer schema is read anew for each request.
_MAX_CACHED_BYTES = 32 << 10
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Loss:
    """A part of a schema that is not held: the grammar is wider there.

    Attributes:
        pointer: JSON pointer of the part.
        keyword: "": the whole part.
    """

    pointer: str
    keyword: str
    why: str

    def __str__(self) -> str:
        place = self.pointer or "its top"
        return f"{self.keyword!r} at {place} {self.why}" if self.keyword else f"the part at {place} {self.why}"


@dataclass(frozen=True)
class Fitted:
    """A schema that the grammar holds.

    Attributes:
        losses: where it is wider than the schema of the request.
        formats: formats that hold nothing, because they are annotations.
    """

    schema: Any
    losses: tuple[Loss, ...]
    formats: tuple[str, ...]


def _fit(text: str, *, closed: bool) -> Fitted:
    schema, losses, formats = _core.fit_schema(text, closed=closed)
    return Fitted(json.loads(schema), tuple(Loss(*loss) for loss in losses), tuple(formats))


_cached = lru_cache(maxsize=256)(_fit)


def fit(schema: Any, *, closed: bool) -> Fitted:
    """The nearest schema that the grammar holds.

    Args:
        closed: objects that name their properties take no others, unless `additionalProperties` says so.

    Raises:
        InvalidRequestError: it is no schema.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    if len(text) > _MAX_CACHED_BYTES:
        return _fit(text, closed=closed)
    found = _cached(text, closed=closed)
    if any("too long" in loss.why for loss in found.losses):
        # A busy machine may be faster the next time.
        _cached.cache_clear()
    return found


def report(context: Context, where: str, fitted: Fitted) -> None:
    """Logs what the grammar does not hold."""
    for loss in fitted.losses[:16]:
        key = f"schema {where} {loss.pointer} {loss.keyword}"
        context.warn_once(key, "%.80s: %.200s: the output is held to less there", where, str(loss))
    for name in fitted.formats:
        context.warn_once(f"format {name}", "format %.64r of a schema is an annotation: it holds nothing", name)


def answer_schema(context: Context, schema: Any, param: str, *, strict: bool, closed: bool | None = None) -> Any:
    """The schema that an answer is held to.

    Args:
        strict: refuse what cannot be held.
        closed: see `fit`; None: as the server is configured.

    Raises:
        ApiError: 400.
    """
    try:
        fitted = fit(schema, closed=context.config.disable_additional_properties if closed is None else closed)
    except InvalidRequestError as error:
        raise bad_request(f"{param}: {error}", param) from error
    whole = [loss for loss in fitted.losses if not loss.pointer and not loss.keyword]
    if fitted.losses and (strict or whole):
        raise _refusal(param, (whole or fitted.losses)[0], param)
    report(context, param, fitted)
    return fitted.schema


def _refusal(where: str, loss: Loss, param: str) -> ApiError:
    return bad_request(
        f"{where}: the grammar must hold the whole schema, and {loss}. Change that part, or leave out strict", param
    )


def tool_functions(context: Context, given: list[dict[str, Any]], style: str) -> list[dict[str, Any]]:
    """The functions of a request's tools, with parameters that the grammar holds.

    Args:
        style: of the calls' format, see Format.

    Raises:
        ApiError: 400 for a tool with `strict` that the grammar cannot hold, and for parameters that are no schema.
    """
    found = []
    for tool in given:
        function = tool["function"]
        where = f"tools: {function['name']!r}"
        try:
            fitted = _parameters(function.get("parameters"), context.config.disable_additional_properties)
        except InvalidRequestError as error:
            raise bad_request(f"{where}: {error}", "tools") from error
        if style in ("python", "xml"):
            fitted = _one_by_one(fitted, style)
        if fitted.losses and function.get("strict"):
            raise _refusal(where, fitted.losses[0], "tools")
        report(context, where, fitted)
        found.append({**function, "parameters": fitted.schema})
    return found


def _parameters(schema: dict[str, Any] | None, closed: bool) -> Fitted:
    """The schema of arguments, which are always an object."""
    if not schema:
        # A function without parameters takes none.
        return Fitted(_NO_ARGUMENTS, (), ())
    odd = schema.get("type", "object")
    kinds = [odd] if isinstance(odd, str) else odd
    losses: tuple[Loss, ...] = ()
    if isinstance(kinds, list) and not any(str(kind).lower() in ("object", "dict", "map") for kind in kinds):
        losses = (Loss("", "type", f"is {odd!r:.40}, and arguments are an object"),)
        schema = {key: value for key, value in schema.items() if key != "type"}
    if "$ref" not in schema:
        schema = {**schema, "type": "object"}
    fitted = fit(schema, closed=closed)
    whole = fitted.schema if isinstance(fitted.schema, dict) else {"type": "object"}
    return replace(fitted, schema=whole, losses=losses + fitted.losses)


# Keywords at the top of parameters that calls with one argument after another cannot hold.
_ASSERTIONS = frozenset({
    "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "patternProperties", "minProperties", "maxProperties",
})  # fmt: skip
# What may stand in the name of an argument.
_NAMES = {"python": frozenset(" \t\r\n=,()\"'\\"), "xml": frozenset("<>\n")}
_LONGEST_NAME = 200


def _one_by_one(fitted: Fitted, style: str) -> Fitted:
    """The schema for calls that name their arguments one by one: an object with properties and nothing else."""
    losses = list(fitted.losses)
    schema = fitted.schema
    if not all(ref.startswith(("#/$defs/", "#/definitions/")) for ref in _references(schema)):
        # Each argument is a schema of its own: what references lead to goes with it.
        whole = moved(schema, "#/$defs/whole")
        schema = {**whole, "$defs": {"whole": whole}}
    root = schema
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    top = _referenced(schema, schema)
    if top is not schema:
        schema = {**top, **shared}
    properties = dict(schema.get("properties") or {})
    required = [name for name in schema.get("required") or () if isinstance(name, str)]
    for key in sorted(_ASSERTIONS & set(schema)):
        losses.append(Loss("", key, f"is not held where arguments stand one by one, as in {style} form"))
        ways = schema[key] if isinstance(schema[key], list) and key in ("anyOf", "oneOf", "allOf") else []
        for way in ways:
            part = _referenced(way, root)
            properties = {**(part.get("properties") or {}), **properties}
            required += (part.get("required") or []) if key == "allOf" else []
    for name in required:
        properties.setdefault(name, {})
    for name, held in list(properties.items()):
        if not _has_values(held, shared):
            # An argument that no value is valid for is left out, as in an object.
            if name in required:
                properties[name] = {}
            else:
                del properties[name]
    for name in [name for name in properties if not name or len(name) > _LONGEST_NAME or set(name) & _NAMES[style]]:
        losses.append(
            Loss(f"/properties/{name[:40]}", "", f"has a name that {style} form cannot spell: it is left out")
        )
        del properties[name]
    flat = {
        "type": "object",
        "properties": properties,
        "required": [name for name in dict.fromkeys(required) if name in properties],
        "additionalProperties": False,
        **shared,
    }
    return replace(fitted, schema=flat, losses=tuple(losses))


def _references(value: Any) -> Iterator[str]:
    """The references in a schema."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _references(part)


def moved(value: Any, where: str) -> Any:
    """The schema with its `#...` references moved below `where`."""
    if isinstance(value, dict):
        parts = {key: moved(part, where) for key, part in value.items()}
        reference = parts.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            parts["$ref"] = where + reference[1:]
        return parts
    if isinstance(value, list):
        return [moved(part, where) for part in value]
    return value


def _has_values(schema: Any, shared: dict[str, Any]) -> bool:
    """Whether the grammar has a value for an argument."""
    if not isinstance(schema, dict):
        return schema is not False
    alone = fit({**schema, **shared}, closed=False)
    return not any(not loss.pointer and not loss.keyword for loss in alone.losses)


def _referenced(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """The schema that a chain of local references leads to."""
    for _ in range(8):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        here: Any = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            here = here.get(key) if isinstance(here, dict) and step else here
        schema = here
    return {}
