"""A plugin under ASGI servers and frameworks. It needs no lifespan and imports no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from octavo.plugins.exchange import Request, Response, with_length

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AsgiApp:
    """The application. Mount it under any path: `app.mount("/weather", plugin.asgi_app)`."""

    def __init__(self, handle: Callable[[Request], Awaitable[Response]], body_bytes: int) -> None:
        self._handle = handle
        self._body_bytes = body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        path, root = scope["path"], scope.get("root_path", "").rstrip("/")
        # A path begins with the root as a whole: /v is no root of /v1.
        path = path[len(root) :] if root and (path + "/").startswith(root + "/") else path
        body = await self._body(receive)
        if body is None:
            return
        response = await self._handle(Request(scope["method"], path, read_headers(scope["headers"]), body))
        if len(body) > self._body_bytes:
            # The rest is not read, thus the connection cannot be used again.
            response = response.with_headers({"connection": "close"})
        named = with_length(response)
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        await send({"type": "http.response.body", "body": response.body})

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, or its first bytes if it is too large; None: the client has disconnected."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._body_bytes or not message.get("more_body", False):
                return b"".join(parts)


def read_headers(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The request's headers, in lower case. Lines of one name are joined, as WSGI servers do (RFC 9110, section 5.3).

    Else a second line could hide the first one from a check.
    """
    found: dict[str, str] = {}
    for name, value in fields:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        # Cookies have another separator (RFC 9113, section 8.2.3).
        found[key] = f"{found[key]}{'; ' if key == 'cookie' else ', '}{text}" if key in found else text
    return found


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
