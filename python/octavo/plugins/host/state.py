"""All that the host keeps of one plugin: its client, registry and breaker, and the schemas that were shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.plugins.forks import after_fork
from octavo.plugins.host.breaker import Breaker
from octavo.plugins.host.catalogue import Catalogue
from octavo.plugins.host.client import Budget, Client
from octavo.plugins.host.endpoint import Endpoint
from octavo.plugins.host.mcp_bridge import McpBridge
from octavo.plugins.host.outcome import Failure
from octavo.plugins.host.registry import SHOWN_WITHIN_S, Registry
from octavo.plugins.host.source import PluginSource
from octavo.plugins.steps import OutOfTimeError, time_limit

# Old schemas are kept for calls whose arguments were made under them.
_SHOWN = 512


class PluginState:
    """One registered plugin. Thread-safe."""

    def __init__(
        self, client: Client, registry: Registry, clock: Callable[[], float], bridge: McpBridge | None = None
    ) -> None:
        self.bridge = bridge
        self.client = client
        self.registry = registry
        self.breaker = Breaker(clock)
        self._reset()
        after_fork(self, PluginState._reset)
        self._shown: OrderedDict[tuple[str, str], Endpoint] = OrderedDict()
        self._last: dict[str, Endpoint] = {}
        self._closed = False

    def _reset(self) -> None:
        self._slots = threading.BoundedSemaphore(self.client.source.concurrency)
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    @property
    def source(self) -> PluginSource:
        return self.client.source

    def catalogue(self, budget: Budget) -> Catalogue:
        """What the plugin offers, to be shown. A plugin that fails again and again is not waited for.

        Raises:
            Failure: it cannot be read.
        """
        registry, kept = self.registry, self.registry.kept
        if kept is not None and registry.fresh:
            return kept
        wait = self.breaker.blocked_for()
        if wait is not None:
            if kept is not None and registry.guarded:
                return kept
            raise self.blocked(wait)
        try:
            with time_limit(budget.left):
                found = registry.get(budget)
                if not registry.guarded:
                    found = registry.revalidate(budget, SHOWN_WITHIN_S)
        except OutOfTimeError:
            self.breaker.failed()
            raise self.late() from None
        except BaseException:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return found

    def late(self) -> Failure:
        """The failure of a call whose time was over while the plugin's document or a value was read."""
        detail = f"what the plugin {self.client.name!r} sent took too long to read: raise timeout="
        if self.source.operations is None:
            detail += ", or name the operations that are needed, operations=[...]"
        return Failure("timeout", detail)

    def blocked(self, wait: float) -> Failure:
        """The failure of a call while the circuit is open."""
        detail = f"the plugin {self.client.name!r} failed again and again: no call goes to it for {wait:.1f} s"
        return Failure("unavailable", detail, retry_after=wait)

    def show(self, endpoint: Endpoint) -> None:
        """Keeps the schema that a model or caller is about to see."""
        with self._lock:
            self._last[endpoint.id] = endpoint
            self._shown[endpoint.id, endpoint.digest] = endpoint
            self._shown.move_to_end((endpoint.id, endpoint.digest))
            while len(self._shown) > _SHOWN:
                self._shown.popitem(last=False)

    def shown(self, operation: str, digest: str | None) -> Endpoint | None:
        """The operation as it was shown under a digest; without one, as it was last shown."""
        with self._lock:
            return self._last.get(operation) if digest is None else self._shown.get((operation, digest))

    def enter(self, budget: Budget) -> None:
        """Takes one of the plugin's slots: a slow plugin holds no more threads than these.

        Raises:
            Failure: `unavailable`: none came free in time.
        """
        if self._slots.acquire(blocking=False):
            return
        if not self._slots.acquire(timeout=min(budget.left(), threading.TIMEOUT_MAX)):
            raise self.busy()

    def busy(self) -> Failure:
        """The failure of a call that got no slot in time."""
        detail = f"all {self.source.concurrency} calls of the plugin {self.client.name!r} were busy in this time"
        return Failure("unavailable", detail)

    def leave(self) -> None:
        self._slots.release()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Runs a function on a thread of the plugin's own: a slow plugin blocks no other.

        Raises:
            InvalidRequestError: the host is closed.
        """
        with self._lock:
            if self._closed:
                raise InvalidRequestError("the host is closed: make a new one")
            if self._executor is None:
                name = f"octavo-plugin-{self.client.name}"
                self._executor = ThreadPoolExecutor(self.source.concurrency, thread_name_prefix=name)
            return self._executor.submit(function, *arguments)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        if self.bridge is not None:
            self.bridge.close()
