"""Idempotency keys that the processes of a plugin share."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import weather_plugin
from octavo.errors import InvalidRequestError
from octavo.plugins import Plugin, ProblemError, Request, Response, SqliteStore, sqlite_store


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


def test_dropped_answers_leave_their_keys(tmp_path: Path) -> None:
    now = [0.0]
    store = SqliteStore(tmp_path / "keys", seconds=10, max_bytes=100, max_entries=16, clock=lambda: now[0])
    for i, key in enumerate("abcd"):
        now[0] = float(i)
        assert store.begin(key, "f") is None
        store.finish(key, Response(200, {}, b"x" * (200 if key == "d" else 40)))
    assert store.begin("c", "f") == store.begin("b", "f") == Response(200, {}, b"x" * 40)
    for key in "ad":
        for _ in range(2):
            with pytest.raises(ProblemError, match="not kept any more"):
                store.begin(key, "f")
    with pytest.raises(ProblemError, match="other arguments"):
        store.begin("a", "g")
    now[0] = 10.0
    assert store.begin("a", "g") is None


def test_the_file_stays_small(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "keys", max_bytes=1 << 20)
    for i in range(100):
        store.begin(str(i), "f")
        store.finish(str(i), Response(200, {}, b"x" * (100 << 10)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8 << 20
    with contextlib.closing(sqlite3.connect(tmp_path / "keys")) as other:
        assert other.execute("select count(*) from answers").fetchone() == (100,)


def test_old_rows_are_found_without_a_scan(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "keys")
    with contextlib.closing(sqlite3.connect(tmp_path / "keys")) as other:
        plan = other.execute("explain query plan delete from answers where expires <= 1").fetchall()
        modes = other.execute("pragma journal_mode").fetchall()
    assert "INDEX answers_by_time" in str(plan)
    assert modes == [("wal",)]


def test_a_file_of_an_earlier_version_is_used(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "keys")) as other, other:
        other.execute(
            "create table answers (key text primary key, fingerprint text not null, expires real not null,"
            " status integer, headers text, body blob)"
        )
        other.execute("insert into answers values ('k', 'f', 100, 200, '{}', x'61')")
    assert SqliteStore(tmp_path / "keys", clock=lambda: 0.0).begin("k", "f") == Response(200, {}, b"a")


CALL = Request("POST", "v3/invoke/send", {"Idempotency-Key": "k"}, b'{"arguments": {"to": "a", "text": "b"}}')


def test_a_locked_file_is_a_typed_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_BUSY_SECONDS", 0.05)
    with weather_plugin.build(idempotency=SqliteStore(tmp_path / "keys")) as plugin:
        with contextlib.closing(sqlite3.connect(tmp_path / "keys", isolation_level=None)) as other:
            other.execute("begin immediate")
            for answer in (plugin.handle(CALL), asyncio.run(plugin.ahandle(CALL))):
                assert answer.status == 503
                assert answer.json()["type"] == "urn:octavo-plugin:unavailable"
                assert (answer.headers["retry-after"], "octavo-digest" in answer.headers) == ("1", True)
                assert str(tmp_path) not in answer.body.decode()
        assert plugin.sent == []  # type: ignore[attr-defined]
        assert plugin.handle(CALL).json()["result"] == 1


def test_an_event_loop_goes_on_while_the_file_is_locked(tmp_path: Path) -> None:
    async def run(plugin: Plugin, other: sqlite3.Connection) -> Response:
        task = asyncio.ensure_future(plugin.ahandle(CALL))
        for _ in range(20):
            await asyncio.sleep(0.005)
        # Only a loop that goes on comes here before the store gives up.
        assert not task.done()
        other.execute("rollback")
        return await task

    with (
        weather_plugin.build(idempotency=SqliteStore(tmp_path / "keys")) as plugin,
        contextlib.closing(sqlite3.connect(tmp_path / "keys", isolation_level=None)) as other,
    ):
        other.execute("begin immediate")
        assert asyncio.run(run(plugin, other)).status == 200
        assert asyncio.run(plugin.ahandle(CALL)).headers["idempotent-replay"] == "true"


def test_a_client_that_leaves_before_its_call_takes_no_key(tmp_path: Path) -> None:
    async def run(plugin: Plugin, other: sqlite3.Connection) -> None:
        task = asyncio.ensure_future(plugin.ahandle(CALL))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        other.execute("rollback")
        with pytest.raises(asyncio.CancelledError):
            await task

    with (
        weather_plugin.build(idempotency=SqliteStore(tmp_path / "keys")) as plugin,
        contextlib.closing(sqlite3.connect(tmp_path / "keys", isolation_level=None)) as other,
    ):
        other.execute("begin immediate")
        asyncio.run(run(plugin, other))
        assert plugin.handle(CALL).json()["result"] == 1


def test_a_file_that_was_replaced_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore(tmp_path / "keys")
    store.begin("k", "f")
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.begin("k", "f") is None
    assert "was replaced" in caplog.text
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    with pytest.raises(ProblemError, match="still runs"):
        SqliteStore(tmp_path / "keys").begin("k", "f")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_opens_its_own_connection(tmp_path: Path) -> None:
    """As gunicorn's workers after a preload."""
    code = f"""
import os
from octavo.plugins import ProblemError, Response, SqliteStore
store = SqliteStore({str(tmp_path / "keys")!r})
assert store.begin("parent", "f") is None
child = os.fork()
if child == 0:
    assert store._connection is None
    assert store.begin("child", "f") is None
    store.finish("child", Response(200, {{}}, b"a"))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), store.begin("child", "f").body)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["0", "b'a'"], done.stderr


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot hold idempotency keys"):
        SqliteStore(tmp_path / "no" / "keys")
    (tmp_path / "text").write_text("not a database, but long enough to be read as one " * 30)
    with pytest.raises(InvalidRequestError, match="cannot hold idempotency keys"):
        SqliteStore(tmp_path / "text")
    with pytest.raises(InvalidRequestError, match="no two processes share"):
        SqliteStore(":memory:")
    with pytest.raises(InvalidRequestError, match="cannot hold idempotency keys"):
        SqliteStore(tmp_path)
