"""Routes of other packages, through the entry points `octavo.server_protocols`."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.server import ServerConfig, create_app, create_wsgi_app, discover
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.fields.requests import Strict
from octavo.server.http import Call, Reply, json_reply
from octavo.server.response import Response
from octavo.server.routes import Route, RouteTable
from starlette.testclient import TestClient
from werkzeug.test import Client

GREEDY = SamplingParams(max_tokens=4, temperature=0)


class ShoutRequest(Strict):
    """POST /shout"""

    text: str


class Shout(Response):
    """The generated text in capitals."""

    text = ""

    def feed(self, deltas: Any) -> bytes:
        self.text += "".join(sample.text for _, delta in deltas for sample in delta.outputs)
        return b""

    def reply(self) -> Reply:
        return json_reply({"text": self.text.upper()})


def shout(context: Context, call: Call) -> Response:
    request = context.read(ShoutRequest, call)
    return Shout(context.generate([(request.text, True, GREEDY)], stream=False), stream=False)


def taken(_context: Context, _call: Call) -> Reply:
    return json_reply({"status": "replaced"})


ROUTES = [
    Route("POST", "/shout", shout, "Generate in capitals", ShoutRequest),
    Route("GET", "/health", taken, "Not allowed"),
]


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("shout", f"{__name__}:ROUTES", discover.ENTRY_POINTS)
    monkeypatch.setattr(discover, "entry_points", lambda group: [point] if group == point.group else [])


@pytest.mark.usefixtures("_plugin")
def test_an_entry_point_adds_routes(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    want = {"text": llm.generate("Once", GREEDY)[0].text.upper()}
    with caplog.at_level(logging.WARNING, "octavo.server"):
        app = create_app(llm, ServerConfig(api_keys=("k",)))
    assert "/health" in caplog.text, "a route that is taken is named"
    key = {"authorization": "Bearer k"}
    with TestClient(app) as client:
        assert client.post("/shout", json={"text": "Once"}).status_code == 401, "it needs the key as all routes"
        assert client.post("/shout", json={"text": "Once"}, headers=key).json() == want
        assert client.post("/shout", json={"text": 1}, headers=key).json()["error"]["param"] == "text"
        assert client.get("/shout", headers=key).headers["allow"] == "POST"
        assert client.get("/health").json() == {"status": "ready"}
        document = client.get("/openapi.json", headers=key).json()
        assert document["paths"]["/shout"]["post"]["summary"] == "Generate in capitals"
        assert "ShoutRequest" in document["components"]["schemas"]
        assert 'path="/shout"' in client.get("/metrics", headers=key).text
    found = Client(create_wsgi_app(llm)).post("/shout", json={"text": "Once"})
    assert found.get_json() == want


def test_no_two_routes_of_a_path() -> None:
    paths = [(route.method, route.path) for route in discover.all_routes()]
    assert len(set(paths)) == len(paths)
    with pytest.raises(ValueError, match="same path"):
        RouteTable([ROUTES[0], ROUTES[0]])


def test_names_and_methods_in_paths() -> None:
    def handler(_context: Context, _call: Call) -> Reply:
        return Reply()

    paths = [("GET", "/a/{id}"), ("DELETE", "/a/{id}"), ("GET", "/a/{id}/items"), ("POST", "/a/count")]
    table = RouteTable([Route(method, path, handler, "") for method, path in paths])
    wanted = {
        "/a/x": "/a/{id}",
        "/a/x/items": "/a/{id}/items",
        "/a/count": "/a/count",
        "/a/b/c": "/a/{id}",
        "/a/": None,
    }
    for path, route in wanted.items():
        found = table.find(path)
        assert (found and found.path) == route, path
    assert table.handler("DELETE", "/a/x") is table.handler("HEAD", "/a/x/items") is handler
    with pytest.raises(ApiError) as refused:
        table.handler("POST", "/a/x")
    assert (refused.value.status, refused.value.headers) == (405, {"allow": "GET, DELETE"})
