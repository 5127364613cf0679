"""The same plugin file under real servers: the coats change no answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import weather_plugin
from octavo.errors import MissingDependencyError
from octavo.plugins import Limits, Plugin, Request
from octavo.plugins.conformance import UrlTarget, check
from served import serve_asgi, serve_wsgi

HERE = Path(__file__).parent
APPS = """
from weather_plugin import plugin
def fastapi_mounted():
    from fastapi import FastAPI
    app = FastAPI(); app.mount("/inner/weather", plugin.asgi_app); return app
def fastapi_router():
    from fastapi import FastAPI
    app = FastAPI(); app.include_router(plugin.router(), prefix="/inner/weather"); return app
def flask_blueprint():
    from flask import Flask
    app = Flask(__name__); app.register_blueprint(plugin.blueprint(), url_prefix="/inner/weather"); return app
def flask_dispatcher():
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    app = Flask(__name__); app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/inner/weather": plugin.wsgi_app})
    return app
def plain_asgi():
    return plugin.asgi_app
def plain_wsgi():
    return plugin.wsgi_app
"""
UVICORN = "uvicorn --factory apps:{{}} --port {port} --log-level error"
GUNICORN = "gunicorn apps:{{}}() -b 127.0.0.1:{port} --threads 4 --log-level error"
FLASK = "flask --app apps:{{}} run --port {port}"
SERVERS = {
    "uvicorn+FastAPI mount": (UVICORN, "fastapi_mounted", "/inner/weather/"),
    "uvicorn+FastAPI router": (UVICORN, "fastapi_router", "/inner/weather/"),
    "uvicorn+plain ASGI": (UVICORN, "plain_asgi", "/"),
    "gunicorn+Flask": (GUNICORN, "flask_blueprint", "/inner/weather/"),
    "gunicorn+plain WSGI": (GUNICORN, "plain_wsgi", "/"),
    "flask run": (FLASK, "flask_dispatcher", "/inner/weather/"),
}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def _server(command: str, path: str, folder: Path) -> Iterator[str]:
    module = command.split()[0]
    if module == "gunicorn":
        pytest.importorskip("gunicorn")
    (folder / "apps.py").write_text(APPS, encoding="utf-8")
    port = _free_port()
    folders = [str(HERE), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.format(port=port).split()],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}{path}"
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url + "health", timeout=5).status_code == 200:
                    break
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


CASES: list[tuple[str, str, dict[str, str], bytes]] = [
    ("GET", ".well-known/octavo-plugin.json", {}, b""),
    ("HEAD", "openapi.json", {}, b""),
    ("GET", "openapi.json", {"If-None-Match": "*"}, b""),
    ("GET", "nothing/here", {}, b""),
    ("GET", "v3/invoke/fail", {}, b""),
    ("OPTIONS", "v3/invoke/fail", {}, b""),
    ("POST", "v3/invoke/get_forecast", {"Octavo-Protocol": "1"}, b'{"arguments": {"city": "Corrin", "days": 2}}'),
    ("POST", "v3/invoke/get_forecast", {}, '{"arguments": {"city": "Zürich"}}'.encode()),
    ("POST", "v1/invoke/get_weather", {}, b'{"arguments": {"town": "x"}}'),
    ("POST", "v3/invoke/get_forecast", {"Octavo-Protocol": "9"}, b"{}"),
    ("POST", "v3/invoke/get_forecast", {"Octavo-Digest": "sha256:0"}, b'{"arguments": {}}'),
    ("POST", "v3/invoke/get_forecast", {"Content-Type": "text/plain"}, b"{}"),
    ("POST", "v3/invoke/get_forecast", {}, b"{"),
    ("POST", "v3/invoke/get_forecast", {}, b'{"arguments": {"city": "' + b"x" * 8000 + b'"}}'),
    ("POST", "v3/invoke/fail", {}, b'{"arguments": {"how": "x"}}'),
    ("POST", "v3/invoke/fail", {}, b'{"arguments": {"how": "busy"}}'),
    ("POST", "v3/invoke/f%C3%A4il", {}, b"{}"),
    ("POST", "v3/invoke/where", {}, b'{"arguments": {"place": {"name": "a", "inside": {"name": "b"}}}}'),
    ("POST", "mcp", {}, b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'),
]
# Of the server, not of the plugin.
_OF_SERVER = {"date", "server", "connection", "content-length", "transfer-encoding"}


def check_answers(client: httpx.Client, url: str) -> None:
    """Each case has the answer that `Plugin.handle` gives in process."""
    for method, path, headers, body in CASES:
        fields = {"content-type": "application/json", **{k.lower(): v for k, v in headers.items()}}
        given = client.request(method, url + path, headers=fields, content=body)
        plain = path.replace("%C3%A4", "ä")
        with weather_plugin.build(fail_is_called=False) as plugin:
            expected = plugin.handle(Request(method, plain, fields, body))
        where = f"{method} {path} {headers}"
        assert given.status_code == expected.status, where
        if expected.status in (200, 304):
            assert given.content == expected.body, where
        else:
            assert given.json()["type"] == expected.json()["type"], where
        found = {name: value for name, value in given.headers.items() if name not in _OF_SERVER}
        assert found == {name: value for name, value in expected.headers.items() if name not in _OF_SERVER}, where
        if method == "HEAD":
            assert given.headers["content-length"] == expected.headers["content-length"], where


def check_odd_requests(client: httpx.Client, url: str) -> None:
    """Methods that no path has, repeated header lines, and bodies that end early: under each server as in process."""
    call = url + "v3/invoke/get_forecast"
    for method in ("TRACE", "PROPFIND", "PUT"):
        for path in ("v3/invoke/get_forecast", "mcp", "openapi.json", "nothing"):
            answer = client.request(method, url + path)
            assert answer.status_code == (404 if path == "nothing" else 405), (method, path)
            assert answer.headers["content-type"] == "application/problem+json", (method, path)
    good = {"arguments": {"city": "x"}}
    for name, values, status in (
        ("Origin", ("http://evil.example", "http://localhost"), 403),
        ("Octavo-Protocol", ("1", "9"), 200),
        ("Octavo-Protocol", ("9", "1"), 200),
        ("Octavo-Digest", ("sha256:0", "sha256:1"), 409),
        ("Idempotency-Key", ("one two", "three"), 400),
    ):
        fields = [("Content-Type", "application/json"), *((name, value) for value in values)]
        answer = client.post(call, content=json.dumps(good), headers=fields)
        assert answer.status_code == status, (name, answer.text)
    body = b'{"arguments": {"to": "a", "text": "b"}}'
    ended_early = [b"Content-Length: 500\r\n\r\n" + body]
    ended_early += [b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body)]
    for rest in ended_early:
        answered = _raw(url, b"v3/invoke/send", rest)
        assert answered == b"" or b" 400 " in answered.splitlines()[0], answered
    # `send` counts its calls: neither of those two ran.
    assert client.post(url + "v3/invoke/send", json=json.loads(body)).json()["result"] == 1


def _raw(url: str, path: bytes, rest: bytes) -> bytes:
    """The answer to a request that is cut off after `rest`."""
    found = httpx.URL(url)
    head = b"POST %b%b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.create_connection((found.host, found.port or 80), timeout=20) as connection:
        connection.sendall(head % (found.raw_path, path) + rest)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("name", SERVERS)
def test_real_servers_answer_alike(name: str, tmp_path: Path) -> None:
    command, app, path = SERVERS[name]
    with _server(command.replace("{{}}", app), path, tmp_path) as url, httpx.Client(timeout=20) as client:
        check_answers(client, url)
        check_odd_requests(client, url)
        report = check(UrlTarget(url), arguments={"stall": {"seconds": 0.0}})
        assert report.ok, report.text()
        assert report.level == 2
        key = {"Idempotency-Key": '"k"'}
        sent = {"arguments": {"to": "a", "text": "b"}}
        answers = [client.post(url + "v3/invoke/send", json=sent, headers=key) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert answers[1].headers["idempotent-replay"] == "true"


def test_a_wsgi_server_of_the_standard_library() -> None:
    with (
        weather_plugin.build(fail_is_called=False) as plugin,
        serve_wsgi(plugin.wsgi_app) as url,
        httpx.Client(timeout=20) as client,
    ):
        check_answers(client, url)
        check_odd_requests(client, url)


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [("/v/v3/invoke/stall", "/v", 200), ("/v3/invoke/stall", "/v", 200), ("/w/v3/invoke/stall", "/w/", 200),
     ("/v3/invoke/stall", "", 200), ("/wv3/invoke/stall", "/w", 404), ("/w", "/w", 404)],
)  # fmt: skip
def test_a_root_path_is_cut_at_a_slash_alone(path: str, root: str, status: int) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"arguments": {"seconds": 0.0}}'}

    async def send(message: Any) -> None:
        sent.append(message)

    with weather_plugin.build() as plugin:
        scope = {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": []}
        asyncio.run(plugin.asgi_app(scope, receive, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize("length", ["\xb2", "-1", "9" * 5000, "1x"])
def test_a_content_length_that_is_none_reads_no_body(length: str) -> None:
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v3/invoke/send", "CONTENT_LENGTH": length}
    started: list[str] = []
    with weather_plugin.build() as plugin:
        plugin.wsgi_app({**environ, "wsgi.input": io.BytesIO(b"x")}, lambda status, _headers: started.append(status))
    assert started[0].startswith("400 ")


def test_a_body_in_chunks_is_read_to_its_limit() -> None:
    with weather_plugin.build() as plugin, serve_asgi(plugin.asgi_app) as url, httpx.Client(timeout=20) as client:
        small = [b'{"arguments": ', b'{"city": "x"}}']
        json_type = {"content-type": "application/json"}
        right = client.post(url + "v3/invoke/get_forecast", content=iter(small), headers=json_type)
        assert right.json()["result"]["city"] == "x"
        large = client.post(url + "v3/invoke/get_forecast", content=iter([b"x" * 1000] * 6), headers=json_type)
        assert large.status_code == 413
        assert large.headers["connection"] == "close"


def test_an_announced_body_is_not_read_beyond_the_limit() -> None:
    class Endless:
        read_bytes = 0

        def read(self, size: int) -> bytes:
            self.read_bytes += size
            return b"x" * size

    stream = Endless()
    started: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/v3/invoke/fail", "CONTENT_LENGTH": str(10**12), "wsgi.input": stream,
    }  # fmt: skip
    with weather_plugin.build(limits=Limits(body_bytes=1000)) as plugin:
        body = b"".join(plugin.wsgi_app(environ, lambda status, _headers: started.append(status)))
    assert started[0].startswith("413 ")
    assert json.loads(body)["limit"] == 1000
    assert stream.read_bytes == 1001


def test_a_stream_without_end_is_left_at_the_limit() -> None:
    received: list[int] = []
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        received.append(1)
        assert len(received) < 50
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    with weather_plugin.build(limits=Limits(body_bytes=1000)) as plugin:
        scope = {"type": "http", "method": "POST", "path": "/v3/invoke/fail", "headers": []}
        asyncio.run(plugin.asgi_app(scope, receive, send))
    assert len(received) == 11
    assert sent[0]["status"] == 413


def test_a_client_that_leaves_early_is_answered_nothing() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with weather_plugin.build() as plugin:
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": []}
        asyncio.run(plugin.asgi_app(scope, receive, send))
        asyncio.run(plugin.asgi_app({"type": "websocket"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_operation_sees_the_context_of_flask() -> None:
    import flask

    plugin = Plugin("context", version="1.0.0")

    @plugin.operation()
    def agent() -> str:
        return f"{flask.current_app.config['SITE']} {flask.request.headers['X-Agent']}"

    app = flask.Flask("site")
    app.config["SITE"] = "here"
    app.register_blueprint(plugin.blueprint(), url_prefix="/p")
    with plugin, app.test_client() as client:
        answer = client.post("/p/v1/invoke/agent", json={"arguments": {}}, headers={"X-Agent": "me"})
    assert answer.get_json()["result"] == "here me"


@pytest.mark.parametrize("make", [Plugin.router, Plugin.blueprint])
def test_a_missing_framework_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flask", "fastapi"):
        monkeypatch.setitem(sys.modules, module, None)
    with weather_plugin.build() as plugin, pytest.raises(MissingDependencyError, match="pip install"):
        make(plugin)
