"""Fields in the spelling of other servers, by the tables of `foreign_fields`.

A field with an exact equivalent is translated. A field that would change the answer is refused, with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.foreign import (
    ALIASES,
    CLOSED,
    CONSTRAINTS,
    HARMLESS,
    NEUTRAL,
    REFUSED_INSIDE,
    REMEDIES,
    Refusal,
)

_RULE_OF_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
# OpenAI's wrapper of a schema in `response_format.json_schema`.
_WRAPPER = frozenset({"name", "description", "schema", "strict"})
# Keys of other servers for the content of a `response_format`.
_CONTENT = ("schema", "value", "response_schema")
# Type of a `response_format` -> the key of its content.
_OWN_CONTENT = {
    "text": None,
    "json_object": None,
    "json_schema": "json_schema",
    "regex": "pattern",
    "grammar": "grammar",
}


def translate(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """`body` in octavo's own fields, and the translated names: path of the own field -> given name.

    Raises:
        ApiError: 400 if a field and its equivalent exclude each other.
    """
    body = dict(body)
    names: dict[str, str] = {}
    for alias, own in ALIASES.items():
        value = body.pop(alias, None)
        if value is None:
            continue
        if body.get(own) not in (None, value):
            raise _exclude(alias, own)
        body[own] = value
        names[own] = alias
    for alias, key in CONSTRAINTS.items():
        value = body.pop(alias, None)
        if value is None or (alias == "format" and value == ""):
            continue
        if body.get("structured_outputs") is not None:
            raise _exclude(alias, names.get("structured_outputs", "structured_outputs"))
        own = "json_object" if alias == "format" and value == "json" else key
        body["structured_outputs"] = {own: True if own == "json_object" else value}
        names["structured_outputs"] = alias
        names[f"structured_outputs.{own}"] = alias
    form = body.get("response_format")
    if isinstance(form, dict):
        body["response_format"] = _response_format(form)
    outputs = body.get("structured_outputs")
    if isinstance(outputs, dict):
        _check_outputs(outputs, names)
    return body, names


def _exclude(one: str, other: str) -> ApiError:
    return bad_request(f"{one} and {other} exclude each other: give one of them", one)


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("schema"), dict) and set(value) <= _WRAPPER


def _check_outputs(outputs: dict[str, Any], names: dict[str, str]) -> None:
    """Refuses a wrapped schema, which as a schema allows every value, and grammars of another form."""
    if _is_wrapped(outputs.get("json")):
        path = names.get("structured_outputs.json", "structured_outputs.json")
        raise bad_request(f"{path} has the key 'schema': give the schema itself, or use response_format", path)
    grammar = outputs.get("grammar")
    if isinstance(grammar, str):
        _check_grammar(grammar, names.get("structured_outputs.grammar", "structured_outputs.grammar"))


def _check_grammar(grammar: str, path: str) -> None:
    if _RULE_OF_GBNF.search(grammar):
        raise bad_request(f"{path} is in GBNF or EBNF: the Lark form is expected, such as 'start: \"a\"'", path)


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` in OpenAI's form. llama.cpp has `schema` in it, TGI `value`."""
    form = {key: value for key, value in form.items() if value is not None}
    kind = form.get("type")
    if kind == "structural_tag":
        message = "response_format.type is 'structural_tag', which is not supported: use tools or type grammar"
        raise bad_request(message, "response_format.type")
    kind = {"json": "json_object", "ebnf": "grammar"}.get(kind, kind) if isinstance(kind, str) else kind
    found = [key for key in _CONTENT if key in form]
    if len(found) > 1:
        raise _exclude(f"response_format.{found[0]}", f"response_format.{found[1]}")
    if kind in ("json_object", "json_schema") and found:
        form = _schema(form, found[0])
    elif kind == "regex" and "pattern" not in form:
        form = _moved(form, ("value", "regex"), "pattern")
    elif kind == "grammar" and "grammar" not in form:
        form = _moved(form, ("value", "ebnf"), "grammar")
    elif "type" in form:
        form["type"] = kind
    _check_format(form)
    return form


def _check_format(form: dict[str, Any]) -> None:
    kind = form.get("type")
    if isinstance(kind, str) and kind in _OWN_CONTENT:
        other = next((key for key in _OWN_CONTENT.values() if key in form and key != _OWN_CONTENT[kind]), None)
        if other is not None:
            right = next(k for k, key in _OWN_CONTENT.items() if key == other)
            raise bad_request(f"response_format.{other} needs type {right!r}", f"response_format.{other}")
    grammar = form.get("grammar")
    if isinstance(grammar, str):
        _check_grammar(grammar, "response_format.grammar")


def _schema(form: dict[str, Any], key: str) -> dict[str, Any]:
    if "json_schema" in form:
        raise _exclude(f"response_format.{key}", "response_format.json_schema")
    schema = form.pop(key)
    if not isinstance(schema, dict):
        path = f"response_format.{key}"
        raise bad_request(f"{path} is {str(schema)[:80]!r}: a JSON schema is expected", path)
    wrapped = {"name": "answer", **schema} if _is_wrapped(schema) else {"name": "answer", "schema": schema}
    return {**form, "type": "json_schema", "json_schema": wrapped}


def _moved(form: dict[str, Any], others: tuple[str, ...], own: str) -> dict[str, Any]:
    key = next((key for key in others if key in form), None)
    return form if key is None else {own if k == key else k: value for k, value in form.items()}


def refuse(request: BaseModel, table: Mapping[str, Refusal], elsewhere: Iterable[str]) -> None:
    """Rejects fields of `request` that it does not have and that would change the answer.

    Args:
        table: refused fields.
        elsewhere: fields of other endpoints.

    Raises:
        ApiError: 400.
    """
    remedies = REMEDIES.get(type(request).__name__, {})
    for name, value in (request.model_extra or {}).items():
        refusal = table.get(name)
        if refusal is None and name in elsewhere:
            remedy = remedies.get(name, "it is a field of another endpoint")
            refusal = Refusal(remedy, NEUTRAL.get(name, ()))
        if refusal is not None and refusal.applies(value):
            raise bad_request(f"{name} is not supported: {refusal.remedy}", name)
    for path, place, value in inside(request):
        found = REFUSED_INSIDE.get(path)
        if found is None and path.partition(".")[0] in CLOSED and path.count(".") == 1 and path not in HARMLESS:
            found = Refusal("this key is not known")
        if found is not None and found.applies(value):
            raise bad_request(f"{place} is not supported: {found.remedy}", place)


def inside(request: BaseModel) -> Iterator[tuple[str, str, Any]]:
    """Unknown fields inside the objects of `request`: path with `[]` for indices, path with indices, value."""
    for name, alias in _object_fields(type(request)):
        yield from _walk(getattr(request, name), alias, alias)


def _walk(value: Any, path: str, place: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, BaseModel):
        for name, extra in (value.model_extra or {}).items():
            yield f"{path}.{name}", f"{place}.{name}", extra
        for name, own in _object_fields(type(value)):
            yield from _walk(getattr(value, name), f"{path}.{own}", f"{place}.{own}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            # Long lists of plain objects are common.
            if isinstance(item, BaseModel) and (item.model_extra or _object_fields(type(item))):
                yield from _walk(item, f"{path}[]", f"{place}[{i}]")


@cache
def _object_fields(model: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """The fields of `model` that may hold objects with fields of their own, with their names in the API."""
    return tuple(
        (name, field.alias or name) for name, field in model.model_fields.items() if _has_model(field.annotation)
    )


def _has_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_has_model(part) for part in get_args(annotation))
