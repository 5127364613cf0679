"""HTTP/1.1 on a socket: uvicorn's fast parser, with a bound on the head of a request, which it lacks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal


def http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """What uvicorn is to speak HTTP with; `h11_max_incomplete_event_size` of its configuration bounds heads either way.

    Where httptools is missing it is h11, which is slower: it is all Python.
    """
    try:
        return _bounded()
    except ModuleNotFoundError:
        return "h11"


def _bounded() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    if TYPE_CHECKING:
        from uvicorn.config import Config

    class Bounded(HttpToolsProtocol):
        """Closes a connection that sends and sends, and never ends a head (or what else is no body)."""

        def __init__(self, config: Config, *arguments: Any, **more: Any) -> None:
            super().__init__(config, *arguments, **more)
            self._most = config.h11_max_incomplete_event_size or 0
            # Bytes that came since the parser last had something to say.
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
            # A field behind the body is no header: what stands in front has let the request in without it.
            if not self._past_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._spoke = self._past_head = True
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._spoke = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._spoke = True
            super().on_message_complete()

    return Bounded
