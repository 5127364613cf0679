"""Threads that run operations: a caller can stop waiting for them, and none of them keeps the process alive."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from octavo.plugins.forks import after_fork

_Job = tuple[Future[Any], Callable[[], Any]]


class Workers:
    """A pool of daemon threads, and one event loop on a thread of its own. Both start when they are first used."""

    def __init__(self) -> None:
        self._reset()
        # A fork (gunicorn's preload) copies no threads: the child starts its own.
        after_fork(self, Workers._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs `function` on a thread, in the context (contextvars) of the caller."""
        future: Future[Any] = Future()
        context = contextvars.copy_context()
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                thread = threading.Thread(target=self._work, args=(self._jobs,), name="octavo-plugin", daemon=True)
                thread.start()
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            self._jobs.put((future, lambda: context.run(function)))
        return future

    def submit_async(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Runs a coroutine on the loop's thread. Cancelling the future cancels it."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(target=_run_loop, args=(self._loop,), daemon=True)
                self._loop_thread.name = "octavo-plugin-loop"
                self._loop_thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, seconds: float = 5.0) -> None:
        """Ends the threads. One that is in an operation is waited for up to `seconds`, then left.

        A later call starts new threads.
        """
        with self._lock:
            threads, self._threads, self._idle = self._threads, [], 0
            # A thread that is left counts as idle for its own queue alone.
            jobs, self._jobs = self._jobs, queue.SimpleQueue()
            loop, self._loop = self._loop, None
        for _ in threads:
            jobs.put(None)
        if loop is not None and self._loop_thread is not None:
            asyncio.run_coroutine_threadsafe(_stop(loop, seconds), loop)
            threads.append(self._loop_thread)
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            future, function = job
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del job, future, function
            with self._lock:
                if jobs is self._jobs:
                    self._idle += 1


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            # Their callers wait for them.
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _stop(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Stops the loop when its tasks have ended, or after `seconds`."""
    running = asyncio.all_tasks(loop) - {asyncio.current_task()}
    if running:
        await asyncio.wait(running, timeout=seconds)
    loop.stop()
