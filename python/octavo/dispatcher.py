"""Wake-ups without polling: one thread per LLM waits for outputs of all requests and wakes their event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.errors import EngineDeadError

if TYPE_CHECKING:
    from octavo import _core

# Maximum wait of the thread in seconds. After this time it checks whether its LLM still exists.
_WAIT = 0.2


class Dispatcher:
    """Calls a function when a request has output. Its thread starts with the first request and ends with the LLM."""

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        # Request id -> function to call, and the event loop to call it in.
        self._watched: dict[int, tuple[Callable[[], None], asyncio.AbstractEventLoop | None]] = {}
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
        """Calls `wake` whenever `stream` has output; with `only_end` only when the request has ended.

        Args:
            wake: must return quickly.
            loop: event loop that calls `wake`; None: the dispatcher's thread calls it.

        Raises:
            EngineDeadError: the LLM is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineDeadError("the engine is closed. Make a new LLM")
            self._watched[stream.request_id] = (wake, loop)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run,
                    args=(weakref.ref(self), self._engine),
                    name="octavo-asyncio",
                    daemon=True,
                )
                self._thread.start()
        stream.subscribe(only_end=only_end)

    def unwatch(self, stream: _core.Stream) -> None:
        """Ends `watch`."""
        with self._lock:
            self._watched.pop(stream.request_id, None)

    def wake(self, request_ids: list[int] | None) -> None:
        """Wakes the watchers of these requests; None: of all requests."""
        with self._lock:
            ids = list(self._watched) if request_ids is None else request_ids
            found = [self._watched[i] for i in ids if i in self._watched]
        by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for wake, loop in found:
            if loop is None:
                wake()
            else:
                by_loop.setdefault(loop, []).append(wake)
        for loop, wakes in by_loop.items():
            # One wake-up per loop. A loop that was closed while requests were open has no watcher left.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_call_all, wakes)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Ends the thread. Wakes all watchers, which then read their last output."""
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
