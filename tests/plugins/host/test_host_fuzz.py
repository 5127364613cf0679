"""No manifest, document or answer, however malformed, makes the host raise, hang or send to another origin."""

from __future__ import annotations

import copy
import json
import random
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.plugins.host import HttpAnswer, HttpRequest, PluginHost, PluginSource, TransportError
from octavo.plugins.host.outcome import Status
from raw_server import DIGEST, document, manifest

BASE = "http://127.0.0.1:9/w/"
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 10**30, "", "x", "..", "/", "//evil.example/x", "http://evil.example/", "#/a",
    "#/components/schemas/A", "\u0000", "\ud800", "sha256:", [], {}, [None], {"": None}, {"$ref": "#"},
    {"$ref": "#/paths"}, {"type": "object"}, {"type": "nonsense"}, {"type": ["string", "null"]}, {"properties": 3},
    {"properties": {"a": 3}}, {"required": "city"}, {"anyOf": []}, {"anyOf": [3]}, {"items": [{}]}, {"pattern": "("},
    {"minimum": "a"}, {"enum": 3}, {"aliases": {"city": "town"}}, {"default": {"a": [1]}}, [[[[]]]],
    {"application/json": {"schema": {"$ref": "#/nope"}}},
]  # fmt: skip


def mutate(value: Any, rng: random.Random) -> Any:
    """The value with one to three of its parts replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        spots: list[tuple[Any, Any]] = []
        todo = [value]
        while todo:
            part = todo.pop()
            keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
            spots += [(part, key) for key in keys]
            todo += [part[key] for key in keys]
        if not spots:
            return rng.choice(ODD)
        part, key = rng.choice(spots)
        what = rng.random()
        if what < 0.7:
            part[key] = copy.deepcopy(rng.choice(ODD))
        elif what < 0.85 or isinstance(part, list):
            del part[key]
        else:
            part[str(rng.choice(["$ref", "town", "type", "x"]))] = part[key]
    return value


def plain_document() -> dict[str, Any]:
    """Operations without the protocol, with each kind of parameter."""
    made = document()
    made["servers"] = [{"url": "/w/{v}", "variables": {"v": {"default": "v1"}}}]
    made["components"] = {"schemas": {"A": {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/A"}}}}}
    made["paths"]["/items/{id}"] = {
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "get": {
            "operationId": "item",
            "parameters": [
                {"name": "tags", "in": "query", "schema": {"type": "array"}, "explode": False},
                {"name": "deep", "in": "query", "schema": {"type": "object"}, "style": "deepObject"},
                {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
            ],
            "responses": {"200": {"content": {"application/json": {"schema": {"type": "object"}}}}},
        },
        "put": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}},
    }
    return made


class Fuzzed:
    """Answers that began as valid ones."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.requests = 0
        level = rng.random()
        self._manifest = manifest() if level < 0.6 else None
        self._document = document() if level < 0.5 else plain_document()

    def _maybe(self, value: Any) -> bytes:
        if self._rng.random() < 0.6:
            value = mutate(value, self._rng)
        data = json.dumps(value).encode()
        return data[: self._rng.randint(0, len(data))] if self._rng.random() < 0.05 else data

    def send(self, request: HttpRequest) -> HttpAnswer:
        assert request.url.startswith("http://127.0.0.1:9/"), request.url
        assert "\r" not in request.url + str(dict(request.headers))
        self.requests += 1
        assert self.requests < 100
        rng = self._rng
        kinds = ("refused", "connect", "timeout", "broken", "too_large", "protocol")
        if rng.random() < 0.05:
            raise TransportError(rng.choice(kinds), "it failed", sent=rng.random() < 0.5)
        headers = {"content-type": rng.choice(["application/json"] * 9 + ["application/problem+json", "text/html", ""])}
        if request.method == "GET" and request.url.endswith("octavo-plugin.json"):
            status = 404 if self._manifest is None else rng.choice([200] * 9 + [304, 500])
            return HttpAnswer(status, headers | {"etag": "x"}, self._maybe(self._manifest))
        if request.method == "GET" and request.url.endswith("openapi.json"):
            return HttpAnswer(rng.choice([200] * 9 + [304, 302, 503]), headers, self._maybe(self._document))
        headers |= rng.choice([{"octavo-protocol": "1.0", "octavo-digest": DIGEST}, {}, {"octavo-protocol": "1"}])
        headers |= rng.choice([{}, {"retry-after": "1"}, {"retry-after": "soon"}, {"location": "/x"}, {"sunset": "x"}])
        entry = {**manifest()["operations"][0], "digest": "sha256:1", "arguments": {"type": "object"}, "result": {}}
        body = rng.choice(
            [
                {"result": {"a": 1}, "warnings": ["w"]},
                {"type": "urn:octavo-plugin:schema-changed", "status": 409, "digest": "x", "operation": entry},
                {"type": "urn:octavo-plugin:unsupported-version", "status": 400, "supported": ["1.0"]},
                {"type": "urn:octavo-plugin:unknown-operation", "status": 404, "nearest": ["get"]},
                {"type": "urn:octavo-plugin:invalid-arguments", "errors": [{"pointer": "/a", "detail": "b"}]},
            ]
        )
        status = rng.choice([200, 200, 200, 201, 204, 206, 301, 307, 400, 401, 404, 409, 413, 418, 422, 429, 500, 503])
        if status >= 400 and rng.random() < 0.8:
            headers["content-type"] = "application/problem+json"
        return HttpAnswer(status, headers, self._maybe(body))


ARGUMENTS: list[Any] = [
    {"city": "x"}, {"town": "x"}, {}, {"city": "x", "days": "2"}, None, [], "x", {"city": float("nan")}, {"city": {1}},
    {"id": "a", "tags": ["x"], "deep": {"a": 1}}, {"id": "..", "X-Trace": "a\r\nb"}, {"id": "\ud800"}, {1: 2},
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64))
def test_the_host_ends_each_call_with_a_typed_outcome(seed: int) -> None:
    rng = random.Random(seed)
    now = [0.0]

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        now[0] += seconds

    transport = Fuzzed(rng)
    source = PluginSource(BASE, approval=rng.choice(["never", "consequential"]))
    with PluginHost({"w": source}, transport=transport, clock=lambda: now[0], sleep=sleep, random=rng.random) as host:
        for _ in range(3):
            transport.requests = 0
            tools = host.tools()
            assert tools or tools.missing or host.health()["w"]["level"] is not None
            name = rng.choice([*(tool.name for tool in tools), "w__get", "w__item", "w__nothing"])
            digest = rng.choice([None, *(tool.digest for tool in tools)])
            done = host.call(name, rng.choice(ARGUMENTS), digest=digest, approved=rng.random() < 0.5)
            assert done.status in get_args(Status)
            assert "the host failed" not in done.text, done.text
            assert done.ok == (done.error is None)
            assert done.ok or (done.text and done.error is not None and done.error.detail)
            json.dumps([done.content, done.text, done.schema, list(done.warnings)], ensure_ascii=False).encode()
            assert done.seconds <= source.timeout
            host.health()
            now[0] += rng.choice([0.0, 1.0, 400.0])
