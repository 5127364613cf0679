"""The HTTP/1.1 parser: uvicorn's httptools protocol, with a limit for the size of request heads.

It also answers HTTP/1.0 in its own form. uvicorn would send chunks, which such a client cannot read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starlette.types import Send
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """The `http` argument of uvicorn. `h11_max_incomplete_event_size` limits request heads in both cases.

    Without httptools it is h11, which is slower.
    """
    try:
        return _bounded()
    except ModuleNotFoundError:
        return "h11"


def _bounded() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
        """Closes a connection that sends too many bytes outside of a body without ending the head."""

        def __init__(self, config: Config, *arguments: Any, **more: Any) -> None:
            super().__init__(config, *arguments, **more)
            self._most = config.h11_max_incomplete_event_size or 0
            # Bytes received since the last event of the parser.
            self._held = 0
            self._spoke = False
            self._past_head = False

        def data_received(self, data: bytes) -> None:
            self._spoke = False
            super().data_received(data)
            self._held = 0 if self._spoke else self._held + len(data)
            if self._held > self._most and not self.transport.is_closing():
                self.send_400_response(f"More than {self._most} bytes of headers.")

        def on_message_begin(self) -> None:
            self._spoke, self._past_head = True, False
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            # Trailers are ignored: the request was accepted by its headers alone.
            if not self._past_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._spoke = self._past_head = True
            super().on_headers_complete()
            if self.parser.get_http_version() == "1.0" and self.cycle is not None:
                # The task of the request has not begun: it calls the new `send`.
                self.cycle.send = _until_close(self.cycle)  # type: ignore[assignment,method-assign]

        def on_body(self, body: bytes) -> None:
            self._spoke = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._spoke = True
            super().on_message_complete()

    return Bounded


def _until_close(cycle: RequestResponseCycle) -> Send:
    """The `send` of a request whose client cannot read chunks: a body without a length ends with the connection."""
    inner = cycle.send
    unbounded = False

    async def send(message: Any) -> None:
        nonlocal unbounded
        if message["type"] == "http.response.start":
            unbounded = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if unbounded:
                cycle.chunked_encoding = False
        elif unbounded:
            # The protocol compares each body with the length that is left.
            cycle.expected_content_length = len(message.get("body", b""))
        await inner(message)

    return send
