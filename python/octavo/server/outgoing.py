"""An answer on its way through ASGI to its client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Send

from octavo.server.access import Access
from octavo.server.answer import Answer
from octavo.server.faults import ApiError, from_octavo
from octavo.server.http import EVENT_STREAM, PING, Reply, error_reply

log = logging.getLogger("octavo.server")

# Seconds without news after which a stream says that it lives; also the longest wait before it begins.
_PATIENCE = 10.0


class Outgoing:
    """An answer on its way out. A client that leaves cancels what runs for it, at once."""

    def __init__(self, answer: Answer, access: Access, send: Send, stall: float) -> None:
        self._answer = answer
        self._access = access
        self._send = send
        self._stall = stall
        # Since when a write waits for the client.
        self._writing: float | None = None
        # The client has left or reads nothing, and the task was cancelled for that.
        self._left = False
        self._over = False

    async def run(self, receive: Receive) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        watcher = self._loop.create_task(self._watch(receive))
        self._timer = self._loop.call_later(self._look, self._check_stall)
        try:
            await self._feed()
        except asyncio.CancelledError:
            if not self._left or (self._task is not None and self._task.uncancel()):
                raise
        finally:
            self._over = True
            self._answer.generation.close()
            self._timer.cancel()
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception as error:
            # Whatever it was, nobody reads any more.
            log.debug("a connection has failed", exc_info=error)
        self._leave()

    @property
    def _look(self) -> float:
        """Seconds between two looks at whether the client reads."""
        return max(self._stall / 4, 0.01)

    def _check_stall(self) -> None:
        if self._writing is not None and time.monotonic() - self._writing >= self._stall:
            log.warning("a client has read nothing for %s s: its request is cancelled", self._stall)
            self._leave()
        else:
            self._timer = self._loop.call_later(self._look, self._check_stall)

    def _leave(self) -> None:
        if not self._over and not self._left and self._task is not None:
            self._left = True
            self._task.cancel()

    async def _feed(self) -> None:
        answer = self._answer
        async with contextlib.aclosing(answer.generation.anews(_PATIENCE)) as lots:  # type: ignore[type-var]
            if answer.stream:
                await self._stream(lots)
                return
            try:
                async for news in lots:
                    answer.feed(news)
                reply = answer.reply()
            except Exception as error:
                reply = error_reply(_as_api_error(error))
            self._writing = time.monotonic()
            await send_reply(self._send, self._access, reply)

    async def _stream(self, lots: AsyncIterator[Any]) -> None:
        answer = self._answer
        started = False
        try:
            async for news in lots:
                if not started:
                    started = True
                    await self._send(self._access.start(200, EVENT_STREAM))
                await self._write(answer.feed(news) if news else PING)
            last = answer.end()
        except Exception as error:
            fault = _as_api_error(error)
            if not started:
                # Nothing has been sent: the status can still say it.
                await send_reply(self._send, self._access, error_reply(fault))
                return
            last = answer.fault(fault)
        if not started:
            await self._send(self._access.start(200, EVENT_STREAM))
        await self._write(last, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            self._writing = time.monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._writing = None


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("an internal fault in an answer", exc_info=error)
    return from_octavo(error)


async def send_reply(send: Send, access: Access, reply: Reply) -> None:
    headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
    await send(access.start(reply.status, headers))
    await send({"type": "http.response.body", "body": reply.body})
