"""Time limits, calls at once, and idempotency keys."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import weather_plugin
from octavo.plugins import Limits, Plugin, ProblemError, Request, Response, SqliteStore
from octavo.plugins.idempotency import LONGEST_KEY, MemoryStore, read_key
from octavo.plugins.workers import Workers
from weather_plugin import sleep_until

SHORT = Limits(timeout_s=0.05)


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with weather_plugin.build() as found:
        yield found
        found.gate.set()  # type: ignore[attr-defined]


def request(operation: str, arguments: Any, **headers: str) -> Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("POST", f"v3/invoke/{operation}", fields, json.dumps({"arguments": arguments}).encode())


def kind(response: Response) -> tuple[int, str]:
    return response.status, response.json().get("type", "").removeprefix("urn:octavo-plugin:")


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
@pytest.mark.parametrize(("operation", "arguments"), [("fail", {"how": "wait"}), ("stall", {"seconds": 30.0})])
def test_an_operation_that_takes_too_long_is_a_timeout(operation: str, arguments: Any, is_async: bool) -> None:
    with weather_plugin.build(limits=SHORT) as plugin:
        call = request(operation, arguments)
        response = asyncio.run(plugin.ahandle(call)) if is_async else plugin.handle(call)
        assert kind(response) == (504, "timeout")
        assert "0.05 s" in response.json()["detail"]
        plugin.gate.set()  # type: ignore[attr-defined]
        # The plugin goes on.
        assert plugin.handle(request("get_forecast", {"city": "x"})).status in (200, 504)


def test_an_abandoned_async_operation_is_cancelled() -> None:
    with weather_plugin.build(limits=SHORT, concurrency=1) as plugin:
        assert kind(plugin.handle(request("stall", {"seconds": 30.0}))) == (504, "timeout")
        # Its place is free again: it did not wait for the 30 seconds.
        sleep_until(lambda: plugin.handle(request("send", {"to": "a", "text": "b"})).status == 200)
        assert ("stall", "woke") not in plugin.sent  # type: ignore[attr-defined]


def test_a_plugin_that_is_full_says_so(plugin: Plugin) -> None:
    with weather_plugin.build(concurrency=1) as full:
        first: list[Response] = []
        thread = threading.Thread(target=lambda: first.append(full.handle(request("fail", {"how": "wait"}))))
        thread.start()
        sleep_until(lambda: full._runner._running == 1)
        busy = full.handle(request("get_forecast", {"city": "x"}))
        assert kind(busy) == (503, "unavailable")
        assert busy.headers["retry-after"] == "1"
        full.gate.set()  # type: ignore[attr-defined]
        thread.join(20)
        assert first[0].status == 200
        assert full.handle(request("get_forecast", {"city": "x"})).status == 200


def test_a_repeated_request_runs_once(plugin: Plugin) -> None:
    first = plugin.handle(request("send", {"to": "a", "text": "b"}, idempotency_key='"k1"'))
    again = plugin.handle(request("send", {"text": "b", "to": "a"}, idempotency_key="k1"))
    assert plugin.sent == [("a", "b")]  # type: ignore[attr-defined]
    assert again.body == first.body
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    other = plugin.handle(request("send", {"to": "a", "text": "c"}, idempotency_key="k1"))
    assert kind(other) == (422, "idempotency-key-reused")
    # Another client's key is another key.
    plugin.handle(request("send", {"to": "a", "text": "c"}, idempotency_key="k1", authorization="Bearer x"))
    assert len(plugin.sent) == 2  # type: ignore[attr-defined]


def test_a_failure_is_kept_unless_nothing_happened(plugin: Plugin) -> None:
    broken = plugin.handle(request("fail", {"how": "x"}, idempotency_key="a"))
    again = plugin.handle(request("fail", {"how": "x"}, idempotency_key="a"))
    assert kind(broken) == kind(again) == (500, "internal")
    assert again.headers["idempotent-replay"] == "true"
    for _ in range(2):
        busy = plugin.handle(request("fail", {"how": "busy"}, idempotency_key="b"))
        assert kind(busy) == (503, "unavailable")
        assert "idempotent-replay" not in busy.headers
    # Arguments that do not fit take no key.
    assert kind(plugin.handle(request("send", {}, idempotency_key="c"))) == (422, "invalid-arguments")
    assert plugin.handle(request("send", {"to": "a", "text": "b"}, idempotency_key="c")).status == 200


def test_a_retry_after_a_timeout_gets_the_first_ones_result() -> None:
    with weather_plugin.build(limits=SHORT) as plugin:
        call = request("fail", {"how": "wait"}, idempotency_key="k")
        assert kind(plugin.handle(call)) == (504, "timeout")
        running = plugin.handle(call)
        assert kind(running) == (409, "idempotency-conflict")
        assert running.headers["retry-after"] == "1"
        plugin.gate.set()  # type: ignore[attr-defined]
        sleep_until(lambda: plugin.handle(call).status == 200)
        assert plugin.handle(call).json()["result"] == 1.0


@pytest.mark.parametrize("key", ["", '""', "x" * (LONGEST_KEY + 1), "é", "a\nb", "a b", 'a"b'])
def test_a_key_that_is_none_is_refused(plugin: Plugin, key: str) -> None:
    response = plugin.handle(request("send", {"to": "a", "text": "b"}, idempotency_key=key))
    assert kind(response) == (400, "malformed-request")
    assert plugin.sent == []  # type: ignore[attr-defined]
    assert read_key('"a"') == read_key(" a ") == "a"


def answer(size: int = 1) -> Response:
    return Response(200, {}, b"x" * size)


def test_the_store_forgets_by_time_number_and_bytes() -> None:
    now = [0.0]
    store = MemoryStore(seconds=10, max_entries=2, max_bytes=100, clock=lambda: now[0])
    assert store.begin("a", "f") is None
    with pytest.raises(ProblemError, match="still runs"):
        store.begin("a", "f")
    store.finish("a", answer())
    assert store.begin("a", "f") == answer()
    now[0] = 10.0
    assert store.begin("a", "other") is None  # it has expired
    store.finish("a", None)
    assert store.begin("a", "f") is None  # it did not happen
    # `a` still runs, thus it keeps its key; the answers go, the oldest first.
    for key in "bcd":
        store.begin(key, "f")
        store.finish(key, answer())
    assert store.begin("d", "f") == answer()
    assert store.begin("b", "f") is None
    store.finish("b", answer(200))
    with pytest.raises(ProblemError, match="not kept any more"):
        store.begin("b", "f")  # too large to be kept
    with pytest.raises(ProblemError, match="still runs"):
        store.begin("a", "f")
    store.finish("gone", answer())


def test_dropped_answers_leave_their_keys() -> None:
    now = [0.0]
    store = MemoryStore(seconds=10, max_bytes=100, clock=lambda: now[0])
    for key in "abc":
        assert store.begin(key, "f") is None
        store.finish(key, answer(40))
    assert store.begin("c", "f") == store.begin("b", "f") == answer(40)
    for _ in range(2):
        with pytest.raises(ProblemError, match="not kept any more"):
            store.begin("a", "f")
    with pytest.raises(ProblemError, match="other arguments"):
        store.begin("a", "g")
    now[0] = 10.0
    assert store.begin("a", "g") is None
    # What was dropped is not counted: two answers of 40 bytes fit again.
    store.finish("a", answer(20))
    assert store.begin("a", "g") == answer(20)


@pytest.mark.parametrize("store", ["memory", "file"])
def test_a_large_answer_frees_no_key(store: str, tmp_path: Path) -> None:
    plugin = Plugin("p", version="1.0.0", idempotency=SqliteStore(tmp_path / "keys") if store == "file" else None)
    ran: list[int] = []

    @plugin.operation(consequential=True)
    def buy(size: int) -> str:
        ran.append(size)
        return "x" * size

    def post(key: str, size: int) -> Response:
        body = json.dumps({"arguments": {"size": size}}).encode()
        return plugin.handle(Request("POST", "v1/invoke/buy", {"Idempotency-Key": key}, body))

    with plugin:
        assert post("small", 1).status == post("large", 17 << 20).status == 200
        assert post("small", 1).headers["idempotent-replay"] == "true"
        repeated = post("large", 17 << 20)
        assert kind(repeated) == (500, "answer-not-kept")
        assert "does not run again" in repeated.json()["detail"]
        assert "octavo-digest" in repeated.headers
        assert kind(post("large", 2)) == (422, "idempotency-key-reused")
    assert ran == [1, 17 << 20]


def test_concurrent_requests_with_one_key_run_once(plugin: Plugin) -> None:
    barrier = threading.Barrier(8)
    found: list[Response] = []

    def run() -> None:
        barrier.wait(20)
        found.append(plugin.handle(request("send", {"to": "a", "text": "b"}, idempotency_key="k")))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert plugin.sent == [("a", "b")]  # type: ignore[attr-defined]
    assert {kind(r) for r in found} <= {(200, ""), (409, "idempotency-conflict")}


def test_a_client_that_leaves_ends_an_async_operation(plugin: Plugin) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(plugin.ahandle(request("stall", {"seconds": 30.0})))
        while plugin._runner._running == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while plugin._runner._running:
            await asyncio.sleep(0)

    asyncio.run(run())


class BrokenStore(MemoryStore):
    """Loses answers, as a full disk does."""

    def finish(self, key: str, response: Response | None) -> None:
        raise OSError("no space left")


def test_a_store_that_fails_harms_no_call() -> None:
    with weather_plugin.build(idempotency=BrokenStore()) as plugin:
        call = request("send", {"to": "a", "text": "b"}, idempotency_key="k")
        assert plugin.handle(call).json()["result"] == 1
        assert kind(plugin.handle(call)) == (409, "idempotency-conflict")
        assert plugin.sent == [("a", "b")]  # type: ignore[attr-defined]


FORK = """
import os, sys
sys.path.insert(0, {folder!r})
import weather_plugin
from octavo.plugins import Request
call = [Request("POST", "v3/invoke/get_forecast", {{}}, b'{{"arguments": {{"city": "x"}}}}'),
        Request("POST", "v3/invoke/send", {{}}, b'{{"arguments": {{"to": "x", "text": "y"}}}}')]
