"""Requests that are made to hurt: each costs less than a second, memory stays flat, and others do not notice.

Seconds are processor time of the server, so that the load of the machine changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from servers import KEY, Process, memory_bytes, served, wait_until

# Of processor time, which grows on a loaded machine, too. The costliest of these requests takes half a second on a calm
# one, and what is quadratic takes minutes.
SECONDS = 5.0
# What Python and the engine may take for good while many megabytes of nonsense pass by.
GROWTH_BYTES = 96 << 20


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def schema(value: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": form}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **fields}


LARK = 'start: a\na: a a a | "x" a | b\nb: a | b b |'


def blocks(*given: Any, **fields: Any) -> dict[str, Any]:
    """A request of Anthropic's API."""
    return {"messages": [{"role": "user", "content": list(given)}], "max_tokens": 4, **fields}


def spoken(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def results(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = spoken("x")
    for _ in range(depth):
        found = {"type": "tool_result", "tool_use_id": "a", "content": [found]}
    return found


CALLED: list[Any] = [{"role": "user", "content": "x"}]


def called(arguments: Any) -> Any:
    """A turn with a call."""
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}


# Bodies for /v1/messages; the others say by their fields where they go.
MESSAGE_BOMBS: dict[str, Any] = {
    "many blocks": blocks(*[spoken("x")] * 30_000),
    "nested results": blocks(results(28)),
    "many results": blocks(*[{"type": "tool_result", "tool_use_id": "a", "content": "x"}] * 8_000),
    "many turns": {"messages": [{"role": "user", "content": "x"}] * 40_000, "max_tokens": 1},
    "too many turns": {"messages": [{"role": "user", "content": "x"}] * 100_001, "max_tokens": 1},
    "turns of both": {
        "messages": [{"role": r, "content": "x"} for r in ("user", "assistant")] * 4_000,
        "max_tokens": 1,
    },
    "long blocks": blocks(spoken("x " * 1_000_000)),
    "long system": blocks(spoken("x"), system=[spoken("y " * 100_000)] * 20),
    "huge input": {
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": nested(25)}]}
        ]
        * 600,
        "max_tokens": 1,
    },
    "unknown blocks": blocks(*[{"type": f"t{i}_tool_result"} for i in range(30_000)]),
    "many unknown tools": blocks(spoken("x"), tools=[{"type": f"t{i}", "name": "x"} for i in range(20_000)]),
    "128 schemas": blocks(
        spoken("x"),
        tools=[{"name": f"f{i}", "input_schema": nested(4)} for i in range(128)],
        tool_choice={"type": "any"},
    ),
    "deep output format": blocks(spoken("x"), output_config={"format": {"type": "json_schema", "schema": nested(25)}}),
    "no such kind": blocks({"type": ["text"] * 1000}, {"type": {"a": 1}}),
    "many sequences": blocks(spoken("x"), stop_sequences=["x"] * 30_000),
}
RERANK_BOMBS: dict[str, Any] = {
    "many documents": {"query": "a", "documents": ["a"] * 30_000},
    "long document": {"query": "a", "documents": ["a", "a " * 1_000_000]},
    "nested documents": {"query": "a", "documents": [nested(25)] * 200},
}
BOMBS: dict[str, Any] = {
    **MESSAGE_BOMBS,
    **RERANK_BOMBS,
    "deep schema": schema(nested(25)),
    "deeper schema": schema(nested(200)),
    "wide schema": schema({"properties": {f"p{i}": {"type": "string"} for i in range(3000)}}),
    "huge multipleOf": schema({"type": "integer", "multipleOf": 1000003}),
    "many multipleOf": schema({"allOf": [{"multipleOf": p} for p in (7, 11, 13, 17, 19, 23, 29)]}),
    "multipleOf behind a $ref": schema({"$defs": {"a": {"multipleOf": 9973}}, "$ref": "#/$defs/a", "multipleOf": 9967}),
    "length 1e9": schema({"type": "string", "minLength": 10**9}),
    "items 1e9": schema({"type": "array", "items": {}, "minItems": 10**9, "maxItems": 10**9}),
    "nested counts": schema({"maxItems": 9999, "items": {"maxItems": 9999, "items": {"maxLength": 9999}}}),
    "schema of itself": schema({"$ref": "#"}),
    "mutual references": schema(
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "remote reference": schema({"$ref": "http://169.254.169.254/latest"}),
    "wide anyOf": schema({"anyOf": [{"properties": {f"k{i}": {"enum": list(range(50))}}} for i in range(200)]}),
    "regex repetition": chat(structured_outputs={"regex": "((a{999}){999}){999}"}),
    "regex alternation": chat(structured_outputs={"regex": "(a|aa|aaa|aaaa)*" * 40 + "b"}),
    "regex counts": chat(structured_outputs={"regex": "(?s).*.{4000}x"}),
    "regex unicode": chat(structured_outputs={"regex": r"(\w{1,50}\s){1,50}" * 8}),
    "ambiguous grammar": chat(structured_outputs={"grammar": LARK}),
    "multipleOf in a grammar": chat(structured_outputs={"grammar": 'start: %json {"multipleOf": 1000003}'}),
    "128 tools": chat(
        tools=[{"type": "function", "function": {"name": f"f{i}", "parameters": nested(4)}} for i in range(128)],
        tool_choice="required",
    ),
    "pattern": schema({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
    "template": chat(chat_template="{% for i in range(10**9) %}x{% endfor %}"),
    "template variables": chat(chat_template_kwargs={"messages": [1]}),
    "many messages": chat(messages=[{"role": "user", "content": "x"}] * 20_000),
    "many calls": chat(
        messages=[
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": f"f{i % 2}", "arguments": "{"}} for i in range(6_000)],
            },
            *[{"role": "tool", "name": f"f{i % 3}", "content": "y" * 50} for i in range(6_000)],
        ]
    ),
    "nested arguments": chat(messages=[*CALLED, called('{"a":' + "[" * 1_000_000), called('{"a":' * 400_000)]),
    "endless arguments": chat(messages=[*CALLED, called('{"a": "' + "\\u00" * 500_000), called("{" + "}," * 400_000)]),
    "long numbers": chat(
        messages=[*CALLED, called('{"a": [' + "9" * 4000 + "]}"), called("[" + "1" * 20 + ",1" * 100_000)]
    ),
    "many items": {"input": [{"role": "assistant", "content": "x" * 40}] * 20_000, "max_output_tokens": 1},
    "many reasons": {"input": [{"type": "reasoning", "summary": [{"text": "x"}]}] * 20_000, "max_output_tokens": 1},
    "many references": {"input": [{"type": "item_reference", "id": "x"}] * 20_000, "max_output_tokens": 1},
    "many instructions": {"input": [{"role": "developer", "content": "x"}] * 20_000, "max_output_tokens": 1},
    "many namespaces": {
        "input": "x",
        "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}] * 100}] * 200,
    },
    "many odd tools": {"input": "x", "tools": [{"type": f"t{i}"} for i in range(20_000)], "max_output_tokens": 1},
    "many allowed tools": chat(
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice={"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "function", "name": "f"}] * 50_000}},
    ),
    "long message": chat(messages=[{"role": "user", "content": "x " * 2_000_000}]),
    "roles": chat(messages=[{"role": "{{ 7 * 7 }}", "content": "x"}]),
    "many stops": chat(stop=["x" * 256] * 16),
    "n": chat(n=128, max_tokens=1),
    "n x context": chat(n=128, max_tokens=2500),
    "bias": chat(logit_bias={str(i): -100 for i in range(1024)}),
    "bad words": chat(extra=1, bad_words=["x" * 1000] * 4000),
    "prompts": {"prompt": ["a"] * 256, "max_tokens": 1},
    "token ids": {"prompt": [[1] * 2000] * 200, "max_tokens": 1, "n": 100},
    "duplicate keys": b'{"prompt": "a", "prompt": "b"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "1e400": b'{"prompt": "a", "n": 1e400}',
    "long number": b'{"prompt": "a", "seed": ' + b"9" * 1_000_000 + b"}",
    "deep JSON": b"[" * 1_000_000,
    "many values": b'{"prompt": [' + b"1," * 3_000_000 + b"1]}",
    "many keys": b"{" + b",".join(b'"k%d":0' % i for i in range(400_000)) + b"}",
    "many keys beside a prompt": b'{"prompt": "a", "max_tokens": 1,'
    + b",".join(b'"k%d":0' % i for i in range(100_000))
    + b"}",
    "escapes": b'{"prompt": "' + b"\\u0041" * 1_000_000 + b'"}',
    "no UTF-8": b"\xff" * 100_000,
}


@pytest.fixture(scope="module")
def target() -> Any:
    with served("--api-key", KEY) as process:
        yield process


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def used(process: Process) -> float:
    """Processor time that the server has taken so far."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(process: Process, name: str) -> tuple[int, float]:
    """The status of a request, and what it cost."""
    body = BOMBS[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = "/v1/chat/completions" if b'"messages"' in data else "/v1/completions"
    path = "/v1/messages" if name in MESSAGE_BOMBS else path
    path = "/v1/rerank" if name in RERANK_BOMBS else path
    path = "/v1/responses" if isinstance(body, dict) and "input" in body else path
    begin = used(process)
    found = httpx.post(process.url + path, content=data, headers=headers(), timeout=120)
    return found.status_code, used(process) - begin


def fine(process: Process) -> float:
    """An ordinary request, and what the server did until it was answered."""
    begin = used(process)
    body = {"prompt": "a", "max_tokens": 2}
    found = httpx.post(f"{process.url}/v1/completions", json=body, headers=headers(), timeout=120)
    assert found.status_code == 200
    return used(process) - begin


@pytest.mark.parametrize("name", BOMBS)
def test_answered_at_once(target: Process, name: str) -> None:
    status, seconds = send(target, name)
    assert status == 200 or 400 <= status < 500, status
    assert seconds < SECONDS, f"{status} after {seconds:.2f} s"
    assert fine(target) < SECONDS


def test_memory_stays_flat(target: Process) -> None:
    pid = target.process.pid
    # Twice before the first look: threads and allocators reach their size only then.
    for _ in range(2):
        for name in BOMBS:
            send(target, name)
    before = memory_bytes(pid)
    for _ in range(2):
        for name in BOMBS:
            send(target, name)
    wait_until(lambda: memory_bytes(pid) < before + GROWTH_BYTES, "memory is given back")


HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"


def connect(process: Process) -> socket.socket:
    parts = urlsplit(process.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def answer(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return connection.recv(200)
    return b""


def test_bodies_and_heads_beyond_the_limits(target: Process) -> None:
    begin = used(target)
    with connect(target) as connection:
        connection.sendall(f"{HEAD}Content-Length: {50 << 20}\r\n\r\n".encode())
        assert b" 413 " in answer(connection), "before a byte of it is sent"
    with connect(target) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(800):
                connection.sendall(chunk)
        # The answer may be lost with the rest of the body that nobody takes.
        assert b" 413 " in answer(connection) or answer(connection) == b""
    with connect(target) as connection:
        with contextlib.suppress(ConnectionError):
            for i in range(100_000):
                connection.sendall(f"{HEAD if i == 0 else ''}x-{i}: {'a' * 100}\r\n".encode())
        assert answer(connection)[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")
    for endless in (b"x: " + b"a" * 100, b"x-y: a\r\n" * 16):
        # A header without an end, and trailers without an end behind a body.
        for begin_of in (HEAD, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n"):
            with connect(target) as connection:
                connection.sendall(begin_of.encode())
                with contextlib.suppress(ConnectionError):
                    for _ in range(400):
                        connection.sendall(endless * 1000)
                    raise AssertionError("40 MB of headers were taken")
    with connect(target) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n")
        assert answer(connection)[9:12] == b"400"
    with connect(target) as connection:
        connection.sendall(b"\x16\x03\x01" + bytes(range(256)))
        assert answer(connection)[9:12] in (b"400", b"")
    assert used(target) - begin < 10
    assert fine(target) < SECONDS


def test_what_follows_a_body_is_no_header(target: Process) -> None:
    """A key behind the body opens nothing."""
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    )
    body = b'{"prompt": "a", "max_tokens": 1}'
    with connect(target) as connection:
        connection.sendall(f"{head}\r\n{len(body):x}\r\n".encode() + body)
        connection.sendall(f"\r\n0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        assert b" 401 " in answer(connection)


def test_slow_and_silent_clients_cost_nothing(target: Process) -> None:
    """Two hundred connections that say nothing, half a head, half a body, or never read."""
    body = json.dumps({"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 2}).encode()
    parts = [
        b"",
        b"POST /v1/comp",
        f"{HEAD}Content-Length: 1000\r\n\r\n{{".encode(),
        f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body,
    ]
    with contextlib.ExitStack() as stack:
        for i in range(200):
            connection = stack.enter_context(connect(target))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(parts[i % 3] if i >= 8 else parts[3])
        times = sorted(fine(target) for _ in range(9))
        # Beside streams, for which all threads of the engine work.
        assert times[4] < SECONDS
    wait_until(lambda: running(target) == 0, "what ran for them has been cancelled")


def running(process: Process) -> float:
    text = httpx.get(f"{process.url}/metrics", headers=headers()).text
    return float(next(line for line in text.splitlines() if line.startswith("octavo:num_requests_running")).split()[-1])


def test_others_do_not_wait_for_a_bomb(target: Process) -> None:
    """While one client throws all the bombs, another waits for ordinary work only, and not for whole bombs."""
    alone = sorted(fine(target) for _ in range(30))
    stop = threading.Event()

    def throw() -> None:
        while not stop.is_set():
            for name in BOMBS:
                if name not in ("n", "prompts", "token ids"):  # these are honest work
                    send(target, name)

    thread = threading.Thread(target=throw)
    thread.start()
    try:
        beside = sorted(fine(target) for _ in range(60))
    finally:
        stop.set()
        thread.join()
    assert beside[30] < alone[15] + 0.25, f"median {beside[30]:.3f} s of work beside bombs, {alone[15]:.3f} s alone"
