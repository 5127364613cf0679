"""HTTP as clients of other servers send it: old versions, other headers for keys, codings, and slightly wrong paths."""

from __future__ import annotations

import codecs
import gzip
import json
import socket
import zlib
from typing import Any
from urllib.parse import urlsplit

import pytest
from octavo import LLM
from octavo.server import ServerConfig, create_app, create_wsgi_app
from octavo.server.near_paths import nearest
from servers import KEY, Process
from starlette.testclient import TestClient

BODY = {"prompt": "a", "max_tokens": 2}


class Answer:
    def __init__(self, status: int, body: Any, headers: Any) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class Caller:
    """Calls one of the applications."""

    def __init__(self, kind: str, llm: LLM, config: ServerConfig) -> None:
        from werkzeug.test import Client

        self._asgi = TestClient(create_app(llm, config=config)) if kind == "asgi" else None
        self._wsgi = Client(create_wsgi_app(llm, config=config)) if kind == "wsgi" else None

    def post(self, path: str, body: bytes, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-type", "application/json")
        if self._asgi is not None:
            found: Any = self._asgi.post(path, content=body, headers=named)
            return Answer(found.status_code, json.loads(found.content), found.headers)
        assert self._wsgi is not None
        found = self._wsgi.post(path, data=body, headers=named)
        return Answer(found.status_code, json.loads(found.data), found.headers)

    def ask(self, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        """Status and headers of the answer to OPTIONS."""
        if self._asgi is not None:
            asked: Any = self._asgi.options(path, headers=headers)
        else:
            assert self._wsgi is not None
            asked = self._wsgi.options(path, headers=headers)
        return asked.status_code, asked.headers


@pytest.fixture(params=["asgi", "wsgi"])
def caller(request: pytest.FixtureRequest, llm: LLM) -> Caller:
    return Caller(request.param, llm, ServerConfig())


@pytest.fixture(params=["asgi", "wsgi"])
def locked(request: pytest.FixtureRequest, llm: LLM) -> Caller:
    return Caller(request.param, llm, ServerConfig(api_keys=(KEY, "other")))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
def test_a_compressed_body_is_415_and_names_the_coding(caller: Caller, coding: str) -> None:
    data = json.dumps(BODY).encode()
    packed = gzip.compress(data) if "gzip" in coding.lower() else zlib.compress(data)
    found = caller.post("/v1/completions", packed, content_encoding=coding)
    assert found.status == 415
    assert coding.lower() in found.body["error"]["message"]
    assert found.headers["accept-encoding"] == "identity"


def test_identity_is_no_coding(caller: Caller) -> None:
    assert caller.post("/v1/completions", json.dumps(BODY).encode(), content_encoding="identity").status == 200


def test_a_byte_order_mark_is_skipped(caller: Caller) -> None:
    data = json.dumps(BODY).encode()
    assert caller.post("/v1/completions", codecs.BOM_UTF8 + data).status == 200
    assert caller.post("/v1/completions", codecs.BOM_UTF8 * 2 + data).status == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_named(caller: Caller, encoding: str) -> None:
    found = caller.post("/v1/completions", json.dumps(BODY).encode(encoding))
    assert found.status == 400
    assert "UTF-8" in found.body["error"]["message"]


NEAR = {
    "/chat/completions": "/v1/chat/completions",
    "/v1/chat/completions/": "/v1/chat/completions",
    "//v1/chat/completions": "/v1/chat/completions",
    "/v1//chat/completions": "/v1/chat/completions",
    "/v1/v1/chat/completions": "/v1/chat/completions",
    "/V1/Chat/Completions": "/v1/chat/completions",
    "/v1/chat/completion": "/v1/chat/completions",
    "/v1/chat/completions/chat/completions": "/v1/chat/completions",
    "/openai/deployments/x/chat/completions": "/v1/chat/completions",
    "/api/v1/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/completion": "/v1/completions",
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/v1/engines/x/completions": "/v1/completions",
    "/responses": "/v1/responses",
    "/v1/embedding": "/v1/embeddings",
    "/models": "/v1/models",
    "/api/tags": "/v1/models",
    "/v1/tokenize": "/tokenize",
    "/healthz": "/health",
}


@pytest.mark.parametrize("path", NEAR)
def test_a_wrong_path_names_the_right_one(caller: Caller, path: str) -> None:
    found = caller.post(path, b"{}")
    assert found.status == 404
    assert found.body["error"]["message"].endswith(f": did you mean {NEAR[path]}?")


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "", "/x" * 50_000, "/v1/audio/speech", "/wp-admin", "/.env"])
def test_a_foreign_path_names_none(path: str) -> None:
    assert nearest(path, list(NEAR.values())) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"x_api_key": KEY},
        {"api_key": KEY},
        {"x_api_key": KEY, "authorization": "Bearer of-another-service"},
        {"x_api_key": "of-another-service", "authorization": f"Bearer {KEY}"},
        {"api_key": f" {KEY} "},
    ],
)
def test_a_key_is_taken_from_every_usual_header(locked: Caller, headers: dict[str, str]) -> None:
    assert locked.post("/v1/completions", json.dumps(BODY).encode(), **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"x_api_key": ""}, {"x_api_key": "wrong"}, {"api_key": f"Bearer {KEY}"}, {"x_api_key": f"{KEY}, {KEY}"}],
)
def test_no_valid_key_is_401(locked: Caller, headers: dict[str, str]) -> None:
    found = locked.post("/v1/completions", json.dumps(BODY).encode(), **headers)
    assert found.status == 401
    assert "x-api-key" in found.body["error"]["message"]


