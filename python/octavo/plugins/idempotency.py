"""Idempotency keys: a repeated request gets the answer of the first one, and the operation does not run again.

After draft-ietf-httpapi-idempotency-key-header. A store holds the answers.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from octavo.plugins.exchange import Response
from octavo.plugins.problems import ProblemError

LONGEST_KEY = 200
# Visible ASCII, with or without quotes around it.
KEY_PATTERN = f'^("[!#-~]{{1,{LONGEST_KEY}}}"|[!#-~]{{1,{LONGEST_KEY}}})$'
KEPT_SECONDS = 3600.0
MAX_ENTRIES = 4096
MAX_BYTES = 16 << 20


class IdempotencyStore(Protocol):
    """Where answers are kept. Several processes of one plugin need a store that they share."""

    def begin(self, key: str, fingerprint: str) -> Response | None:
        """The answer that the key has; None: there is none, the caller runs the request and ends it with `finish`.

        Raises:
            ProblemError: idempotency-conflict: the first request still runs. idempotency-key-reused: the key had
                another fingerprint.
        """

    def finish(self, key: str, response: Response | None) -> None:
        """Keeps the answer. None: the request did not happen, the key is free again."""


def read_key(header: str) -> str:
    """The key of an Idempotency-Key header: a quoted string (RFC 9651), or the same without quotes.

    Raises:
        ProblemError: malformed-request.
    """
    if not re.fullmatch(KEY_PATTERN, header.strip()):
        raise ProblemError(
            "malformed-request", f"Idempotency-Key must be 1 to {LONGEST_KEY} visible ASCII characters, best a UUID"
        )
    return header.strip().strip('"')


def scoped(key: str, credentials: str) -> str:
    """The key as a store gets it: clients with other credentials never share answers, and none are kept."""
    return hashlib.sha256(f"{key}\0{credentials}".encode("utf-8", "surrogatepass")).hexdigest()


def reused() -> ProblemError:
    return ProblemError(
        "idempotency-key-reused", "Idempotency-Key was sent with other arguments before: use a new key for a new call"
    )


def in_progress() -> ProblemError:
    return ProblemError(
        "idempotency-conflict", "the first request with this Idempotency-Key still runs: retry later", retry_after=1
    )


@dataclass
class _Entry:
    fingerprint: str
    expires: float
    response: Response | None = None


class MemoryStore:
    """Keeps answers in memory: the last `max_entries`, for `seconds`, in at most `max_bytes`."""

    def __init__(
        self,
        seconds: float = KEPT_SECONDS,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._max_entries, self._max_bytes, self._clock = seconds, max_entries, max_bytes, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def begin(self, key: str, fingerprint: str) -> Response | None:
        with self._lock:
            now = self._clock()
            entry = self._entries.get(key)
            if entry is not None and entry.response is not None and entry.expires <= now:
                self._drop(key)
                entry = None
            if entry is None:
                self._entries[key] = _Entry(fingerprint, now + self._seconds)
                return None
            if entry.fingerprint != fingerprint:
                raise reused()
            if entry.response is None:
                raise in_progress()
            return entry.response

    def finish(self, key: str, response: Response | None) -> None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            if response is None:
                self._drop(key)
                return
            entry.response, entry.expires = response, self._clock() + self._seconds
            self._bytes += len(response.body)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                # The oldest answer goes. Requests that still run keep their keys.
                self._drop(next(k for k, e in self._entries.items() if e.response is not None))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        if entry.response is not None:
            self._bytes -= len(entry.response.body)
