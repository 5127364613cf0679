"""Runs operations: a time limit, a limit of calls at once, and no exception that leaves as itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.plugins.convert import Endpoint
from octavo.plugins.exchange import Request, Response
from octavo.plugins.idempotency import Claim
from octavo.plugins.problems import Problem, ProblemError
from octavo.plugins.typed import InvalidResult
from octavo.plugins.workers import Workers

log = logging.getLogger("octavo.plugins")


@dataclass(frozen=True)
class Done:
    """An operation's result, as JSON, and what the caller should know about the call."""

    result: Any
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A call that is ready to run.

    Attributes:
        arguments: the function's keyword arguments.
        respond: makes the response from the result or the problem.
        claim: on the idempotency key. It gets the response when the operation has ended, even if no client waits any
            more. None: the request has no key.
        detached: the operation goes on after its time limit, because it may have had an effect.
    """

    endpoint: Endpoint
    arguments: dict[str, Any]
    request: Request
    respond: Callable[[Done | Problem], Response]
    warnings: tuple[str, ...] = ()
    claim: Claim | None = None
    detached: bool = False

    def call(self) -> Any:
        """Calls the function: its result, or a coroutine."""
        extra = {}
        if self.endpoint.operation.request_parameter is not None:
            extra[self.endpoint.operation.request_parameter] = self.request
        return self.endpoint.operation.function(**self.arguments, **extra)

    def done(self, value: Any) -> Response:
        return self.respond(Done(self.endpoint.result(value), self.warnings))

    def failed(self, error: BaseException) -> Response:
        """The response for an exception. Its text may hold secrets: it goes to the log alone."""
        if isinstance(error, ProblemError):
            return self.respond(error.problem)
        name = self.endpoint.entry.id
        if isinstance(error, InvalidResult):
            log.error("%s", error)
            return self.respond(Problem("internal", f"{error}: this is a fault of the plugin"))
        log.error("operation %s failed", name, exc_info=error)
        return self.respond(Problem("internal", f"{name} failed: the plugin's log has the cause"))


class Runner:
    """Runs jobs, for callers on threads and for callers on an event loop."""

    def __init__(self, timeout_s: float, concurrency: int) -> None:
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._workers = Workers()
        self._lock = threading.Lock()
        self._running = 0
        # The event loop keeps no strong reference to a task.
        self._tasks: set[asyncio.Task[Response]] = set()

    def run(self, job: Job) -> Response:
        """Runs a job from a thread."""
        kept = self._begin(job)
        if kept is not None:
            return kept
        if not self._enter():
            return self._busy(job)
        is_async = job.endpoint.operation.is_async
        future = self._workers.submit_async(self._arun(job)) if is_async else self._submit(job)
        try:
            response: Response = future.result(self._timeout_s)
            return response
        except concurrent.futures.TimeoutError:
            if not job.detached:
                future.cancel()
            return self._late(job)
        except concurrent.futures.CancelledError:
            return self._closed(job)

    async def arun(self, job: Job) -> Response:
        """Runs a job from an event loop. An async operation runs on this loop, a sync one on a thread."""
        kept = await self._abegin(job)
        if kept is not None:
            return kept
        if not self._enter():
            blocks = job.claim is not None and job.claim.blocks
            return await asyncio.to_thread(self._busy, job) if blocks else self._busy(job)
        if not job.endpoint.operation.is_async:
            future = asyncio.wrap_future(self._submit(job))
            done, _ = await asyncio.wait({future}, timeout=self._timeout_s)
            return future.result() if done else self._late(job)
        task = asyncio.ensure_future(self._arun(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            # The client has disconnected.
            if not job.detached:
                task.cancel()
            raise
        if done:
            return task.result()
        if not job.detached:
            task.cancel()
        return self._late(job)

    def close(self) -> None:
        """Ends the threads; operations that still run are waited for a few seconds."""
        self._workers.close()

    def _submit(self, job: Job) -> concurrent.futures.Future[Response]:
        try:
            return self._workers.submit(functools.partial(self._run, job))
        except RuntimeError as error:  # no further thread can start
            future: concurrent.futures.Future[Response] = concurrent.futures.Future()
            log.error("no thread for %s: %s", job.endpoint.entry.id, error)
            words = "the plugin has no thread left: retry later"
            future.set_result(self._end(job, job.respond(Problem("unavailable", words, retry_after=1))))
            return future

    def _begin(self, job: Job) -> Response | None:
        """Claims the key. The answer to a request that may not run; None: it may."""
        if job.claim is None:
            return None
        try:
            return job.claim.begin()
        except Exception as error:
            return job.failed(error)

    async def _abegin(self, job: Job) -> Response | None:
        if job.claim is None or not job.claim.blocks:
            return self._begin(job)
        claimed = asyncio.ensure_future(asyncio.to_thread(self._begin, job))
        try:
            return await asyncio.shield(claimed)
        except asyncio.CancelledError:
            # The client has disconnected: the key is free again, for nothing runs.
            if await claimed is None:
                await asyncio.to_thread(self._finish, job, None)
            raise

    def _run(self, job: Job) -> Response:
        try:
            response = job.done(job.call())
        except BaseException as error:
            response = job.failed(error)
        return self._end(job, response)

    async def _arun(self, job: Job) -> Response:
        try:
            response = job.done(await job.call())
        except asyncio.CancelledError:
            self._leave()
            if not job.endpoint.entry.consequential:
                self._finish(job, None)
            # Else it may have had its effect: the key stays in progress.
            raise
        except BaseException as error:
            response = job.failed(error)
        if job.claim is None or not job.claim.blocks:
            return self._end(job, response)
        self._leave()
        await asyncio.to_thread(self._finish, job, response)
        return response

    def _end(self, job: Job, response: Response) -> Response:
        self._leave()
        self._finish(job, response)
        return response

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1

    def _finish(self, job: Job, response: Response | None) -> None:
        """Keeps the answer under the job's key. None: the operation did not run."""
        if job.claim is None:
            return
        # 429 and 503 are raised before an effect: the same key may try again.
        kept = response is not None and response.status not in (429, 503)
        try:
            job.claim.finish(response if kept else None)
        except Exception:
            # The key stays in progress: a retry is refused, and nothing runs twice.
            log.exception("the answer of %s could not be kept", job.endpoint.entry.id)

    def _enter(self) -> bool:
        with self._lock:
            if self._running >= self._concurrency:
                return False
            self._running += 1
            return True

    def _busy(self, job: Job) -> Response:
        self._finish(job, None)
        words = f"the plugin runs {self._concurrency} operations at once, and all are in use: retry later"
        return job.respond(Problem("unavailable", words, retry_after=1))

    def _late(self, job: Job) -> Response:
        words = f"{job.endpoint.entry.id} took longer than {self._timeout_s:g} s"
        return job.respond(Problem("timeout", words + (", and may still have its effect" if job.detached else "")))

    def _closed(self, job: Job) -> Response:
        words = f"the plugin was closed while {job.endpoint.entry.id} ran"
        return job.respond(Problem("timeout", words + (", and may still have its effect" if job.detached else "")))
