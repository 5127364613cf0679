"""One operation as the host calls it: its schemas, and how its arguments become a request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlencode

from octavo.plugins.host.outcome import Failure

Place = Literal["path", "query", "header", "body"]

_HEADER_VALUE = re.compile(r"[\x20-\x7e]*", re.ASCII)


@dataclass(frozen=True)
class Parameter:
    """Where an argument of a plain operation goes.

    Attributes:
        name: in the request.
        explode: whether a list becomes repeated parameters, else one with commas.
        deep: whether an object becomes `name[key]=value` (OpenAPI's deepObject).
    """

    place: Place
    name: str
    explode: bool = True
    deep: bool = False


@dataclass(frozen=True)
class Plain:
    """How to call an operation of a service without the protocol.

    Attributes:
        path: the template, `items/{id}`, relative to `server`.
        server: the base URL of the operations.
        parameters: argument -> where it goes. The others go into the body.
        body: `fields`: the other arguments are the members of a JSON object; else the argument that is the body;
            None: the operation takes no body.
        text: whether the operation may answer with plain text.
    """

    method: str
    path: str
    server: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    body: str | None = None
    text: bool = False


@dataclass(frozen=True)
class Endpoint:
    """One operation in one API major.

    Attributes:
        id: the operation's id in the tool's name.
        major: the API major; None for a plain operation.
        digest: the digest under which arguments are generated and sent.
        parameters: the schema of the arguments, dereferenced.
        result: the schema of the result; None if there is none.
        aliases: argument -> its former names.
        plain: how to call it without the protocol; None: by `v{major}/invoke/{id}`.
    """

    id: str
    major: int | None
    digest: str
    parameters: dict[str, Any]
    result: Any = None
    description: str = ""
    consequential: bool = False
    idempotent: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deprecated: Any = None
    plain: Plain | None = None


@dataclass(frozen=True)
class Built:
    """The parts of a request."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


def build_plain(plain: Plain, arguments: Mapping[str, Any]) -> Built:
    """The request of a plain operation.

    Raises:
        Failure: `invalid_arguments`: a value cannot be in its place.
    """
    path, query, headers, rest = plain.path, [], {}, {}
    for name, value in arguments.items():
        where = plain.parameters.get(name)
        if where is None:
            rest[name] = value
        elif where.place == "path":
            path = path.replace("{" + where.name + "}", quote(_segment(name, value), safe=""))
        elif where.place == "query":
            query += _query(name, where, value)
        else:
            headers[where.name] = _header(name, value)
    if "{" in path:
        raise Failure("invalid_arguments", f"the path {path!r} lacks an argument: give all that are required")
    body = None
    if plain.body == "fields":
        body = json.dumps(rest).encode()
    elif plain.body is not None and plain.body in rest:
        body = json.dumps(rest[plain.body]).encode()
    if body is not None:
        headers["Content-Type"] = "application/json"
    url = plain.server + path.lstrip("/") + ("?" + urlencode(query) if query else "")
    return Built(plain.method, url, headers, body)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _segment(name: str, value: Any) -> str:
    """A value as one segment of a path. It must not climb in the path."""
    text = ",".join(map(_text, value)) if isinstance(value, list) else _text(value)
    if not text or any(part in (".", "..") for part in re.split(r"[/\\]", text)) or "\x00" in text:
        raise Failure(
            "invalid_arguments", f"the argument {name!r} is part of the URL's path: it must not be empty, '.' or '..'"
        )
    return text


def _query(name: str, where: Parameter, value: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    if isinstance(value, list):
        texts = [_text(item) for item in value]
        if where.explode:
            return [(where.name, text) for text in texts]
        if any("," in text for text in texts):
            raise Failure("invalid_arguments", f"the items of the argument {name!r} must not have commas")
        return [(where.name, ",".join(texts))]
    if isinstance(value, dict):
        if not where.deep:
            raise Failure("invalid_arguments", f"the argument {name!r} goes into the query: it must not be an object")
        return [(f"{where.name}[{key}]", _text(item)) for key, item in value.items()]
    return [(where.name, _text(value))]


def _header(name: str, value: Any) -> str:
    text = ",".join(map(_text, value)) if isinstance(value, list) else _text(value)
    if not _HEADER_VALUE.fullmatch(text):
        raise Failure(
            "invalid_arguments", f"the argument {name!r} goes into a header: it must be printable ASCII on one line"
        )
    return text.strip()
