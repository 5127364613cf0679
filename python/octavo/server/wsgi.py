"""The WSGI application: the service for Flask and other hosts of threads."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from octavo.llm import LLM
from octavo.server.access import ID_HEADERS, Access
from octavo.server.config import ServerConfig
from octavo.server.cors import Cors
from octavo.server.discover import all_routes
from octavo.server.errors import ApiError, from_octavo
from octavo.server.generation import Deltas
from octavo.server.http import EVENT_STREAM, Call
from octavo.server.response import Response
from octavo.server.service import Service

log = logging.getLogger("octavo.server")

# A stream without output sends a comment after this time.
_KEEPALIVE_SECONDS = 10.0
# Keys under which servers put the client's socket, which shows that the client has disconnected.
_SOCKETS = ("werkzeug.socket", "gunicorn.socket")

StartResponse = Callable[..., Any]


class WsgiApp:
    """The application; see `octavo.server.create_wsgi_app`. `close` closes the service."""

    def __init__(self, source: LLM | str | Callable[[], LLM] | None, config: ServerConfig) -> None:
        self.service = Service(source, config, all_routes())
        self._cors = Cors(config.allowed_origins)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        service = self.service
        method = environ["REQUEST_METHOD"]
        # WSGI carries bytes as Latin-1.
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace") or "/"
        access = Access(service, method, path, service.auth.request_id(environ.get("HTTP_X_REQUEST_ID")))

        def start(status: int, headers: dict[str, str]) -> None:
            access.started(status)
            fields = {**headers, **dict.fromkeys(ID_HEADERS, access.request_id), **self._cors.headers(environ)}
            start_response(f"{status} {_phrase(status)}", list(fields.items()))

        asked = self._cors.preflight(environ)
        if asked is not None:
            # A browser sends no key with its question.
            start(asked[0], {**asked[1], "content-length": "0"})
            access.end()
            return [b""]
        try:
            passed = service.auth.check(method, path, _fields(environ))
            if not environ.get("PATH_INFO") and environ.get("SCRIPT_NAME") and service.config.page:
                # Relative links of the page need an address that ends with a slash.
                start(308, {"location": environ["SCRIPT_NAME"] + "/", "content-length": "0"})
                access.end()
                return [b""]
            body = self._body(environ, passed.headers)
            query = environ.get("QUERY_STRING", "")
            outcome = service.respond(Call(method, path, passed.headers, body, access.request_id, passed.salt, query))
            if isinstance(outcome, Response):
                batches = outcome.generation.deltas(_is_connected(environ), _KEEPALIVE_SECONDS)
                if outcome.stream:
                    return Body(_stream(outcome, batches, start, access), outcome, access)
                try:
                    for deltas in batches:
                        outcome.feed(deltas)
                    outcome = outcome.reply()
                finally:
                    batches.close()  # type: ignore[attr-defined]
        except ApiError as error:
            outcome = access.error_reply(error)
        except Exception as error:
            log.exception("an internal fault in %s", path)
            outcome = access.error_reply(from_octavo(error))
        headers = {"content-type": outcome.content_type, "content-length": str(len(outcome.body)), **outcome.headers}
        start(outcome.status, headers)
        access.end()
        return [b"" if method == "HEAD" else outcome.body]

    def _body(self, environ: dict[str, Any], headers: dict[str, str]) -> bytes:
        limit = self.service.config.limits.body_bytes
        source = environ["wsgi.input"]
        if "content-length" in headers:
            data = source.read(int(headers["content-length"]))
        elif environ.get("wsgi.input_terminated"):
            data = source.read(limit + 1)
        else:
            return b""
        if len(data) > limit:
            raise self.service.auth.too_large()
        return bytes(data)

    def close(self) -> None:
        self.service.close()


class Body:
    """The pieces of a stream. The host calls `close` when the client has disconnected, which cancels the request."""

    def __init__(self, pieces: Iterator[bytes], response: Response, access: Access) -> None:
        self._pieces = pieces
        self._response = response
        self._access = access
        # The status is known with the first piece.
        self._first: bytes | None = next(pieces, b"")
        self._closed = False

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return next(self._pieces)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._response.close()
            with contextlib.suppress(ValueError):
                # ValueError: the iterator runs in another thread, where it ends by itself.
                self._pieces.close()  # type: ignore[attr-defined]
            self._access.end()

    def __del__(self) -> None:
        self.close()


def _stream(
    response: Response, batches: Iterator[Deltas], start: Callable[[int, dict[str, str]], None], access: Access
) -> Iterator[bytes]:
    started = False
    try:
        for deltas in batches:
            if not started:
                started = True
                start(200, EVENT_STREAM)
            piece = response.feed(deltas) if deltas else response.ping()
            if piece:
                yield piece
        last = response.end()
    except Exception as error:
        fault = error if isinstance(error, ApiError) else from_octavo(error)
        if not isinstance(error, ApiError):
            log.exception("an internal fault in an answer")
        if not started:
            reply = access.error_reply(fault)
            start(reply.status, {"content-type": reply.content_type, **reply.headers})
            yield reply.body
            return
        last = response.error(fault)
    if not started:
        start(200, EVENT_STREAM)
    yield last


def _fields(environ: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            yield name[5:].replace("_", "-"), str(value)
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            yield name.replace("_", "-"), str(value)


def _is_connected(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function: whether the client is connected. True if the server does not pass the client's socket."""
    found = next((environ[name] for name in _SOCKETS if isinstance(environ.get(name), socket.socket)), None)
    if found is None:
        return lambda: True

    def is_connected() -> bool:
        try:
            readable, _, _ = select.select([found], [], [], 0)
            return not readable or found.recv(1, socket.MSG_PEEK) != b""
        except (OSError, ValueError):
            return False

    return is_connected


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
