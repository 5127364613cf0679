"""Changes of the adapters of a server: one runs, some wait, more are refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from octavo.server.errors import ApiError


class Changes:
    """Turns of changes.

    Args:
        most: changes that run or wait at once. Each of them holds a thread.
    """

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """The turn of one change; waits for those before it.

        Raises:
            ApiError: 429, too many wait.
        """
        if not self._places.acquire(blocking=False):
            message = "too many adapters are loaded or unloaded at once: try again"
            raise ApiError(429, message, code="queue_full", headers={"retry-after": "1"})
        try:
            with self._turn:
                yield
        finally:
            self._places.release()
