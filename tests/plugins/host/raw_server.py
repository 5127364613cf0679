"""A server on a real socket whose every byte the test chooses: for answers that no framework would send."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from octavo.plugins.schema import digest

ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
    "required": ["city"],
    "additionalProperties": False,
}
RESULT = {"type": "object"}
DIGEST = digest(ARGUMENTS, RESULT)
OWN = f"Octavo-Protocol: 1.0\r\nOctavo-Digest: {DIGEST}\r\n"


def http(status: int, body: bytes, headers: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def ok(result: Any, headers: str = OWN) -> bytes:
    return http(200, json.dumps({"result": result}).encode(), headers)


def problem(status: int, code: str, headers: str = OWN, **members: Any) -> bytes:
    body = {"type": f"urn:octavo-plugin:{code}", "status": status, "detail": f"it is {code}", **members}
    return http(status, json.dumps(body).encode(), headers, "application/problem+json")


def manifest(**entry: Any) -> dict[str, Any]:
    found = {"id": "get", "major": 1, "digest": DIGEST, "since": "1.0", "consequential": False, **entry}
    return {
        "octavo_plugin": {"protocol": {"1": 0}},
        "name": "w",
        "version": "1.0.0",
        "majors": [1],
        "openapi": {"url": "openapi.json"},
        "operations": [found],
    }


def document() -> dict[str, Any]:
    body = {"type": "object", "properties": {"arguments": ARGUMENTS}, "required": ["arguments"]}
    answer = {"type": "object", "properties": {"result": RESULT}}
    operation = {
        "operationId": "get",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": answer}}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "w", "version": "1.0.0"},
        "paths": {"/v1/invoke/get": {"post": operation}},
    }


Answer = bytes | Callable[[socket.socket], None]


class RawServer:
    """Answers GETs for the manifest and the document, and each POST with the next of `answers`; the last repeats."""

    def __init__(self) -> None:
        self.manifest: dict[str, Any] | None = manifest()
        self.document: dict[str, Any] = document()
        self.answers: list[Answer] = [ok({"sunny": True})]
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.gets: list[str] = []
        self.stop = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self.stop.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                self._one(connection)
            except OSError:
                return

    def _one(self, connection: socket.socket) -> None:
        """One request a connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        method, path, _ = first.split(" ")
        if method == "GET":
            self.gets.append(path)
            answer: Answer = self._get(path)
        else:
            self.posts.append((path, headers, body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, bytes):
            connection.sendall(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        else:
            answer(connection)

    def _get(self, path: str) -> bytes:
        if path.endswith("octavo-plugin.json"):
            value = self.manifest
        else:
            value = self.document if path.endswith("openapi.json") else None
        return http(404, b"{}") if value is None else http(200, json.dumps(value).encode())


@contextmanager
def raw_server() -> Iterator[RawServer]:
    server = RawServer()
    try:
        yield server
    finally:
        server.close()
