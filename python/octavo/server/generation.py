"""The engine requests of one API call, and one way to read their output for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from octavo import _core
from octavo.errors import EngineDeadError, from_engine
from octavo.request_handle import RequestHandle
from octavo.server.errors import from_octavo

# (index of the prompt, new output)
Deltas: TypeAlias = list[tuple[int, _core.Delta]]

# Seconds between two checks whether a synchronous client is still connected.
_CLIENT_CHECK_SECONDS = 0.25


class StreamThrottle:
    """Limits how often streams send. All streams of an event loop send together: one timer and one round per interval.
    When a round takes long because there are many streams, the interval grows: on the CPU the model needs the core
    more than the clients need another piece.

    Args:
        seconds: minimum time between two pieces of a stream.
    """

    # Maximum share of a core for sending, and the longest interval that this leads to, in units of `seconds`.
    _MAX_SHARE = 0.02
    _MAX_FACTOR = 5

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._rounds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Round] = weakref.WeakKeyDictionary()

    def set_next(self, event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Sets `event` at the next tick."""
        found = self._rounds.get(loop)
        if found is None:
            found = self._rounds[loop] = Round(self.seconds)
        if not found.waiting:
            tick = math.floor(loop.time() / found.interval + 0.5) + 1
            loop.call_at(tick * found.interval, self._tick, loop, found)
        found.waiting.append(event)

    def _tick(self, loop: asyncio.AbstractEventLoop, now: Round) -> None:
        begin = time.thread_time()
        for event in now.waiting:
            event.set()
        now.waiting.clear()
        # Runs after the tasks that were woken.
        loop.call_soon(self._end, now, begin)

    def _end(self, now: Round, begin: float) -> None:
        wanted = (time.thread_time() - begin) / self._MAX_SHARE
        now.interval = min(max(wanted, self.seconds), self._MAX_FACTOR * self.seconds)


@dataclass
class Round:
    """Streams of one event loop that send together.

    Attributes:
        interval: seconds to the next round.
    """

    interval: float
    waiting: list[asyncio.Event] = field(default_factory=list)


class Generation:
    """One or several engine requests that one response needs. Closing it cancels the unfinished ones.

    Args:
        submissions: functions that submit one request each.
        only_end: read each request's output only when the request has ended.
        throttle: limits how often output is read; None: as soon as there is some.
    """

    def __init__(
        self,
        submissions: Sequence[Callable[[], RequestHandle[Any]]],
        *,
        only_end: bool = False,
        throttle: StreamThrottle | None = None,
    ) -> None:
        self._only_end = only_end
        self._throttle = throttle
        self.handles: list[RequestHandle[Any]] = []
        try:
            for submit in submissions:
                self.handles.append(submit())
        except BaseException:
            self.close()
            raise
        self._open = dict(enumerate(self.handles))

    def close(self) -> None:
        """Cancels unfinished requests and ends their wake-ups. Idempotent."""
        for handle in self.handles:
            handle.unwatch()
            handle.cancel()

    def _watch(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        for handle in self.handles:
            handle.watch(wake, loop, only_end=self._only_end)

    def _poll(self) -> Deltas:
        """New output of all requests. A request without output wakes its watcher at its next output. A request with
        output does so only after one more poll: a busy stream causes no wake-ups.

        Raises:
            ApiError: one of the requests failed; the response needs all of them.
        """
        deltas: Deltas = []
        for index, handle in list(self._open.items()):
            delta = handle.poll_delta()
            if delta is None:
                continue
            if delta.finished:
                del self._open[index]
                if delta.error is not None:
                    raise from_octavo(from_engine(*delta.error))
                if any(o.finish_reason == "abort" for o in delta.outputs):
                    raise from_octavo(EngineDeadError("the server is shutting down"))
            deltas.append((index, delta))
        return deltas

    def deltas(self, is_connected: Callable[[], bool], timeout: float) -> Iterator[Deltas]:
        """Output until all requests have ended; an empty list after `timeout` seconds without any.

        Args:
            is_connected: called while waiting; False ends the requests.
        """
        arrived = threading.Event()
        try:
            self._watch(arrived.set)
            while self._open:
                arrived.clear()
                deltas = self._poll()
                if deltas:
                    yield deltas
                    if self._open and self._throttle is not None:
                        # Output that comes meanwhile is sent together. The end of a request does not wait.
                        arrived.wait(self._throttle.seconds)
                    continue
                waited = 0.0
                while not arrived.wait(_CLIENT_CHECK_SECONDS) and waited < timeout:
                    waited += _CLIENT_CHECK_SECONDS
                    if not is_connected():
                        return
                if not arrived.is_set():
                    yield []
        finally:
            self.close()

    async def adeltas(self, timeout: float) -> AsyncIterator[Deltas]:
        """`deltas` for an event loop. Cancelling the task, or closing the iterator, ends the requests."""
        arrived = asyncio.Event()
        try:
            loop = asyncio.get_running_loop()
            self._watch(arrived.set, loop)
            while self._open:
                arrived.clear()
                deltas = self._poll()
                if deltas:
                    yield deltas
                    if self._open and self._throttle is not None:
                        # Output that comes meanwhile is sent together. The end of a request does not wait.
                        self._throttle.set_next(arrived, loop)
                        await arrived.wait()
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await arrived.wait()
                if not arrived.is_set():
                    yield []
        finally:
            self.close()
