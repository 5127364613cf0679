"""Sends a response to its client through ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Send

from octavo.server.access import Access
from octavo.server.errors import ApiError, from_octavo
from octavo.server.http import EVENT_STREAM, Reply
from octavo.server.response import Response

log = logging.getLogger("octavo.server")

# A stream without output sends a comment after this time. Also the maximum wait before a stream begins.
_KEEPALIVE_SECONDS = 10.0


class AsgiResponse:
    """Sends one response. When the client disconnects, its requests are cancelled at once."""

    def __init__(self, response: Response, access: Access, send: Send, stall: float) -> None:
        self._response = response
        self._access = access
        self._send = send
        self._stall = stall
        # Start time of a write that has not ended.
        self._write_start: float | None = None
        # The task was cancelled because the client disconnected or reads nothing.
        self._disconnected = False
        self._ended = False

    async def run(self, receive: Receive) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        watcher = self._loop.create_task(self._watch(receive))
        self._timer = self._loop.call_later(self._check_interval, self._check_stall)
        try:
            await self._feed()
        except asyncio.CancelledError:
            if not self._disconnected or (self._task is not None and self._task.uncancel()):
                raise
        finally:
            self._ended = True
            self._response.close()
            self._timer.cancel()
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:
            # After any error of the connection there is no reader left.
            log.debug("a connection has failed", exc_info=error)
        self._disconnect()

    @property
    def _check_interval(self) -> float:
        """Seconds between two checks whether the client reads."""
        return max(self._stall / 4, 0.01)

    def _check_stall(self) -> None:
        if self._write_start is not None and time.monotonic() - self._write_start >= self._stall:
            log.warning("a client has read nothing for %s s: its request is cancelled", self._stall)
            self._disconnect()
        else:
            self._timer = self._loop.call_later(self._check_interval, self._check_stall)

    def _disconnect(self) -> None:
        if not self._ended and not self._disconnected and self._task is not None:
            self._disconnected = True
            self._task.cancel()

    async def _feed(self) -> None:
        response = self._response
        async with contextlib.aclosing(response.generation.adeltas(_KEEPALIVE_SECONDS)) as batches:  # type: ignore[type-var]
            if response.stream:
                await self._stream(batches)
                return
            try:
                async for deltas in batches:
                    response.feed(deltas)
                reply = response.reply()
            except Exception as error:
                reply = self._access.error_reply(_as_api_error(error))
            self._write_start = time.monotonic()
            await send_reply(self._send, self._access, reply)

    async def _stream(self, batches: AsyncIterator[Any]) -> None:
        response = self._response
        started = False
        try:
            async for deltas in batches:
                if not started:
                    started = True
                    await self._send(self._access.start(200, EVENT_STREAM))
                await self._write(response.feed(deltas) if deltas else response.ping())
            last = response.end()
        except Exception as error:
            fault = _as_api_error(error)
            if not started:
                # Nothing has been sent yet: the error determines the status.
                await send_reply(self._send, self._access, self._access.error_reply(fault))
                return
            last = response.error(fault)
        if not started:
            await self._send(self._access.start(200, EVENT_STREAM))
        await self._write(last, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            self._write_start = time.monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._write_start = None


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("an internal fault in an answer", exc_info=error)
    return from_octavo(error)


async def send_reply(send: Send, access: Access, reply: Reply) -> None:
    headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
    await send(access.start(reply.status, headers))
    await send({"type": "http.response.body", "body": reply.body})
