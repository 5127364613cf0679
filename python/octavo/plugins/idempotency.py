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
from octavo.plugins.protocol import REPLAY_HEADER

LONGEST_KEY = 200
# Visible ASCII, with or without quotes around it.
KEY_PATTERN = f'^("[!#-~]{{1,{LONGEST_KEY}}}"|[!#-~]{{1,{LONGEST_KEY}}})$'
KEPT_SECONDS = 3600.0
MAX_ENTRIES = 4096
MAX_BYTES = 16 << 20
# The body of a larger answer is not kept, only that its request ran.
MAX_ANSWER_BYTES = 1 << 20


class IdempotencyStore(Protocol):
    """Where answers are kept. Several processes of one plugin need a store that they share.

    Its methods are called from several threads at once; from an event loop only when it ends.
    """

    def begin(self, key: str, fingerprint: str) -> Response | None:
        """The answer that the key has; None: there is none, the caller runs the request and ends it with `finish`.

        Raises:
            ProblemError: idempotency-conflict: the first request still runs. idempotency-key-reused: the key had
                another fingerprint. answer-not-kept: the request ran, and its answer is gone. unavailable: the store
                cannot say; nothing ran.
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


def not_kept() -> ProblemError:
    return ProblemError(
        "answer-not-kept",
        "the request with this Idempotency-Key ran before, and its answer is not kept any more: it does not run again",
    )


@dataclass(frozen=True)
class Claim:
    """A request's hold on its key, from before its operation runs until its answer is kept."""

    store: IdempotencyStore
    key: str
    fingerprint: str

    @property
    def blocks(self) -> bool:
        """Whether the store may wait for a disk: an event loop must not."""
        return not isinstance(self.store, MemoryStore)

    def begin(self) -> Response | None:
        """The answer to a repeated request; None: the request runs now. Raises as `IdempotencyStore.begin`."""
        found = self.store.begin(self.key, self.fingerprint)
        return None if found is None else found.with_headers({REPLAY_HEADER.lower(): "true"})

    def finish(self, response: Response | None) -> None:
        """As `IdempotencyStore.finish`."""
        self.store.finish(self.key, response)


@dataclass
class _Entry:
    """`response` is None while the request runs, and again when its answer is not kept any more."""

    fingerprint: str
    expires: float
    has_run: bool = False
    response: Response | None = None


class MemoryStore:
    """Keeps keys and answers in memory.

    The last `max_entries` keys are kept for `seconds`. Their answers have at most `max_bytes` together, and
    `MAX_ANSWER_BYTES` each. An answer that is dropped leaves its key: its request does not run again.
    """

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
        # The keys whose answers are kept, the oldest first.
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._bytes = 0

    def begin(self, key: str, fingerprint: str) -> Response | None:
        with self._lock:
            now = self._clock()
            entry = self._entries.get(key)
            if entry is not None and entry.has_run and entry.expires <= now:
                self._drop(key)
                entry = None
            if entry is None:
                self._entries[key] = _Entry(fingerprint, now + self._seconds)
                return None
            if entry.fingerprint != fingerprint:
                raise reused()
            if not entry.has_run:
                raise in_progress()
            if entry.response is None:
                raise not_kept()
            return entry.response

    def finish(self, key: str, response: Response | None) -> None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            if response is None:
                self._drop(key)
                return
            entry.has_run, entry.expires = True, self._clock() + self._seconds
            self._entries.move_to_end(key)
            if len(response.body) <= min(self._max_bytes, MAX_ANSWER_BYTES):
                entry.response = response
                self._answered[key] = None
                self._bytes += len(response.body)
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._answered)))
            while len(self._entries) > self._max_entries:
                # The oldest key goes. Requests that still run keep theirs.
                self._drop(next(k for k, e in self._entries.items() if e.has_run))

    def _forget(self, key: str) -> None:
        """Drops the answer, and keeps the key."""
        entry = self._entries[key]
        if entry.response is not None:
            self._bytes -= len(entry.response.body)
            entry.response = None
            del self._answered[key]

    def _drop(self, key: str) -> None:
        self._forget(key)
        del self._entries[key]
