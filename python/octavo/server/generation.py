"""The engine requests of one API call, and the same news of them for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeAlias

from octavo import _core
from octavo.errors import EngineDeadError, from_engine
from octavo.llm import LLM
from octavo.params import SamplingParams
from octavo.server.faults import from_octavo

# (which of the prompts, what came)
News: TypeAlias = list[tuple[int, _core.Delta]]


class Pace:
    """How often streams send. Those of an event loop send at the same times: one timer, and one round of the loop, for
    all of them.

    Args:
        seconds: between two pieces of a stream.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[asyncio.Event]] = (
            weakref.WeakKeyDictionary()
        )

    def set_next(self, event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Sets `event` at the next tick."""
        waiting = self._waiting.setdefault(loop, [])
        if not waiting:
            tick = math.floor(loop.time() / self.seconds + 0.5) + 1
            loop.call_at(tick * self.seconds, self._tick, loop)
        waiting.append(event)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        for event in self._waiting.pop(loop, []):
            event.set()


class Generation:
    """One or several engine requests that are answered together. Closing it cancels what still runs.

    Args:
        jobs: (prompt, add special tokens, parameters) per request. Each is checked before the first starts.
        only_end: nothing is wanted before a request has ended.
        pace: of lots of news; None: each at once.
    """

    def __init__(
        self,
        llm: LLM,
        jobs: list[tuple[str | list[int], bool, SamplingParams]],
        *,
        only_end: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._llm = llm
        self._only_end = only_end
        self._pace = pace
        self.streams: list[_core.Stream] = []
        engine = llm._engine
        try:
            for prompt, special, params in jobs:
                self.streams.append(engine.submit(prompt, params.as_dict(), add_special_tokens=special))
        except BaseException:
            self.close()
            raise
        self._open = dict(enumerate(self.streams))

    def close(self) -> None:
        """Cancels what still runs, and stops the news. Idempotent."""
        for stream in self.streams:
            self._llm._dispatcher.forget(stream)
            stream.cancel()

    def _watch(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        for stream in self.streams:
            self._llm._dispatcher.watch(stream, wake, loop, only_end=self._only_end)

    def _poll(self) -> News:
        """What has come since. A request without news wakes whoever watches as soon as it has some; one that had news
        does not before it has been looked at once more, so that a busy stream costs no wake-ups.

        Raises:
            ApiError: one of the requests failed; the others are of no use then.
        """
        news: News = []
        for index, stream in list(self._open.items()):
            delta = stream.poll()
            if delta is None:
                continue
            if delta.finished:
                del self._open[index]
                self._llm._dispatcher.forget(stream)
                if delta.error is not None:
                    raise from_octavo(from_engine(*delta.error))
                if any(o.finish_reason == "abort" for o in delta.outputs):
                    raise from_octavo(EngineDeadError("the server is shutting down"))
            news.append((index, delta))
        return news

    def news(self, alive: Callable[[], bool], patience: float) -> Iterator[News]:
        """What comes, until all requests have ended; an empty list each `patience` seconds without any.

        Args:
            alive: asked while waiting; False ends the requests.
        """
        arrived = threading.Event()
        try:
            self._watch(arrived.set)
            while self._open:
                arrived.clear()
                news = self._poll()
                if news:
                    yield news
                    if self._open and self._pace is not None:
                        # What comes meanwhile travels together; the end does not wait.
                        arrived.wait(self._pace.seconds)
                    continue
                waited = 0.0
                while not arrived.wait(_LOOK) and waited < patience:
                    waited += _LOOK
                    if not alive():
                        return
                if not arrived.is_set():
                    yield []
        finally:
            self.close()

    async def anews(self, patience: float) -> AsyncIterator[News]:
        """`news` for an event loop. Cancelling the task, or closing the iterator, ends the requests."""
        arrived = asyncio.Event()
        try:
            loop = asyncio.get_running_loop()
            self._watch(arrived.set, loop)
            while self._open:
                arrived.clear()
                news = self._poll()
                if news:
                    yield news
                    if self._open and self._pace is not None:
                        # What comes meanwhile travels together; the end does not wait.
                        self._pace.set_next(arrived, loop)
                        await arrived.wait()
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await arrived.wait()
                if not arrived.is_set():
                    yield []
        finally:
            self.close()


# Seconds between two looks at whether a synchronous client is still there.
_LOOK = 0.25
