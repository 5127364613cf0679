"""A plugin under WSGI servers and frameworks. It imports no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from octavo.plugins.exchange import Request, Response, with_length


class WsgiApp:
    """The application. Mount it under any path with werkzeug's DispatcherMiddleware, or serve it alone."""

    def __init__(self, handle: Callable[[Request], Response], body_bytes: int) -> None:
        self._handle = handle
        self._body_bytes = body_bytes

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # WSGI carries bytes as Latin-1.
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")
        body, is_complete = self._body(environ)
        # A body that is too large is cut after the limit, and the plugin refuses it.
        response = self._handle(Request(environ["REQUEST_METHOD"], path, read_headers(environ), body, is_complete))
        start_response(f"{response.status} {_phrase(response.status)}", list(with_length(response).items()))
        return [response.body]

    def _body(self, environ: dict[str, Any]) -> tuple[bytes, bool]:
        """The body, or its first bytes if it is too large, and whether as much came as was announced."""
        announced = _length(environ.get("CONTENT_LENGTH") or "")
        if announced is None and not environ.get("wsgi.input_terminated"):
            # Without a length the end of the body is unknown.
            return b"", True
        limit = self._body_bytes + 1
        left = limit if announced is None else min(announced, limit)
        parts: list[bytes] = []
        try:
            while left > 0 and (part := environ["wsgi.input"].read(left)):
                parts.append(part)
                left -= len(part)
        except OSError:
            # The client is gone, or its chunks cannot be read.
            return b"".join(parts), False
        return b"".join(parts), announced is None or left <= 0


def _length(text: str) -> int | None:
    """The value of a Content-Length; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def read_headers(environ: dict[str, Any]) -> dict[str, str]:
    """The request's headers, in lower case, of a WSGI environ."""
    found = {key[5:].replace("_", "-").lower(): str(v) for key, v in environ.items() if key.startswith("HTTP_")}
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(key):
            found[key.replace("_", "-").lower()] = str(environ[key])
    return found


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