def test_the_same_key_has_one_salt_in_every_header(llm: LLM) -> None:
    from octavo.server.auth import Auth

    auth = Auth(ServerConfig(api_keys=(KEY, "other")))
    fields = [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY), ("api-key", KEY)]
    salts = {auth.check("POST", "/v1/completions", [field]).salt for field in fields}
    assert len(salts) == 1
    assert salts != {auth.check("POST", "/v1/completions", [("x-api-key", "other")]).salt}


ORIGIN = "https://a.example"


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
def test_pages_of_other_origins(llm: LLM, kind: str, origins: tuple[str, ...]) -> None:
    caller = Caller(kind, llm, ServerConfig(allowed_origins=origins, api_keys=(KEY,)))
    for key, status in ((KEY, 200), ("wrong", 401)):
        found = caller.post("/v1/completions", json.dumps(BODY).encode(), origin=ORIGIN, x_api_key=key)
        assert found.status == status
        assert found.headers["access-control-allow-origin"] == origins[0]
        exposed = {name.strip().lower() for name in found.headers["access-control-expose-headers"].split(",")}
        assert {"x-request-id", "request-id", "retry-after", "x-should-retry"} <= exposed
    named = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,content-type"}
    status, headers = caller.ask("/v1/completions", {"origin": ORIGIN, **named})
    assert status == 200
    assert headers["access-control-allow-origin"] == origins[0]
    assert "POST" in headers["access-control-allow-methods"]
    assert "x-api-key" in headers["access-control-allow-headers"]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize("origins", [(), (ORIGIN,)])
def test_other_pages_get_no_permission(llm: LLM, kind: str, origins: tuple[str, ...]) -> None:
    caller = Caller(kind, llm, ServerConfig(allowed_origins=origins))
    found = caller.post("/v1/completions", json.dumps(BODY).encode(), origin="https://b.example")
    assert "access-control-allow-origin" not in found.headers
    named = {"origin": "https://b.example", "access-control-request-method": "POST"}
    status, headers = caller.ask("/v1/completions", named)
    assert status >= 400
    assert "access-control-allow-origin" not in headers


def test_both_names_of_the_request_id(caller: Caller) -> None:
    found = caller.post("/v1/completions", json.dumps(BODY).encode(), x_request_id="mine-1")
    assert found.headers["x-request-id"] == found.headers["request-id"] == "mine-1"


def raw(server: Process, version: str, body: dict[str, Any], *headers: str) -> tuple[bytes, bytes]:
    """Head and body of an answer, read until the server closes the connection."""
    data = json.dumps(body).encode()
    lines = [f"POST /v1/completions HTTP/{version}", "Host: 127.0.0.1", f"Authorization: Bearer {KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.lower(), rest


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)])
def test_http_1_0_gets_a_stream_that_ends_with_the_connection(server: Process, headers: tuple[str, ...]) -> None:
    head, body = raw(server, "1.0", {**BODY, "stream": True}, *headers)
    assert b" 200 " in head
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"connection: close" in raw(server, "1.0", BODY, *headers)[0]


def test_http_1_1_gets_chunks(server: Process) -> None:
    head, body = raw(server, "1.1", {**BODY, "stream": True}, "Connection: close")
    assert b"transfer-encoding: chunked" in head
    assert body.endswith(b"0\r\n\r\n")
