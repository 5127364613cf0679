"""The engine requests of one API call, and the same news of them for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
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
    all of them. Where a round takes long, because there are many, the next one comes later: a model on the CPU needs
    the core more than its readers need another piece.

    Args:
        seconds: between two pieces of a stream.
    """

    # Most that sending may take of a core, and the longest time between two pieces that this may lead to, in `seconds`.
    _SHARE = 0.02
    _LONGEST = 5

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
        # It comes after those that were woken.
        loop.call_soon(self._end, now, begin)

    def _end(self, now: Round, begin: float) -> None:
        wanted = (time.thread_time() - begin) / self._SHARE
        now.interval = min(max(wanted, self.seconds), self._LONGEST * self.seconds)


@dataclass
class Round:
    """Streams of one event loop that send together.

    Attributes:
        interval: seconds to the next time.
    """

    interval: float
    waiting: list[asyncio.Event] = field(default_factory=list)


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
