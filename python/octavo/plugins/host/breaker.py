"""A circuit breaker: a plugin that fails again and again is left alone for a while, so its callers fail at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from octavo.plugins.forks import after_fork

FAILURES = 5
OPEN_SECONDS = 15.0


class Breaker:
    """Closed: calls pass. Open: calls fail at once. After a while one call is let through as a probe.

    Only failures of the plugin as a whole count: no connection, a timeout, a 5xx that is not the plugin's own answer.
    Thread-safe.

    Args:
        clock: the time in seconds; never goes back.
        failures: consecutive failures that open the circuit.
        open_seconds: how long it stays open.
    """

    def __init__(
        self, clock: Callable[[], float], failures: int = FAILURES, open_seconds: float = OPEN_SECONDS
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._open_seconds = open_seconds
        self._lock = threading.Lock()
        after_fork(self, lambda this: setattr(this, "_lock", threading.Lock()))
        self._count = 0
        self._opened: float | None = None
        self._probe: float | None = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        with self._lock:
            if self._opened is None:
                return "closed"
            return "open" if self._clock() < self._opened + self._open_seconds else "half-open"

    def blocked_for(self) -> float | None:
        """Seconds for which a call must wait; None: it may go. A call that may go must report how it ended."""
        with self._lock:
            now = self._clock()
            if self._opened is None:
                return None
            left = self._opened + self._open_seconds - now
            if left > 0:
                return left
            # A probe that never reported, because its thread died, is forgotten after the same time.
            if self._probe is not None and now < self._probe + self._open_seconds:
                return self._probe + self._open_seconds - now
            self._probe = now
            return None

    def succeeded(self) -> None:
        """The plugin answered."""
        with self._lock:
            self._count, self._opened, self._probe = 0, None, None

    def unknown(self) -> None:
        """The call ended before anything was sent: it says nothing of the plugin. The next call may be the probe."""
        with self._lock:
            self._probe = None

    def failed(self) -> None:
        """The plugin did not answer, or not as itself."""
        with self._lock:
            self._count += 1
            if self._count >= self._failures or self._probe is not None:
                self._opened, self._probe = self._clock(), None
