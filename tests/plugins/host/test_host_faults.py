"""Whatever a plugin answers, a call ends with a typed outcome, within its deadline, and harms no other."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest
from octavo.plugins.host import Outcome, PluginHost, PluginSource
from raw_server import DIGEST, OWN, Answer, RawServer, http, ok, problem, raw_server

GOOD = {"city": "Corrin"}


def cut(answer: bytes, keep: int) -> Answer:
    """The first bytes of an answer; then the connection ends."""
    return lambda connection: connection.sendall(answer[:keep])


def reset(connection: socket.socket) -> None:
    """The plugin dies before its answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


def test_a_call(host: PluginHost, server: RawServer) -> None:
    done = host.call("w__get", GOOD)
    assert (done.status, done.content, done.text) == ("ok", {"sunny": True}, '{"sunny": true}')
    assert (done.requests, done.version, done.digest) == (3, "1.0.0", DIGEST)
    path, headers, body = server.posts[0]
    assert path == "/v1/invoke/get"
    assert headers["octavo-protocol"] == "1"
    assert headers["octavo-digest"] == DIGEST
    assert json.loads(body) == {"arguments": GOOD}
    # Nothing but the call itself, from now on.
    assert host.call("w__get", GOOD).requests == 1


ANSWERS: dict[str, tuple[Answer, str, str]] = {
    "a page": (http(200, b"<html>", kind="text/html"), "bad_response", "text/html"),
    "no content type": (http(200, b'{"result": 1}', kind=""), "bad_response", "content type"),
    "no JSON": (http(200, b'{"result": ', OWN), "bad_response", "no JSON"),
    "NaN": (http(200, b'{"result": NaN}', OWN), "bad_response", "NaN"),
    "no UTF-8": (http(200, b'{"result": "\xff"}', OWN), "bad_response", "UTF-8"),
    "a lone surrogate": (http(200, b'{"result": "\\ud800"}', OWN), "bad_response", "UTF-8"),
    "deep": (http(200, b'{"result": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", OWN), "bad_response", "deep"),
    "no result": (http(200, b'{"arguments": {"city": "Corrin"}}', OWN), "bad_response", "'result'"),
    "a list": (http(200, b"[1]", OWN), "bad_response", "'result'"),
    "gzip": (http(200, b"\x1f\x8b", OWN + "Content-Encoding: gzip\r\n"), "bad_response", "gzip"),
    "another success": (http(202, b'{"result": 1}', OWN), "bad_response", "202"),
    "huge": (http(200, b'{"result": "' + b"x" * (2 << 20) + b'"}', OWN), "too_large", "1048576"),
    "huge, unannounced": (
        b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\n\r\n" + b"x" * (2 << 20),
        "too_large",
        "1048576",
    ),
    "huge headers": (b"HTTP/1.1 200 X\r\nA: " + b"x" * (1 << 20) + b"\r\n\r\n", "bad_response", "answer"),
    "no HTTP": (b"220 smtp ready\r\n\r\n", "bad_response", "answer"),
    "not modified": (http(304, b""), "bad_response", "304"),
    "a redirect away": (
        http(307, b"", "Location: http://169.254.169.254/latest\r\n"),
        "refused",
        "http://169.254.169.254:80",
    ),
    "a redirect to another port": (http(302, b"", "Location: http://127.0.0.1:1/\r\n"), "refused", "127.0.0.1:1"),
    "a redirect that drops the body": (http(302, b"", "Location: /elsewhere\r\n"), "bad_response", "302"),
    "a redirect to nowhere": (http(307, b""), "bad_response", "redirect"),
    "a redirect to another scheme": (http(307, b"", "Location: file:///etc/passwd\r\n"), "refused", "file"),
    "a redirect without end": (http(307, b"", "Location: /again\r\n"), "bad_response", "without end"),
    "unauthorized": (problem(401, "unauthorized"), "unauthorized", "it is unauthorized"),
    "forbidden": (http(403, b"", kind="text/plain"), "unauthorized", "403"),
    "unknown code": (problem(418, "teapot"), "invalid_arguments", "it is teapot"),
    "unknown code of 5xx": (problem(507, "full"), "internal", "it is full"),
    "internal": (problem(500, "internal"), "internal", "it is internal"),
    "too large": (problem(413, "body-too-large"), "too_large", "it is body-too-large"),
    "invalid": (
        problem(422, "invalid-arguments", errors=[{"pointer": "/city", "detail": "no such city"}]),
        "invalid_arguments",
        "no such city",
    ),
    "a problem of another body": (problem(500, "ok"), "internal", "it is ok"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_no_result(host: PluginHost, server: RawServer, name: str) -> None:
    answer, status, text = ANSWERS[name]
    server.answers = [answer]
    done = host.call("w__get", GOOD)
    assert done.status == status, done
    assert text in done.text
    assert done.error is not None
    assert done.content is None
    assert json.loads(done.text)["error"] == status
    # The plugin is asked again as if nothing had been.
    server.answers = [ok(1)]
    assert host.call("w__get", GOOD).ok


@pytest.mark.parametrize("keep", [0, 10, 60, -5, -1])
def test_an_answer_that_ends_early_is_asked_for_again(host: PluginHost, server: RawServer, keep: int) -> None:
    whole = ok({"sunny": True})
    server.answers = [cut(whole, keep % len(whole) if keep else 0), whole]
    done = host.call("w__get", GOOD)
    assert (done.status, done.content) == ("ok", {"sunny": True})
    keys = [headers["idempotency-key"] for _, headers, _ in server.posts]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_two_calls_have_two_idempotency_keys(host: PluginHost, server: RawServer) -> None:
    host.call("w__get", GOOD)
    host.call("w__get", GOOD)
    keys = [headers["idempotency-key"] for _, headers, _ in server.posts]
    assert len(set(keys)) == 2


def test_a_plugin_that_dies_in_the_middle(host: PluginHost, server: RawServer) -> None:
    server.answers = [reset]
    done = host.call("w__get", GOOD)
    assert (done.status, done.sent) == ("unavailable", True)
    assert len(server.posts) == 3


def test_a_call_without_a_key_is_not_sent_twice(server: RawServer, pauses: list[float]) -> None:
    # Level 1: no digest in the manifest, thus no idempotency keys.
    assert server.manifest is not None
    del server.manifest["operations"][0]["digest"]
    server.answers = [reset, ok(1)]
    with PluginHost({"w": server.url}, sleep=pauses.append) as host:
        done = host.call("w__get", GOOD)
        assert (done.status, done.sent, len(server.posts), pauses) == ("unavailable", True, 1, [])
        server.answers = [problem(503, "unavailable"), ok(1)]
        assert host.call("w__get", GOOD).status == "unavailable"
        # It did not run: it may be sent again.
        server.answers = [problem(429, "rate-limited"), ok(1)]
        assert host.call("w__get", GOOD).ok
    assert all("idempotency-key" not in headers for _, headers, _ in server.posts)


def test_retry_after_is_waited_for(host: PluginHost, server: RawServer, pauses: list[float]) -> None:
    server.answers = [problem(503, "unavailable", OWN + "Retry-After: 7\r\n"), ok(1)]
    assert host.call("w__get", GOOD).ok
    assert pauses == [7.0]


def test_a_longer_retry_after_than_the_deadline_ends_the_call(
    host: PluginHost, server: RawServer, pauses: list[float]
) -> None:
    server.answers = [problem(429, "rate-limited", OWN + "Retry-After: 3600\r\n")]
    done = host.call("w__get", GOOD)
    assert (done.status, len(server.posts), pauses) == ("rate_limited", 1, [])
    assert done.error is not None
    assert done.error.retry_after == 3600


def test_bursts_of_5xx(host: PluginHost, server: RawServer, pauses: list[float]) -> None:
    server.answers = [problem(503, "unavailable"), http(502, b"<html>", kind="text/html"), ok(1)]
    assert host.call("w__get", GOOD).ok
    assert pauses == [0.1, 0.2]


def test_the_circuit_opens_and_closes(server: RawServer) -> None:
    now = [1000.0]
    with PluginHost({"w": server.url}, clock=lambda: now[0], sleep=lambda _: None, transport=_Clocked(now)) as host:
        host.tools()
        server.answers = [http(502, b"", kind="text/html")]
        statuses = [host.call("w__get", GOOD).status for _ in range(5)]
        assert statuses == ["unavailable"] * 5
        assert host.health()["w"]["circuit"] == "open"
        before = len(server.posts)
        done = host.call("w__get", GOOD)
        assert (done.status, done.requests, done.sent) == ("unavailable", 0, False)
        assert done.error is not None
        assert done.error.retry_after == pytest.approx(15.0)
        assert len(server.posts) == before
        # One probe after a while: it fails, so the circuit stays open.
        now[0] += 15.0
        assert host.call("w__get", GOOD).requests == 3
        assert host.call("w__get", GOOD).requests == 0
        now[0] += 15.0
        server.answers = [ok(1)]
        assert host.call("w__get", GOOD).ok
        assert host.health()["w"]["circuit"] == "closed"


class _Clocked:
    """The real transport under a test's clock."""

    def __init__(self, now: list[float]) -> None:
        from octavo.plugins.host import HttpTransport

        self._now, self._inner = now, HttpTransport()

    def send(self, request: Any) -> Any:
        import dataclasses
        import time

        left = request.deadline - self._now[0]
        answer = self._inner.send(dataclasses.replace(request, deadline=time.monotonic() + left))
        self._inner.close()
        return answer


def drip(stop: threading.Event) -> Answer:
    """A valid answer, one byte at a time: each read of the client succeeds."""

    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while not stop.wait(0.05):
            connection.sendall(b" ")

    return send


def drip_headers(stop: threading.Event) -> Answer:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 X\r\n")
        while not stop.wait(0.05):
            connection.sendall(b"A: b\r\n")

    return send


def silent(stop: threading.Event) -> Answer:
    return lambda connection: bool(stop.wait(60)) and None  # type: ignore[func-returns-value,return-value]


@pytest.mark.parametrize("make", [drip, drip_headers, silent])
def test_a_slow_plugin_ends_at_the_deadline(host: PluginHost, server: RawServer, make: Any) -> None:
    host.tools()
    server.answers = [make(server.stop)]
    done = host.call("w__get", GOOD, deadline=0.3)
    assert (done.status, done.sent) == ("timeout", True)
    assert done.seconds < 20  # the plugin's own timeout; the server would go on for a minute


def test_a_deadline_of_nothing(host: PluginHost, server: RawServer) -> None:
    done = host.call("w__get", GOOD, deadline=0.0)
    assert (done.status, done.requests, done.sent, server.gets) == ("timeout", 0, False, [])


def test_one_plugins_fault_harms_no_other(server: RawServer) -> None:
    import asyncio

    async def both(host: PluginHost) -> tuple[list[Outcome], Outcome]:
        slow = [asyncio.create_task(host.acall("slow__get", GOOD, deadline=20.0)) for _ in range(6)]
        await asyncio.sleep(0)
        quick = await host.acall("w__get", GOOD)
        assert not any(task.done() for task in slow)
        stuck.stop.set()
        return [await task for task in slow], quick

    with raw_server() as stuck:
        stuck.answers = [silent(stuck.stop)]
        sources = {"slow": PluginSource(stuck.url, concurrency=2), "w": PluginSource(server.url)}
        with PluginHost(sources) as host:
            host.tools()
            late, quick = asyncio.run(both(host))
    assert quick.ok
    assert not any(done.ok for done in late)


def test_a_call_that_gets_no_thread_ends_at_its_deadline() -> None:
    import asyncio

    async def calls(host: PluginHost) -> list[Outcome]:
        first = asyncio.create_task(host.acall("w__get", GOOD, deadline=20.0))
        while not stuck.posts:
            await asyncio.sleep(0.01)
        second = await host.acall("w__get", GOOD, deadline=0.1)
        stuck.stop.set()
        return [await first, second]

    with raw_server() as stuck:
        stuck.answers = [silent(stuck.stop)]
        with PluginHost({"w": PluginSource(stuck.url, concurrency=1)}) as host:
            host.tools()
            _, second = asyncio.run(calls(host))
    assert (second.status, second.requests, second.sent) == ("unavailable", 0, False)
    assert "busy" in second.text


def test_a_plugin_that_is_not_there(host: PluginHost, server: RawServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with PluginHost({"gone": url, "w": server.url}) as both:
        tools = both.tools()
        assert [tool.name for tool in tools] == ["w__get"]
        assert list(tools.missing) == ["gone"]
        assert tools.missing["gone"].code == "unavailable"
        done = both.call("gone__get", GOOD)
        assert (done.status, done.sent) == ("unavailable", False)


def test_results_are_cut_for_the_model_and_say_so(host: PluginHost, server: RawServer) -> None:
    server.answers = [ok("x" * 50_000)]
    done = host.call("w__get", GOOD)
    assert len(done.content) == 50_000
    assert done.text.endswith("[cut: 16384 of 50000 characters]")
    assert any("50000" in warning for warning in done.warnings)
    # The schema says that the result is an object.
    assert any("does not fit" in warning for warning in done.warnings)


def test_deprecation_is_reported_and_no_failure(host: PluginHost, server: RawServer) -> None:
    headers = OWN + "Deprecation: @1767225600\r\nSunset: Sat, 01 Jan 2028 00:00:00 GMT\r\n"
    server.answers = [ok({}, headers)]
    done = host.call("w__get", GOOD)
    assert done.ok
    assert any("deprecated" in w and "2028" in w for w in done.warnings)


def test_plugins_are_read_at_the_same_time(server: RawServer) -> None:
    """Two plugins that wait for each other's request would never be read one after the other."""
    both = threading.Barrier(2)

    def together(get: Any) -> Any:
        def answer(path: str) -> bytes:
            if path.endswith("octavo-plugin.json"):
                both.wait(60)
            found: bytes = get(path)
            return found

        return answer

    with raw_server() as other:
        server._get = together(server._get)  # type: ignore[method-assign]
        other._get = together(other._get)  # type: ignore[method-assign]
        sources = {name: PluginSource(s.url, timeout=60.0) for name, s in (("a", server), ("b", other))}
        with PluginHost(sources) as host:
            assert [tool.name for tool in host.tools()] == ["a__get", "b__get"]


def test_a_plugin_that_cannot_be_read_is_not_waited_for_again_and_again(server: RawServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    now = [0.0]
    with PluginHost({"gone": url}, transport=_Clocked(now), clock=lambda: now[0]) as host:
        for _ in range(5):
            assert "no connection" in host.tools().missing["gone"].detail
        assert "again and again" in host.tools().missing["gone"].detail
        now[0] += 15.0
        assert "no connection" in host.tools().missing["gone"].detail


def test_a_wrong_deadline(host: PluginHost) -> None:
    from octavo.errors import InvalidRequestError

    for wrong in (float("nan"), "5"):
        with pytest.raises(InvalidRequestError, match="deadline"):
            host.call("w__get", GOOD, deadline=wrong)  # type: ignore[arg-type]
