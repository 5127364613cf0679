"""Idempotency keys in a file, for the processes of one plugin on one machine (gunicorn's workers)."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from octavo.errors import InvalidRequestError
from octavo.plugins.exchange import Response
from octavo.plugins.idempotency import KEPT_SECONDS, MAX_ENTRIES, in_progress, reused

_BUSY_SECONDS = 5.0
_TABLE = """create table if not exists answers (
    key text primary key, fingerprint text not null, expires real not null, status integer, headers text, body blob)"""


class SqliteStore:
    """Keeps answers in a SQLite file: the last `max_entries`, for `seconds`. Keys are stored as hashes.

    A request whose process died leaves its key in progress for `seconds`: whether it had its effect is unknown.

    Raises:
        InvalidRequestError: the file cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        seconds: float = KEPT_SECONDS,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        self._seconds, self._max_entries, self._clock = seconds, max_entries, clock
        try:
            with self._database() as database:
                database.execute(_TABLE)
        except sqlite3.Error as error:
            raise InvalidRequestError(
                f"{self._path} cannot hold idempotency keys: {error}. Name a file in a folder that can be written"
            ) from None
        # Answers are the plugin's data.
        self._path.chmod(0o600)

    def begin(self, key: str, fingerprint: str) -> Response | None:
        """As `IdempotencyStore.begin`."""
        with self._database() as database:
            now = self._clock()
            database.execute("delete from answers where expires <= ?", (now,))
            row = database.execute(
                "select fingerprint, status, headers, body from answers where key = ?", (key,)
            ).fetchone()
            if row is None:
                database.execute(
                    "insert into answers (key, fingerprint, expires) values (?, ?, ?)",
                    (key, fingerprint, now + self._seconds),
                )
                return None
        if row[0] != fingerprint:
            raise reused()
        if row[1] is None:
            raise in_progress()
        return Response(row[1], json.loads(row[2]), row[3])

    def finish(self, key: str, response: Response | None) -> None:
        """As `IdempotencyStore.finish`."""
        with self._database() as database:
            if response is None:
                database.execute("delete from answers where key = ?", (key,))
                return
            values = (response.status, json.dumps(dict(response.headers)), response.body)
            database.execute(
                "update answers set status = ?, headers = ?, body = ?, expires = ? where key = ?",
                (*values, self._clock() + self._seconds, key),
            )
            database.execute(
                "delete from answers where key in (select key from answers where status is not null"
                " order by expires desc limit -1 offset ?)",
                (self._max_entries,),
            )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction. A connection of its own for each: connections may not cross threads and forks."""
        with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)) as database:
            # The lock is taken before the first read: two processes never both see that a key is free.
            database.execute("begin immediate")
            with database:
                yield database