plugin = weather_plugin.plugin
assert [plugin.handle(each).status for each in call] == [200, 200]
child = os.fork()
answers = [plugin.handle(each).status for each in call]
if child == 0:
    os._exit(0 if answers == [200, 200] else 1)
print(answers, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_starts_its_own_threads() -> None:
    code = FORK.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["[200,", "200]", "0"], done.stderr


def test_threads_are_used_again_and_end() -> None:
    workers = Workers()
    for i in range(20):
        future = workers.submit(lambda i=i: i)  # type: ignore[misc]
        assert future.result(20) == i
        sleep_until(lambda: workers._idle == 1)
    assert len(workers._threads) == 1
    threads = list(workers._threads)
    workers.close()
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(20)
    workers.close()


def test_a_plugin_that_was_closed_in_an_operation_serves_again() -> None:
    with weather_plugin.build() as plugin:
        first: list[Response] = []
        thread = threading.Thread(target=lambda: first.append(plugin.handle(request("fail", {"how": "wait"}))))
        thread.start()
        sleep_until(lambda: plugin._runner._running == 1)
        plugin._runner._workers.close(0)
        plugin.gate.set()  # type: ignore[attr-defined]
        thread.join(20)
        assert first[0].status == 200
        for _ in range(3):
            assert plugin.handle(request("get_forecast", {"city": "x"})).status == 200


def test_an_async_operation_is_waited_for_when_its_plugin_is_closed() -> None:
    for seconds, expected in ((20.0, (200, "")), (0.0, (504, "timeout"))):
        workers_seconds, length = seconds, 0.2 if seconds else 20.0
        with weather_plugin.build(limits=Limits(timeout_s=20)) as plugin:
            found: list[Response] = []
            call = request("stall", {"seconds": length})
            thread = threading.Thread(target=lambda p=plugin, c=call, f=found: f.append(p.handle(c)))  # type: ignore[misc]
            thread.start()
            sleep_until(lambda p=plugin: p._runner._running == 1)  # type: ignore[misc]
            plugin._runner._workers.close(workers_seconds)
            thread.join(20)
            assert kind(found[0]) == expected
            assert plugin._runner._running == 0
            assert plugin.handle(request("stall", {"seconds": 0.0})).status == 200
