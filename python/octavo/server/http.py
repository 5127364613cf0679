"""HTTP requests and replies, independent of the web framework."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, cast

from octavo import _core
from octavo.big_integers import exact_integers
from octavo.errors import InvalidRequestError
from octavo.server.config import Limits
from octavo.server.errors import ApiError, bad_request


@dataclass(frozen=True)
class Call:
    """A request that `Auth` has accepted.

    Attributes:
        path: below the application's root.
        headers: names in lower case.
        salt: part of the prefix cache that belongs to the caller's key; None without keys.
        query: what follows "?" in the URL.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    salt: str | None = None
    query: str = ""

    def json(self, limits: Limits) -> dict[str, Any]:
        """The body as an object.

        Raises:
            ApiError: 415 for another type of content (a form of a foreign web page could send that) and for a
                compressed body, 400 for no JSON.
        """
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            message = f"the content coding is {coding[:40]}: send the body without compression"
            raise ApiError(415, message, code="unsupported_encoding", headers={"accept-encoding": "identity"})
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise ApiError(415, f"the content type is {kind or 'not given'}: send application/json")
        try:
            text = _utf8(self.body)
            value = _core.parse_json(text, max_depth=limits.json_depth, max_values=limits.json_values)
        except InvalidRequestError as error:
            raise bad_request(f"the body is {error}", code="invalid_json") from error
        if not isinstance(value, dict):
            raise bad_request("the body is no JSON object: send {...}", code="invalid_json")
        return cast(dict[str, Any], exact_integers(text, value))


def _utf8(body: bytes) -> bytes:
    """The body without a byte order mark, which some Windows tools write.

    Raises:
        ApiError: 400 for the mark of another encoding.
    """
    if body.startswith(codecs.BOM_UTF8):
        return body[len(codecs.BOM_UTF8) :]
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise bad_request("the body begins with the mark of UTF-16 or UTF-32: send UTF-8", code="invalid_json")
    return body


@dataclass(frozen=True)
class Reply:
    """A complete HTTP response."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


# One encoder for all calls: json.dumps makes a new one each time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: object) -> bytes:
    return _encode(value).encode("utf-8", "replace")


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, dumps(value), headers=headers or {})


def error_reply(error: ApiError) -> Reply:
    return json_reply(error.body(), error.status, error.headers)


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    data = b"data: " + dumps(value) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


class Chunks:
    """The events of one stream. Events differ in their choice only: all else is encoded once.

    Args:
        head: fields that all events share.
        usage: each event has `"usage": null`, as in OpenAI's streams whose last event has the usage.
    """

    def __init__(self, head: Mapping[str, Any], *, usage: bool) -> None:
        self._before = b"data: " + dumps(head)[:-1] + b',"choices":['
        self._after = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def event(self, choice: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> bytes:
        """The event of `choice`, with the usage so far if it is given."""
        after = self._after if usage is None else b'],"usage":' + dumps(usage) + b"}\n\n"
        return self._before + dumps(choice) + after

    def text(self, before: bytes, text: str, after: bytes) -> bytes:
        """The event of a choice that is `before`, the text as JSON, `after`."""
        return b"".join((self._before, before, encode_basestring(text).encode("utf-8", "replace"), after, self._after))


DONE = b"data: [DONE]\n\n"
# A comment, which clients skip and proxies take as a sign of life.
PING = b": ping\n\n"
EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
