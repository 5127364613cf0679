"""The engine requests of one API call, and the same news of them for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeAlias

from octavo import _core
from octavo.aio import wakes
from octavo.errors import EngineDeadError, from_engine
from octavo.llm import LLM
from octavo.params import SamplingParams
from octavo.server.faults import from_octavo

# (which of the prompts, what came)
News: TypeAlias = list[tuple[int, _core.Delta]]


class Generation:
    """One or several engine requests that are answered together. Closing it cancels what still runs.

    Args:
        jobs: (prompt, add special tokens, parameters) per request. Each is checked before the first starts.
        only_end: nothing is wanted before a request has ended.
        interval: time between two lots of news, in seconds.
    """

    def __init__(
        self,
        llm: LLM,
        jobs: list[tuple[str | list[int], bool, SamplingParams]],
        *,
        only_end: bool = False,
        interval: float = 0.0,
    ) -> None:
        self._llm = llm
        self._only_end = only_end
        self._interval = interval
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

    def _watch(self, wake: Callable[[], None]) -> None:
        for stream in self.streams:
            self._llm._dispatcher.watch(stream, wake, only_end=self._only_end)

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
                    if self._open and self._interval:
                        # What comes meanwhile travels together.
                        threading.Event().wait(self._interval)
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
            self._watch(wakes(asyncio.get_running_loop(), arrived))
            while self._open:
                arrived.clear()
                news = self._poll()
                if news:
                    yield news
                    if self._open and self._interval:
                        await asyncio.sleep(_to_tick(asyncio.get_running_loop().time(), self._interval))
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await arrived.wait()
                if not arrived.is_set():
                    yield []
        finally:
            self.close()


def _to_tick(now: float, interval: float) -> float:
    """Seconds to the next tick that is at least half an interval away. All streams wake at the same ticks, so that one
    round of the event loop serves them all."""
    return (math.floor(now / interval + 0.5) + 1) * interval - now


# Seconds between two looks at whether a synchronous client is still there.
_LOOK = 0.25
