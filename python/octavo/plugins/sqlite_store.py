"""Idempotency keys in a file, for the processes of one plugin on one machine (gunicorn's workers)."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import InvalidRequestError
from octavo.plugins.exchange import Response
from octavo.plugins.idempotency import (
    KEPT_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_BYTES,
    MAX_ENTRIES,
    in_progress,
    not_kept,
    reused,
)
from octavo.plugins.problems import ProblemError

log = logging.getLogger("octavo.plugins")

_BUSY_SECONDS = 5.0
# Old rows are removed once in so many answers, not at each.
_PRUNE_EVERY = 64
_SCHEMA = (
    """create table if not exists answers (
    key text primary key, fingerprint text not null, expires real not null, status integer, headers text, body blob)""",
    "create index if not exists answers_by_time on answers (expires)",
)
# The oldest keys above the number of entries. Requests that still run keep theirs.
_DROP_KEYS = """delete from answers where key in (select key from answers where status is not null
    order by expires desc limit -1 offset ?)"""
# The oldest answers above the number of bytes. Their keys stay.
_DROP_BODIES = """update answers set headers = null, body = null where key in (select key from (
    select key, sum(length(body)) over (order by expires desc, key) as total from answers where body is not null)
    where total > ?)"""


class SqliteStore:
    """Keeps keys and answers in a SQLite file.

    The last `max_entries` keys are kept for `seconds`; keys are stored as hashes. Their answers have about `max_bytes`
    together, and at most `MAX_ANSWER_BYTES` each. An answer that is dropped leaves its key: its request does not run
    again. A request whose process died leaves its key in progress for `seconds`: whether it had its effect is unknown.
    The last keys before a power failure may be lost, those before the end of a process are not.

    Args:
        path: a file on a local disk; processes must share it, thus `:memory:` is none.

    Raises:
        InvalidRequestError: the file cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        seconds: float = KEPT_SECONDS,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if str(path) == ":memory:":
            raise InvalidRequestError(
                "path is ':memory:', which no two processes share: name a file, or leave idempotency out"
            )
        self._path = Path(path)
        self._seconds, self._max_entries, self._clock = seconds, max_entries, clock
        self._max_bytes, self._largest = max_bytes, min(max_bytes, MAX_ANSWER_BYTES)
        self._prune_every = max(1, min(_PRUNE_EVERY, max_entries // 16))
        # What this process has written since it last removed old rows.
        self._answers, self._bytes = 0, 0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        try:
            with self._database():
                self._path.chmod(0o600)
        except (OSError, sqlite3.Error) as error:
            self._close()
            raise InvalidRequestError(
                f"{self._path} cannot hold idempotency keys: {error}. Name a file in a folder that can be written"
            ) from None
        if hasattr(os, "register_at_fork"):
            # No connection crosses a fork: each process opens its own.
            this = weakref.ref(self)
            os.register_at_fork(
                before=lambda: _before_fork(this()),
                after_in_parent=lambda: _after_fork(this()),
                after_in_child=lambda: _after_fork(this()),
            )

    def begin(self, key: str, fingerprint: str) -> Response | None:
        """As `IdempotencyStore.begin`."""
        with self._available() as database:
            now = self._clock()
            row = database.execute(
                "select fingerprint, status, headers, body from answers where key = ? and expires > ?", (key, now)
            ).fetchone()
            if row is None:
                database.execute(
                    "insert or replace into answers (key, fingerprint, expires) values (?, ?, ?)",
                    (key, fingerprint, now + self._seconds),
                )
                return None
        if row[0] != fingerprint:
            raise reused()
        if row[1] is None:
            raise in_progress()
        if row[3] is None:
            raise not_kept()
        return Response(row[1], json.loads(row[2]), row[3])

    def finish(self, key: str, response: Response | None) -> None:
        """As `IdempotencyStore.finish`."""
        with self._available() as database:
            if response is None:
                database.execute("delete from answers where key = ?", (key,))
                return
            kept = len(response.body) <= self._largest
            values = (json.dumps(dict(response.headers)), response.body) if kept else (None, None)
            database.execute(
                "update answers set status = ?, headers = ?, body = ?, expires = ? where key = ?",
                (response.status, *values, self._clock() + self._seconds, key),
            )
            self._answers += 1
            self._bytes += len(response.body) if kept else 0
            if self._answers >= self._prune_every or self._bytes > self._max_bytes // 8:
                self._prune(database)

    def _prune(self, database: sqlite3.Connection) -> None:
        database.execute("delete from answers where expires <= ?", (self._clock(),))
        database.execute(_DROP_KEYS, (self._max_entries,))
        database.execute(_DROP_BODIES, (self._max_bytes,))
        self._answers, self._bytes = 0, 0

    @contextmanager
    def _available(self) -> Iterator[sqlite3.Connection]:
        """As `_database`; a file that is locked or damaged is a typed problem, after which nothing runs."""
        try:
            with self._database() as database:
                yield database
        except (OSError, sqlite3.Error) as error:
            words = f"the store of idempotency keys cannot be used ({type(error).__name__}): retry later"
            raise ProblemError("unavailable", words, retry_after=1) from error

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        if not self._lock.acquire(timeout=_BUSY_SECONDS):
            raise sqlite3.OperationalError("another thread holds the file")
        try:
            database = self._open()
            # The lock is taken before the first read: two processes never both see that a key is free.
            database.execute("begin immediate")
            with database:
                yield database
        finally:
            self._lock.release()

    def _open(self) -> sqlite3.Connection:
        """The connection of this process; a new one if there is none, or if the file is another one by now."""
        found = _identity(self._path)
        if self._connection is not None and found == self._file:
            return self._connection
        if self._connection is not None:
            log.warning("%s was replaced: the idempotency keys in it are lost", self._path)
        self._close()
        if found is None:
            # Answers are the plugin's data. The files beside it get the same mode from SQLite.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database)
        except BaseException:
            database.close()
            raise
        self._connection, self._file = database, _identity(self._path)
        return database

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        if hasattr(self, "_connection"):
            self._close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has the path; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _prepare(database: sqlite3.Connection) -> None:
    """The table, and a journal that readers and writers do not wait for. Processes may do this at once."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            # This one change does not wait by itself for other connections.
            database.execute("pragma journal_mode = wal")
            break
        except sqlite3.OperationalError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.01)
    database.execute("pragma synchronous = normal")
    for statement in _SCHEMA:
        database.execute(statement)


def _before_fork(store: SqliteStore | None) -> None:
    if store is not None:
        store._lock.acquire()
        store._close()


def _after_fork(store: SqliteStore | None) -> None:
    if store is not None and store._lock.locked():
        store._lock.release()
