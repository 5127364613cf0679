"""The egress rules for the HTTP of the MCP SDK: a name is resolved once, and the checked address is connected to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from octavo.plugins.host.egress import literal, resolve

if TYPE_CHECKING:
    import httpx2

_RESOLVE_S = 10.0


def EgressTransport(allow_private: bool, limit: int) -> httpx2.AsyncBaseTransport:  # noqa: N802
    """A transport of httpx2 that keeps to the egress rules, and reads at most `limit` bytes of an answer.

    A stream of events has no end, so its limit is that of the SDK, for one event.
    """
    import anyio.to_thread
    import httpx2

    class Capped(httpx2.AsyncByteStream):
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            read = 0
            async for part in self._inner:
                read += len(part)
                if read > limit:
                    raise httpx2.ReadError(
                        f"the answer has more than {limit} bytes: ask for less, or raise response_bytes"
                    )
                yield part

        async def aclose(self) -> None:
            await self._inner.aclose()

    class Checked(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            answer = await self._sent(request)
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                answer.stream = Capped(answer.stream)
            return answer

        async def _sent(self, request: httpx2.Request) -> httpx2.Response:
            host = request.url.host
            if literal(host) is not None:
                return await self._inner.handle_async_request(request)
            port = request.url.port or (443 if request.url.scheme == "https" else 80)
            found = await anyio.to_thread.run_sync(lambda: resolve(host, port, _RESOLVE_S, allow_private))
            # The Host header is set already, and TLS is checked against the name.
            timeout = dict(request.extensions.get("timeout", {}))
            if timeout.get("connect") is not None:
                timeout["connect"] /= len(found)
            request.extensions = {**request.extensions, "sni_hostname": host, "timeout": timeout}
            for address in found[:-1]:
                request.url = request.url.copy_with(host=address)
                # Nothing was sent yet: the next address may accept a connection.
                with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                    return await self._inner.handle_async_request(request)
            request.url = request.url.copy_with(host=found[-1])
            return await self._inner.handle_async_request(request)

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Checked()
