"""One operation as the host calls it: its schemas, and how its arguments become a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from octavo.plugins.host.outcome import Failure
from octavo.plugins.host.parameters import Parameter, header, segment
from octavo.plugins.host.parameters import query as query_pairs

# Characters of a path that stay as they are: the values of arguments are encoded before (RFC 3986, section 3.3).
_KEPT = "/%:@!$&'()*+,;=~"


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
        Failure: `invalid_arguments`: a value has no form in its place.
    """
    path, query, headers, rest = plain.path, [], {}, {}
    for name, value in arguments.items():
        where = plain.parameters.get(name)
        if where is None:
            rest[name] = value
        elif where.empty and value in ([], {}):
            continue
        elif where.place == "path":
            path = path.replace("{" + where.name + "}", quote(segment(name, where, value), safe=""))
        elif where.place == "query":
            query += query_pairs(name, where, value)
        else:
            headers[where.name] = header(name, where, value)
    if "{" in path:
        raise Failure("invalid_arguments", f"the path {path!r} lacks an argument: give all that are required")
    body = None
    if plain.body == "fields":
        body = json.dumps(rest).encode()
    elif plain.body is not None and plain.body in rest:
        body = json.dumps(rest[plain.body]).encode()
    if body is not None:
        headers["Content-Type"] = "application/json"
    url = plain.server + quote(path.lstrip("/"), safe=_KEPT) + ("?" + urlencode(query) if query else "")
    return Built(plain.method, url, headers, body)
