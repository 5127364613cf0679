"""Idempotency keys that the processes of a plugin share."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import stat
from pathlib import Path

import pytest
from octavo.errors import InvalidRequestError
from octavo.plugins import ProblemError, Response, SqliteStore


def _count_first(path: Path, barrier: object, results: object) -> None:
    store = SqliteStore(path)
    barrier.wait(60)  # type: ignore[attr-defined]
    try:
        first = store.begin("key", "f") is None
    except ProblemError:
        first = False
    results.put(first)  # type: ignore[attr-defined]


def test_of_several_processes_one_runs_the_request(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "keys", barrier, results)
    processes = [context.Process(target=_count_first, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        process.close()
    assert sorted(found) == [False, False, True]
    results.close()
    results.join_thread()


def test_the_file_is_locked_before_it_is_read(tmp_path: Path) -> None:
    """Else two processes could both read that a key is free."""
    locked: list[bool] = []

    def clock() -> float:
        with contextlib.closing(sqlite3.connect(tmp_path / "keys", timeout=0, isolation_level=None)) as other:
            try:
                other.execute("begin immediate")
                locked.append(False)
            except sqlite3.OperationalError:
                locked.append(True)
        return 0.0

    SqliteStore(tmp_path / "keys", clock=clock).begin("k", "f")
    assert locked == [True]


def test_an_answer_is_kept_for_its_time(tmp_path: Path) -> None:
    now = [0.0]
    answer = Response(200, {"content-type": "application/json"}, b'{"result": "\xc3\xa4"}')
    store = SqliteStore(tmp_path / "keys", seconds=10, clock=lambda: now[0])
    other = SqliteStore(tmp_path / "keys", seconds=10, clock=lambda: now[0])
    assert store.begin("k", "f") is None
    with pytest.raises(ProblemError, match="still runs"):
        other.begin("k", "f")
    now[0] = 5.0
    store.finish("k", answer)
    assert other.begin("k", "f") == answer
    with pytest.raises(ProblemError, match="other arguments"):
        other.begin("k", "g")
    now[0] = 15.0
    assert other.begin("k", "g") is None
    other.finish("k", None)
    assert store.begin("k", "h") is None
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_the_oldest_answers_go_first(tmp_path: Path) -> None:
    now = [0.0]
    store = SqliteStore(tmp_path / "keys", max_entries=2, clock=lambda: now[0])
    store.begin("running", "f")
    for i, key in enumerate("abc"):
        now[0] = float(i)
        store.begin(key, "f")
        store.finish(key, Response(200, {}, b""))
    assert store.begin("c", "f") is not None
    assert store.begin("b", "f") is not None
    assert store.begin("a", "f") is None
    with pytest.raises(ProblemError, match="still runs"):
        store.begin("running", "f")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot hold idempotency keys"):
        SqliteStore(tmp_path / "no" / "keys")
    (tmp_path / "text").write_text("not a database, but long enough to be read as one " * 30)
    with pytest.raises(InvalidRequestError, match="cannot hold idempotency keys"):
        SqliteStore(tmp_path / "text")
