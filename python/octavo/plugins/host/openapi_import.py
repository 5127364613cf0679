"""Reads the operations of an OpenAPI 3.0 or 3.1 document. No cooperation of the service is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

from octavo.plugins.host.egress import origin
from octavo.plugins.host.endpoint import Endpoint, Plain
from octavo.plugins.host.names import identifier
from octavo.plugins.host.outcome import Failure
from octavo.plugins.host.parameters import Parameter, fitting
from octavo.plugins.host.source import may_be_header
from octavo.plugins.schema import MANY, NAMED, ONE, SchemaError, dereference, digest
from octavo.plugins.steps import step
from octavo.plugins.validation import check_schema

MAX_OPERATIONS = 500
_MAX_NOTES = 1000
_LONGEST_URL = 2048
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_LONGEST_DESCRIPTION = 4096
# OpenAPI 3.1: parameters with these names are ignored.
_IGNORED_HEADERS = frozenset(("accept", "content-type", "authorization"))
_STYLES: Mapping[Any, tuple[str, ...]] = {"path": ("simple",), "query": ("form", "deepObject"), "header": ("simple",)}
_INVOKE = re.compile(r"/?v(\d{1,6})/invoke/([A-Za-z][A-Za-z0-9_]{0,63})", re.ASCII)
# Keywords by which an object is more than its properties.
_NOT_PLAIN = {
    *("$defs", "anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "dependentRequired", "dependentSchemas"),
    *("minProperties", "maxProperties", "propertyNames", "unevaluatedProperties"),
}


@dataclass
class Imported:
    """What a document has.

    Attributes:
        invoke: (id, API major) -> operation, of the paths of the protocol.
        plain: id -> operation, of the other paths.
        notes: what was left out, one sentence each.
    """

    invoke: dict[tuple[str, int], Endpoint] = field(default_factory=dict)
    plain: dict[str, Endpoint] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# What reading raises where a member of the document has another type than OpenAPI gives it. One such operation must not
# take the others along.
_MALFORMED = (TypeError, ValueError, AttributeError, LookupError, RecursionError)


class _LeftOut(Exception):
    """Why an operation cannot be offered."""


def read_document(
    document: Any,
    base: str,
    document_url: str,
    own_headers: Set[str] = frozenset(),
    only: Sequence[str] | None = None,
) -> Imported:
    """The operations of a document.

    Args:
        base: the plugin's base URL.
        document_url: where the document is; relative servers are relative to it.
        own_headers: headers that the host sends itself, in lower case: they are no arguments.
        only: the ids of the operations that are read; None: all.

    Raises:
        Failure: `bad_response`: no OpenAPI document of version 3.0 or 3.1.
        OutOfTimeError: the deadline has passed.
    """
    version = document.get("openapi") if isinstance(document, dict) else None
    if not isinstance(version, str) or not re.match(r"3\.[012]\.", version + "."):
        detail = f"the document at {document_url} has openapi: {str(version)[:40]!r}, not 3.0 or 3.1"
        raise Failure("bad_response", detail)
    paths = document.get("paths")
    found = Imported()
    reader = _Reader(document, version.startswith("3.0"), own_headers)
    server = _server(document, base, document_url, found.notes)
    for path, method, item, operation in _operations(paths if isinstance(paths, dict) else {}):
        step()
        if len(found.invoke) + len(found.plain) >= MAX_OPERATIONS or len(found.notes) >= _MAX_NOTES:
            found.notes.append(f"after {MAX_OPERATIONS} operations or {_MAX_NOTES} notes the rest is left out")
            break
        try:
            _read(reader, found, (path, method, item, operation), server, only)
        except (_LeftOut, SchemaError) as error:
            found.notes.append(f"{method.upper()} {path[:200]} is left out: {error}")
        except _MALFORMED as error:
            kind = type(error).__name__
            found.notes.append(f"{method.upper()} {path[:200]} is left out: a member has the wrong type ({kind})")
    found.notes += reader.notes[:_MAX_NOTES]
    return found


def _read(
    reader: _Reader,
    found: Imported,
    given: tuple[str, str, dict[str, Any], dict[str, Any]],
    server: str,
    only: Sequence[str] | None,
) -> None:
    path, method, item, operation = given
    invoke = _INVOKE.fullmatch(path)
    name = invoke[2] if invoke and method == "post" else _identifier(operation.get("operationId"), method, path)
    if only is not None and name not in only:
        return
    if invoke and method == "post":
        key = (name, int(invoke[1]))
        found.invoke[key] = reader.invoke(key, operation)
    elif name in found.plain:
        raise _LeftOut(f"its id {name!r} is another's")
    else:
        found.plain[name] = reader.plain(name, path, method, item, operation, server)


def _operations(paths: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    for path, item in paths.items():
        if isinstance(path, str) and isinstance(item, dict):
            for method in _METHODS:
                if isinstance(item.get(method), dict):
                    yield path, method, item, item[method]


def _server(document: Mapping[str, Any], base: str, document_url: str, notes: list[str]) -> str:
    """The base URL of the plain operations. It may not leave the registered origin."""
    servers = document.get("servers")
    first = servers[0] if isinstance(servers, list) and servers and isinstance(servers[0], dict) else {}
    url = first.get("url")
    if not isinstance(url, str) or not url or url == "/":
        return base
    variables = first.get("variables")
    for name, variable in (variables if isinstance(variables, dict) else {}).items():
        if isinstance(variable, dict) and len(url) <= _LONGEST_URL:
            url = url.replace("{" + str(name) + "}", str(variable.get("default", ""))[:_LONGEST_URL])
    try:
        found = urljoin(document_url, url)
        same = origin(found) == origin(base)
    except ValueError:
        same = False
    if not same or "?" in found or "#" in found or len(url) > _LONGEST_URL:
        notes.append(f"the document's server {url[:200]!r} is not within the registered URL: {base} is used")
        return base
    return found if found.endswith("/") else found + "/"


class _Reader:
    def __init__(self, document: dict[str, Any], old: bool, own_headers: Set[str]) -> None:
        self._document = document
        self._old = old
        self._own_headers = own_headers
        self.notes: list[str] = []

    def invoke(self, key: tuple[str, int], operation: Mapping[str, Any]) -> Endpoint:
        body = self._body(operation)
        if body is None:
            raise _LeftOut("it has no JSON body")
        arguments = self._member(body[1], "arguments")
        if arguments is None:
            raise _LeftOut("its body has no member 'arguments'")
        check_schema(arguments)
        raw, _ = self._raw_result(operation)
        result = self._member(raw, "result")
        return Endpoint(
            id=key[0],
            major=key[1],
            digest=digest(arguments, result),
            parameters=_object(arguments),
            result=result,
            description=_description(operation),
            consequential=True,
            deprecated=operation.get("deprecated") is True or None,
        )

    def plain(
        self, name: str, path: str, method: str, item: Mapping[str, Any], operation: Mapping[str, Any], server: str
    ) -> Endpoint:
        if "?" in path or "#" in path:
            raise _LeftOut("its path has a query or a fragment")
        places: dict[str, Parameter] = {}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for parameter in self._parameters(item, operation):
            self._add(parameter, places, properties, required)
        body_name = self._add_body(operation, properties, required)
        schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        parameters = self._schema(schema)
        members = parameters["properties"]
        for argument, where in places.items():
            members[argument], places[argument] = fitting(members[argument], where)
        check_schema(parameters)
        missing = set(re.findall(r"{([^}]*)}", path)) - {p.name for p in places.values() if p.place == "path"}
        if missing:
            raise _LeftOut(f"the path's {sorted(missing)[0]!r} is no parameter of it")
        result, text = self._result(operation)
        stated = operation.get("x-octavo-consequential", operation.get("x-openai-isConsequential"))
        return Endpoint(
            id=name,
            major=None,
            digest=digest(parameters, result),
            parameters=parameters,
            result=result,
            description=_description(operation),
            consequential=stated if isinstance(stated, bool) else method not in ("get", "head", "options"),
            idempotent=method in ("get", "head", "options", "put", "delete"),
            aliases=_aliases(operation.get("x-octavo-aliases")),
            deprecated=operation.get("deprecated") is True or None,
            plain=Plain(method.upper(), path, server, places, body_name, text),
        )

    def _parameters(self, item: Mapping[str, Any], operation: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Those of the path, then those of the operation, which replace them by place and name."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for listed in (item.get("parameters"), operation.get("parameters")):
            for entry in listed if isinstance(listed, list) else ():
                entry = self._resolve(entry)
                found[str(entry.get("in")), str(entry.get("name"))] = entry
        return list(found.values())

    def _add(
        self, entry: dict[str, Any], places: dict[str, Parameter], properties: dict[str, Any], required: list[str]
    ) -> None:
        place: Any = entry.get("in")
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise _LeftOut("a parameter has no name")
        if place == "header" and name.lower() in self._own_headers | _IGNORED_HEADERS:
            return
        needed = entry.get("required") is True or place == "path"
        style = entry.get("style", "simple" if place in ("path", "header") else "form")
        explode = entry.get("explode", style == "form")
        known = _STYLES.get(place, ())
        schema = entry.get("schema")
        usable = style in known and isinstance(schema, (dict, bool))
        if not usable or (place == "header" and not may_be_header(name)):
            if needed:
                raise _LeftOut(f"its parameter {name!r} in {place} has a name, style or content that is not supported")
            self.notes.append(f"an optional parameter {name[:80]!r} in {place} is left out: it is not supported")
            return
        if name in properties or (place == "header" and name.lower() in self._headers(places)):
            raise _LeftOut(f"it has two parameters {name!r}")
        if isinstance(entry.get("description"), str) and isinstance(schema, dict) and "description" not in schema:
            schema = {**schema, "description": entry["description"]}
        properties[name] = schema
        places[name] = Parameter(place, name, explode is not False, style == "deepObject")
        if needed:
            required.append(name)

    def _headers(self, places: Mapping[str, Parameter]) -> set[str]:
        return {where.name.lower() for where in places.values() if where.place == "header"}

    def _add_body(self, operation: Mapping[str, Any], properties: dict[str, Any], required: list[str]) -> str | None:
        """Adds the arguments of the body: its members if it is a plain object, else one argument."""
        if (body := self._body(operation)) is None:
            return None
        needed, raw = body
        schema = self._schema(raw)
        members = _plain_members(schema)
        # The members of an optional body that has required ones are not required each by itself.
        separate = members is not None and (needed or not schema.get("required")) and not set(members) & set(properties)
        if members is not None and separate:
            properties.update(members)
            required += [name for name in schema.get("required", ()) if name in members]
            return "fields"
        name = "body" if "body" not in properties else "request_body"
        if name in properties:
            raise _LeftOut("its parameters leave no name for the body")
        properties[name] = raw
        if needed:
            required.append(name)
        return name

    def _body(self, operation: Mapping[str, Any]) -> tuple[bool, Any] | None:
        """(required, schema) of the JSON body; None if there is no body."""
        body = self._resolve(operation.get("requestBody") or {})
        if not body:
            return None
        content = body.get("content")
        for kind, media in (content if isinstance(content, dict) else {}).items():
            base = str(kind).partition(";")[0].strip().lower()
            if (base == "application/json" or base.endswith("+json")) and isinstance(media, dict):
                return body.get("required") is True, media.get("schema", True)
        if body.get("required") is True or content:
            raise _LeftOut("its body is not JSON")
        return None

    def _member(self, schema: Any, name: str) -> Any:
        """The schema of a member of an object; None if it has none."""
        properties = self._resolve(schema).get("properties")
        member = properties.get(name) if isinstance(properties, dict) else None
        return None if member is None else self._schema(member)

    def _result(self, operation: Mapping[str, Any]) -> tuple[Any, bool]:
        raw, text = self._raw_result(operation)
        return (None if raw is None else self._schema(raw)), text

    def _raw_result(self, operation: Mapping[str, Any]) -> tuple[Any, bool]:
        """(schema of the first success, None if there is none; whether plain text is an answer)."""
        responses = operation.get("responses")
        for status, response in sorted((responses if isinstance(responses, dict) else {}).items(), key=str):
            if not str(status).startswith("2"):
                continue
            content = self._resolve(response).get("content")
            content = content if isinstance(content, dict) else {}
            text = any(str(kind).startswith("text/plain") for kind in content)
            for kind, media in content.items():
                if "json" in str(kind) and isinstance(media, dict) and "schema" in media:
                    return media["schema"], text
            return None, text
        return None, False

    def _resolve(self, entry: Any) -> dict[str, Any]:
        """A parameter, body or response, through its references."""
        for _ in range(10):
            ref = entry.get("$ref") if isinstance(entry, dict) else None
            if not isinstance(ref, str):
                return entry if isinstance(entry, dict) else {}
            entry = self._document if ref.startswith("#/") else {}
            for part in ref.split("/")[1:]:
                entry = entry.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(entry, dict) else None
        raise _LeftOut("a reference of it leads in a circle")

    def _schema(self, schema: Any) -> Any:
        found = dereference(schema, self._document)
        return _modern(found) if self._old else found


def _modern(schema: Any) -> Any:
    """A schema of OpenAPI 3.0 in JSON Schema 2020-12: `nullable`, and exclusive bounds that are booleans."""
    step()
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ONE and isinstance(value, dict):
            found[key] = _modern(value)
        elif key in MANY and isinstance(value, list):
            found[key] = [_modern(item) for item in value]
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: _modern(item) for name, item in value.items()}
        else:
            found[key] = value
    for bound in ("Minimum", "Maximum"):
        exclusive = found.get("exclusive" + bound)
        if isinstance(exclusive, bool):
            del found["exclusive" + bound]
            if exclusive and bound.lower() in found:
                found["exclusive" + bound] = found.pop(bound.lower())
    if found.pop("nullable", False) is True:
        if isinstance(found.get("enum"), list) and None not in found["enum"]:
            found["enum"] = [*found["enum"], None]
        if isinstance(found.get("type"), str):
            found["type"] = [found["type"], "null"]
        elif found:
            found = {"anyOf": [found, {"type": "null"}]}
    return found


def _plain_members(schema: Any) -> dict[str, Any] | None:
    """The properties of an object that is no more than these; None for any other schema."""
    if not isinstance(schema, dict) or schema.keys() & _NOT_PLAIN or schema.get("additionalProperties", False):
        return None
    members = schema.get("properties")
    return members if isinstance(members, dict) else None


def _object(schema: Any) -> dict[str, Any]:
    """The schema of arguments; without a type it is one of an object."""
    if not isinstance(schema, dict):
        return {"type": "object"}
    return schema if "type" in schema else {"type": "object", **schema}


def _identifier(given: Any, method: str, path: str) -> str:
    return identifier(given if isinstance(given, str) and given else f"{method}_{path.lstrip('/')}", method)


def _description(operation: Mapping[str, Any]) -> str:
    texts = [operation.get(key) for key in ("summary", "description")]
    summary, text = (item.strip() if isinstance(item, str) else "" for item in texts)
    # Many frameworks make the summary of the function's name, or of the first sentence.
    if text and (text.startswith(summary.rstrip(".")) or not re.search(r"[.!?]$", summary)):
        summary = ""
    return "\n\n".join(part for part in (summary, text) if part)[:_LONGEST_DESCRIPTION]


def _aliases(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    lists = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, list)}
    return {name: tuple(item for item in former if isinstance(item, str)) for name, former in lists.items()}
