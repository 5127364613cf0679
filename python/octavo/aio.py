"""asyncio without polling: one thread per LLM waits for news of all requests and wakes the loops that want it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from octavo.errors import EngineDeadError

if TYPE_CHECKING:
    from octavo import _core

# Longest wait of the thread, in seconds: how soon it notices that its LLM is gone.
_WAIT = 0.2


class Dispatcher:
    """Wakes whoever waits for news of requests. Its thread starts with the first of them and ends with the LLM."""

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        # Who waits for a request: what to call, and in which event loop.
        self._waiting: dict[int, tuple[Callable[[], None], asyncio.AbstractEventLoop | None]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(
        self,
        stream: _core.Stream,
        wake: Callable[[], None],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        only_end: bool = False,
    ) -> None:
        """From now on calls `wake`, which must be quick, whenever `stream` has news; with `only_end` when it has ended.
        It is called in `loop`, or without one from a thread of the dispatcher.

        Raises:
            EngineDeadError: the LLM is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineDeadError("the engine is closed. Make a new LLM")
            self._waiting[stream.request_id] = (wake, loop)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run,
                    args=(weakref.ref(self), self._engine),
                    name="octavo-asyncio",
                    daemon=True,
                )
                self._thread.start()
        stream.subscribe(only_end=only_end)

    def forget(self, stream: _core.Stream) -> None:
        """Ends `watch`."""
        with self._lock:
            self._waiting.pop(stream.request_id, None)

    async def deltas(self, stream: _core.Stream) -> AsyncGenerator[_core.Delta, None]:
        """The deltas of one request. Ending the generator early, for whatever reason, cancels the request."""
        news = asyncio.Event()
        try:
            self.watch(stream, news.set, asyncio.get_running_loop())
            while True:
                # Cleared before the look: news that comes after it sets the event again.
                news.clear()
                while (delta := stream.poll()) is not None:
                    yield delta
                    if delta.finished:
                        return
                await news.wait()
        finally:
            self.forget(stream)
            stream.cancel()

    def wake(self, request_ids: list[int] | None) -> None:
        """Wakes who waits for these requests; None: for any."""
        with self._lock:
            ids = list(self._waiting) if request_ids is None else request_ids
            found = [self._waiting[i] for i in ids if i in self._waiting]
        by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for wake, loop in found:
            if loop is None:
                wake()
            else:
                by_loop.setdefault(loop, []).append(wake)
        for loop, wakes in by_loop.items():
            # One wake-up for all. A loop that was closed with requests open has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_call_all, wakes)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Ends the thread; requests that still wait are woken to find their last delta."""
        self._closed = True
        self.wake(None)


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _run(owner: weakref.ref[Dispatcher], engine: _core.Engine) -> None:
    while True:
        ids = engine.wait_ready(_WAIT)
        dispatcher = owner()
        if dispatcher is None:
            return
        if ids:
            dispatcher.wake(ids)
        if dispatcher.closed:
            dispatcher.wake(None)
            return
        del dispatcher
