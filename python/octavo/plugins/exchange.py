"""One HTTP exchange without a framework: a request, a response, and how JSON bodies are read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.plugins.problems import Problem, ProblemError
from octavo.plugins.protocol import JSON, PROBLEM_JSON

# Deeper JSON is refused.
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Request:
    """What a plugin is asked.

    Attributes:
        method: in upper case.
        path: relative to the plugin's base URL; a leading slash does not count. Without the query.
        headers: names are compared without case.
        body: complete, unless it is larger than the plugin takes.
        is_complete: False if the body ended before the length that was announced: the client is gone.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    is_complete: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", {name.lower(): value for name, value in self.headers.items()})

    def header(self, name: str) -> str | None:
        return self.headers.get(name.lower())


@dataclass(frozen=True)
class Response:
    """What a plugin answers. `headers` has the type of the body; a coat adds its length."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is none."""
        return json.loads(self.body)

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        return Response(self.status, {**self.headers, **headers}, self.body)


def with_length(response: Response) -> dict[str, str]:
    """The headers with the body's length, as RFC 9110 has it: none for 204 and 304, the GET's for HEAD."""
    if response.status in (204, 304):
        return dict(response.headers)
    return {"content-length": str(len(response.body)), **response.headers}


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body. Raises ValueError for a number that JSON has not (NaN, Infinity)."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate cannot be sent as UTF-8.
    return Response(status, {"content-type": JSON, **(headers or {})}, body.encode("utf-8", "backslashreplace"))


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response of a problem, as application/problem+json (RFC 9457)."""
    fields = {"content-type": PROBLEM_JSON, **(headers or {})}
    if problem.retry_after is not None:
        fields["retry-after"] = str(max(0, math.ceil(problem.retry_after)))
    body = json.dumps(problem.to_json(), ensure_ascii=False, separators=(",", ":"), default=str)
    return Response(problem.status, fields, body.encode("utf-8", "backslashreplace"))


def read_json(body: bytes) -> Any:
    """The value of a JSON body. `3.0` becomes `3`: both are the same integer of JSON Schema.

    Raises:
        ProblemError: malformed-request: not JSON in UTF-8, a repeated name, NaN, or too deep.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        return _plain(value, 0)
    except ProblemError:
        raise
    except UnicodeDecodeError:
        raise ProblemError("malformed-request", "the body is not UTF-8: send JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a number or the nesting is too large"
        raise ProblemError("malformed-request", f"the body is not JSON: {reason}") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            # Readers differ in which one counts.
            raise ProblemError(
                "malformed-request", f"the body has the name {name[:80]!r} twice in one object: send one"
            )
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise ProblemError("malformed-request", f"the body contains {name}, which is not JSON: leave it out")


def _plain(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ProblemError("malformed-request", f"the body nests deeper than {_MAX_DEPTH} levels: make it flatter")
    if isinstance(value, dict):
        return {name: _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProblemError("malformed-request", "the body contains a number beyond 1.8e308: make it smaller")
        # Beyond 2^53 a float is no exact integer.
        return int(value) if value.is_integer() and abs(value) <= 2**53 else value
    return value
