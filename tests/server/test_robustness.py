"""What may go wrong around an answer: a stalled engine, readers that do not read, bodies that do not come, the end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from octavo import LLM
from octavo.server import Limits, ServerConfig, asgi_response, create_app
from servers import Process, served, uvicorn_in_thread, wait_until
from starlette.testclient import TestClient

LONG = {"prompt": "Once", "max_tokens": 2500, "ignore_eos": True}


def test_health_turns_red_while_a_step_takes_too_long_and_green_after_it() -> None:
    with LLM(max_num_seqs=4, max_num_batched_tokens=2000) as llm:
        # Any step is too long for this one.
        client = TestClient(create_app(llm, ServerConfig(health_seconds=1e-6)))
        patient = TestClient(create_app(llm))
        assert client.get("/health").json() == {"status": "ready"}, "an empty queue is no stall"
        stream = llm.submit([7] * 2000, _params(200))
        seen: list[Any] = []
        while (delta := stream.poll()) is None or not delta.finished:
            found = client.get("/health")
            if found.status_code == 503:
                seen.append(found.json())
                assert client.get("/ready").status_code in (200, 503)
            assert patient.get("/health").status_code == 200
        assert seen, "no step was seen to take its time"
        assert seen[0]["status"] == "stalled"
        assert "a step has taken" in seen[0]["cause"]
        wait_until(lambda: client.get("/health").status_code == 200, "it is green again")


def _params(tokens: int) -> Any:
    from octavo import SamplingParams

    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def head(length: int) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def deaf(url: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A client that asks and reads nothing."""
    parts = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((parts.hostname, parts.port))
        data = json.dumps(body).encode()
        connection.sendall(head(len(data)) + data)
        yield connection


def test_a_reader_that_takes_nothing_is_given_up(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    """More news than all buffers between the two hold; the engine would run on for a long time."""
    config = ServerConfig(limits=Limits(stream_stall_seconds=0.5), stream_interval_ms=1)
    body = {**LONG, "stream": True, "n": 8, "logprobs": 20}
    before = llm.stats()["finished"]
    with uvicorn_in_thread(create_app(llm, config)) as url, deaf(url, body):
        wait_until(lambda: llm.stats()["finished"]["abort"] == before["abort"] + 8, "its request is cancelled", 60)
        assert llm.stats()["finished"]["length"] == before["length"]
        assert any("has read nothing for 0.5 s" in r.getMessage() for r in caplog.records)
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_a_slow_reader_that_reads_keeps_its_stream(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock is what the reader has read, at 250 kB a second: in all it takes longer than a stall."""
    data = b""
    monkeypatch.setattr(asgi_response, "time", SimpleNamespace(monotonic=lambda: len(data) / 250_000))
    config = ServerConfig(limits=Limits(stream_stall_seconds=0.5), stream_interval_ms=1)
    with uvicorn_in_thread(create_app(llm, config)) as url:
        body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True, "logprobs": 20}
        with deaf(url, body) as connection:
            connection.settimeout(60)
            while not data.endswith(b"0\r\n\r\n"):
                data += connection.recv(2048)
    assert len(data) / 250_000 > config.limits.stream_stall_seconds
    assert data.count(b"data: [DONE]") == 1
    assert data.count(b'"finish_reason":"length"') == 1


def test_a_body_that_does_not_come_is_408(llm: LLM) -> None:
    config = ServerConfig(limits=Limits(body_seconds=0.3))
    with uvicorn_in_thread(create_app(llm, config)) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            begin = time.monotonic()
            connection.sendall(head(1000) + b"{")
            # A server that waits for the body runs into the timeout of the socket.
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - begin > 0.25


def test_all_bodies_at_once_are_bounded(llm: LLM) -> None:
    config = ServerConfig(limits=Limits(bodies_bytes=100_000))
    with uvicorn_in_thread(create_app(llm, config)) as url, contextlib.ExitStack() as stack:
        parts = urlsplit(url)
        held = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=20))
        held.sendall(head(90_000) + b" " * 80_000)
        small = {"prompt": "a", "max_tokens": 1}
        large = {**small, "user": "x" * 60_000}
        wait_until(lambda: httpx.post(f"{url}/v1/completions", json=large).status_code == 429, "the rest is refused")
        refused = httpx.post(f"{url}/v1/completions", json=large)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert httpx.post(f"{url}/v1/completions", json=small).status_code == 200
        held.close()
        wait_until(lambda: httpx.post(f"{url}/v1/completions", json=large).status_code == 200, "it has been given back")


ASKS: dict[str, dict[str, Any]] = {
    "/v1/completions": {**LONG, "n": 8},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2500, "ignore_eos": True},
    # An array of numbers has no end of its own.
    "/v1/responses": {
        "input": "Hi",
        "text": {
            "format": {
                "type": "json_schema",
                "name": "x",
                "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 900},
            }
        },
    },
}


@pytest.mark.parametrize("path", ASKS)
def test_a_stream_that_fails_on_the_way_ends_with_one_error(path: str) -> None:
    with (
        LLM(max_num_seqs=8) as llm,
        uvicorn_in_thread(create_app(llm, ServerConfig(stream_interval_ms=1))) as url,
        httpx.stream("POST", url + path, json={**ASKS[path], "stream": True}, timeout=60) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        lines = []
        for line in answer.iter_lines():
            lines += [line] if line.startswith("data: ") else []
            if len(lines) == 12:
                # The engine ends under it.
                llm.close()
    assert len(lines) > 12, "it ended before its time"
    word = '"type":"response.failed"' if path == "/v1/responses" else '"code":"engine_unavailable"'
    assert [line for line in lines if word in line] == lines[-1:], "one error, and nothing after it"
    assert "data: [DONE]" not in lines


def streaming(process: Process, lines: list[str]) -> threading.Thread:
    def read() -> None:
        body = {**LONG, "stream": True, "n": 8}
        with httpx.stream("POST", f"{process.url}/v1/completions", json=body, timeout=120) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_nobody_new_is_let_in_while_it_drains() -> None:
    # Time enough on a machine that is busy with other things.
    with served("--shutdown-timeout", "200") as process:
        lines: list[str] = []
        reader = streaming(process, lines)
        wait_until(lambda: httpx.get(f"{process.url}/health").status_code == 200 and len(lines) > 0, "it streams")
        process.terminate()

        def refused() -> bool:
            try:
                httpx.get(f"{process.url}/health", timeout=5)
            except httpx.TransportError:
                return True
            return False

        wait_until(refused, "new connections are refused")
        assert process.process.poll() is None, "what runs goes on"
        reader.join(200)
        assert process.process.wait(30) == 0
        assert lines[-1] == "data: [DONE]"


def test_the_shutdown_timeout_ends_what_still_runs_with_a_last_word() -> None:
    with served("--shutdown-timeout", "0") as process:
        lines: list[str] = []
        reader = streaming(process, lines)
        wait_until(lambda: len(lines) > 0, "it streams")
        process.terminate()
        reader.join(30)
        assert process.process.wait(30) == 0
        assert lines[-1] != "data: [DONE]"
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert sum('"error"' in line for line in lines) == 1
        assert not [row for row in process.log if "traceback" in row]
