"""Who comes in: every route without a key, with a bad one, in odd spellings and under mounts; Host and sizes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from octavo import LLM
from octavo.errors import InvalidRequestError, MissingDependencyError
from octavo.server import Limits, ServerConfig, create_app, create_wsgi_app
from octavo.server.discover import all_routes
from starlette.testclient import TestClient

KEY = "the-key"
CONFIG = ServerConfig(api_keys=(KEY, "another"), limits=Limits(body_bytes=1000))


class Wsgi:
    """A WSGI application under the interface of TestClient, as far as it is used here."""

    def __init__(self, app: Any) -> None:
        from werkzeug.test import Client

        self._client = Client(app)

    def request(self, method: str, path: str, **more: Any) -> Any:
        content = more.pop("content", None)
        return self._client.open(path, method=method, data=content, headers=list((more.get("headers") or {}).items()))


@pytest.fixture(params=["asgi", "mounted", "wsgi", "flask"])
def app(request: pytest.FixtureRequest, llm: LLM) -> Iterator[tuple[Any, str]]:
    """A client, and the prefix under which the application lives."""
    if request.param == "asgi":
        yield TestClient(create_app(llm, CONFIG)), ""
    elif request.param == "mounted":
        host = FastAPI()
        host.mount("/deep/llm", create_app(llm, CONFIG))
        yield TestClient(host), "/deep/llm"
    elif request.param == "wsgi":
        yield Wsgi(create_wsgi_app(llm, CONFIG)), ""
    else:
        from flask import Flask
        from werkzeug.middleware.dispatcher import DispatcherMiddleware

        host = Flask("host")
        host.wsgi_app = DispatcherMiddleware(host.wsgi_app, {"/llm": create_wsgi_app(llm, CONFIG)})
        yield Wsgi(host), "/llm"


def spellings() -> list[str]:
    paths = [r.path.replace("{model}", "octavo-embedded") for r in all_routes()]
    paths += ["/openapi.json", "/docs", "/nothing"]
    odd = [
        "//health",
        "/health/",
        "/HEALTH",
        "/Version",
        "/health/../v1/models",
        "/v1//models",
        "/V1/models",
        "/health%2f..%2fv1%2fmodels",
        "/%68ealth/x",
        "/version;/v1/models",
        "/./v1/models",
        "/v1/models/",
        "/page/app.js/",
        "/page//app.js",
        "/PAGE/app.js",
        "/page/../v1/models",
        "/page/..%2fmetrics",
    ]
    return [p for p in paths if p not in ("/health", "/version", "/")] + odd


def status(response: Any) -> int:
    return response.status_code


@pytest.mark.parametrize("path", spellings())
def test_closed_without_the_key(app: tuple[Any, str], path: str) -> None:
    client, prefix = app
    basic = base64.b64encode(b"user:wrong").decode()
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
        for value in (
            None,
            "Bearer wrong",
            "Bearer",
            f"bearer {KEY}x",
            KEY,
            f"Basic {basic}",
            "Basic %",
        ):
            headers = {} if value is None else {"Authorization": value}
            # With the host, or a client would take `//health` for one.
            found = client.request(method, f"http://localhost{prefix}{path}", headers=headers)
            assert status(found) in (401, 404), (method, path, value, status(found))
            # Nothing at all may answer 404 without a key but the host of the mount.
            if status(found) == 404:
                assert prefix, (method, path, value)
                assert b"octavo" not in getattr(found, "content", getattr(found, "data", b""))


def test_open_with_the_key(app: tuple[Any, str]) -> None:
    client, prefix = app
    basic = base64.b64encode(f"any:{KEY}".encode()).decode()
    for value in (f"Bearer {KEY}", f"bearer  {KEY}", "Bearer another", f"Basic {basic}"):
        assert status(client.request("GET", f"{prefix}/v1/models", headers={"Authorization": value})) == 200
    for path in ("/health", "/version"):
        assert status(client.request("GET", prefix + path)) == 200


def test_sizes(app: tuple[Any, str]) -> None:
    client, prefix = app
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    path = f"{prefix}/v1/completions"
    assert status(client.request("POST", path, headers=headers, content=b"x" * 1001)) == 413
    assert status(client.request("POST", path, headers=headers, content=b"x" * 1000)) == 400
    many = {**headers, **{f"x-{i}": "a" for i in range(101)}}
    assert status(client.request("POST", path, headers=many, content=b"{}")) == 431
    assert status(client.request("POST", path, headers={**headers, "x-a": "a" * 40_000}, content=b"{}")) == 431


def test_routes_of_others_stay_behind_the_gate(llm: LLM) -> None:
    """What a host adds to the application needs the key as well, and fails in the same form."""
    app = create_app(llm, CONFIG)

    @app.get("/extra")
    def extra(broken: bool = False) -> str:
        if broken:
            raise HTTPException(418, "a teapot", headers={"x-own": "1"})
        return "own"

    client = TestClient(app)
    keyed = {"Authorization": f"Bearer {KEY}"}
    assert client.get("/extra").status_code == 401
    found = client.get("/extra", headers={**keyed, "x-request-id": "mine"})
    assert (found.json(), found.headers["x-request-id"]) == ("own", "mine")
    broken = client.get("/extra?broken=true", headers=keyed)
    assert (broken.status_code, broken.headers["x-own"]) == (418, "1")
    assert broken.json()["error"]["message"] == "a teapot"
    assert client.post("/extra", headers=keyed).status_code == 405
    absent = client.get("/absent", headers=keyed)
    assert absent.status_code == 404
    assert "/absent" in absent.json()["error"]["message"]


def test_without_keys_all_is_open(llm: LLM) -> None:
    assert TestClient(create_app(llm)).get("/v1/models").status_code == 200


def test_host_is_checked_where_it_is_all_there_is(llm: LLM) -> None:
    client = TestClient(create_app(llm, ServerConfig(allowed_hosts=("localhost", "[::1]"))))
    for host, want in (
        ("localhost:81", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("", 403),
    ):
        assert client.get("/v1/models", headers={"Host": host}).status_code == want, host


def test_configuration_is_checked() -> None:
    with pytest.raises(InvalidRequestError):
        ServerConfig(api_keys=("",))
    with pytest.raises(InvalidRequestError):
        ServerConfig(metrics_compat="other")


def test_keys_do_not_share_the_prefix_cache(llm: LLM) -> None:
    client = TestClient(create_app(llm, CONFIG))
    body = {
        "prompt": "a shared beginning that is long enough to fill a block or two of the cache " * 3,
        "max_tokens": 1,
    }

    def cached(key: str, **more: object) -> int:
        found = client.post("/v1/completions", json={**body, **more}, headers={"Authorization": f"Bearer {key}"})
        return int(found.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached(KEY) == 0
    assert cached(KEY) > 0
    assert cached("another") == 0, "one caller's cache answers another's"
    assert cached("another") > 0
    assert cached(KEY, cache_salt="own") == 0
    assert cached(KEY, cache_salt="own") > 0


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith(("octavo.server.asgi", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingDependencyError, match=r"octavo\[server\]"):
        create_app()
