"""The conformance test: the SDK and the simulator's own server pass it, and each broken rule is found by its case."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pytest
from octavo.errors import InvalidRequestError
from octavo.plugins import Deprecation, Limits, Plugin
from octavo.plugins.conformance import CASES, PluginTarget, Reply, TargetError, UrlTarget, check
from octavo.plugins.conformance.sample import sample
from octavo.plugins.validation import matches
from pydantic import BaseModel, Field


class Forecast(BaseModel):
    city: str
    highs: list[float]


def build() -> Plugin:
    plugin = Plugin("weather", version="2.0.0", limits=Limits(body_bytes=4096))

    @plugin.operation(since="1.0", aliases={"city": ["town"]})
    def get_forecast(city: str, days: Annotated[int, Field(ge=1, le=7)] = 3) -> Forecast:
        """The forecast for a city."""
        return Forecast(city=city, highs=[20.0] * days)

    @plugin.operation(since="1.0", deprecated=Deprecation(1_700_000_000, 1_900_000_000), consequential=True)
    def remind(text: str) -> int:
        """Sends a reminder."""
        raise AssertionError("the conformance test must not call an operation with consequences")

    return plugin


class Broken:
    """A conformant plugin behind a machine that changes some answers."""

    name = "broken"

    def __init__(self, change: Callable[[str, str, Mapping[str, str], Reply], Reply]) -> None:
        self._plugin = build()
        self._inner = PluginTarget(self._plugin)
        self._change = change

    def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        return self._change(method, path, sent, self._inner.send(method, path, headers, body))


@pytest.fixture(scope="module")
def plain() -> Any:
    plugin = build()
    yield check(PluginTarget(plugin))
    plugin.close()


def test_the_sdk_conforms(plain: Any) -> None:
    assert plain.level == 2
    assert plain.ok, plain.text()
    assert [r.title for r in plain.results if r.state == "skip"] == []


def test_the_report_names_each_case(plain: Any) -> None:
    assert len(plain.results) == len(CASES)
    assert plain.text().endswith(f"{len(CASES)} passed, 0 failed, 0 skipped")
    assert json.loads(json.dumps(plain.to_json()))["ok"] is True


def _json(reply: Reply, edit: Callable[[Any], Any]) -> Reply:
    value = reply.json()
    return Reply(reply.status, reply.headers, json.dumps(edit(value)).encode()) if value is not None else reply


def _without(reply: Reply, *names: str) -> Reply:
    return Reply(reply.status, {k: v for k, v in reply.headers.items() if k not in names}, reply.body)


def _with(reply: Reply, **headers: str) -> Reply:
    return Reply(reply.status, {**reply.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}, reply.body)


def _manifest(edit: Callable[[Any], Any]) -> Any:
    return lambda m, path, sent, reply: _json(reply, edit) if path.startswith(".well-known") else reply


def _code(code: str, answer: Callable[[Reply], Reply]) -> Any:
    return lambda m, path, sent, reply: answer(reply) if f"urn:octavo-plugin:{code}".encode() in reply.body else reply


def _echo(method: str, path: str, sent: Mapping[str, str], reply: Reply) -> Reply:
    return _with(reply, octavo_protocol=sent["octavo-protocol"]) if "octavo-protocol" in sent else reply


def _operations(change: dict[str, Any]) -> Any:
    return _manifest(lambda v: {**v, "operations": [{**entry, **change} for entry in v["operations"]]})


def _first_minor(method: str, path: str, sent: Mapping[str, str], reply: Reply) -> Reply:
    """Refuses minors that it does not have, and lists that it cannot read."""
    if sent.get("octavo-protocol", "1") in ("1", "999999", "1.0"):
        return reply
    return Reply(
        400, reply.headers, b'{"type": "urn:octavo-plugin:unsupported-version", "status": 400, "detail": "no"}'
    )


_counter = iter(range(1_000_000))
_ok = {"status": 200}
BREAKS: dict[str, Any] = {
    "P-MANIFEST-1": _manifest(lambda v: {k: x for k, x in v.items() if k != "majors"}),
    "P-MANIFEST-2": lambda m, p, s, reply: _without(reply, "etag"),
    "P-MANIFEST-3": _manifest(lambda v: {**v, "operations": v["operations"][:1]}),
    "P-MANIFEST-4": _manifest(lambda v: {**v, "health": "https://elsewhere.example/health"}),
    "P-MANIFEST-5": lambda m, p, s, reply: _json(reply, lambda v: {**v, "x": 1}) if p == "openapi.json" else reply,
    "P-VERSION-1": lambda m, p, s, reply: _with(reply, octavo_protocol="1.4"),
    "P-VERSION-2": lambda m, p, s, reply: reply if "octavo-protocol" in s else _with(reply, octavo_protocol="3.0"),
    "P-VERSION-3": _first_minor,
    "P-VERSION-4": _code("unsupported-version", lambda r: _json(r, lambda v: {**v, "supported": ["9.0"]})),
    "P-VERSION-5": _echo,
    "P-VERSION-6": lambda m, p, s, reply: Reply(400, reply.headers, b"{}") if "octavo-colour" in s else reply,
    "P-MAJOR-1": lambda m, p, s, reply: Reply(404, reply.headers, b"") if p.endswith("/remind") else reply,
    "P-MAJOR-3": _code("unknown-operation", lambda r: Reply(404, {"content-type": "text/html"}, b"<h1>Not found</h1>")),
    "P-INVOKE-1": lambda m, p, s, reply: _json(reply, lambda v: v.get("result", v)) if reply.status == 200 else reply,
    "P-INVOKE-2": _code("malformed-request", lambda r: Reply(500, r.headers, r.body)),
    "P-INVOKE-3": _code("invalid-arguments", lambda r: _json(r, lambda v: {**v, "errors": []})),
    "P-INVOKE-4": _code("invalid-arguments", lambda r: Reply(200, r.headers, b'{"result": {}}')),
    "P-INVOKE-5": _code("body-too-large", lambda r: Reply(422, r.headers, r.body)),
    "P-INVOKE-6": _code("method-not-allowed", lambda r: _without(r, "allow")),
    "P-PROBLEM-1": _code("unknown-operation", lambda r: _json(r, lambda v: {**v, "detail": ""})),
    "P-PROBLEM-2": _code("unsupported-version", lambda r: _json(r, lambda v: {**v, "status": 418})),
    "P-DIGEST-1": _operations({"digest": "sha256:" + "1" * 64}),
    "P-DIGEST-2": _code("schema-changed", lambda r: Reply(422, r.headers, r.body)),
    "P-DIGEST-3": _code("schema-changed", lambda r: _json(r, lambda v: {**v, "operation": None})),
    "P-DIGEST-4": lambda m, p, s, reply: _with(reply, octavo_digest=s.get("octavo-digest", "sha256:0")),
    "P-DIGEST-5": lambda m, p, s, reply: Reply(400, reply.headers, b"{}")
    if m == "POST" and p != "mcp" and "octavo-digest" not in s
    else reply,
    "P-ALIAS-1": _operations({"aliases": {"city": ["days"]}}),
    "P-IDEMPOTENCY-1": lambda m, p, s, reply: _json(reply, lambda v: {**v, "n": next(_counter)})
    if "idempotency-key" in s
    else reply,
    "P-IDEMPOTENCY-2": lambda m, p, s, reply: Reply(200, reply.headers, reply.body)
    if "idempotency-key" in s and reply.status == 422
    else reply,
    "P-DEPRECATION-1": lambda m, p, s, reply: _with(reply, deprecation="true")
    if "deprecation" in reply.headers
    else reply,
    "P-DEPRECATION-2": lambda m, p, s, reply: _with(reply, sunset="Sun, 06 Nov 1994 08:49:37 GMT")
    if "sunset" in reply.headers
    else reply,
    "P-MCP-1": lambda m, p, s, reply: _json(reply, lambda v: {**v, "result": {**v["result"], "tools": []}})
    if p == "mcp"
    else reply,
}  # fmt: skip


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_found(rule: str) -> None:
    report = check(Broken(BREAKS[rule]))
    assert rule in {name for result in report.failed for name in result.ids}, report.text()


def test_every_case_can_fail() -> None:
    assert {name for case in CASES for name in case.ids} == set(BREAKS)


def test_level_1_is_not_held_to_level_2() -> None:
    def level_1(method: str, path: str, sent: Mapping[str, str], reply: Reply) -> Reply:
        reply = _without(reply, "octavo-digest")
        if path.startswith(".well-known") and reply.status == 200:
            entries = [{k: v for k, v in e.items() if k != "digest"} for e in reply.json()["operations"]]
            return _json(reply, lambda v: {**v, "operations": entries})
        return reply

    report = check(Broken(level_1))
    assert report.level == 1
    assert report.ok, report.text()
    assert any(r.state == "skip" and "P-DIGEST-1" in r.ids for r in report.results)


def test_a_service_without_a_manifest_is_level_0() -> None:
    report = check(Broken(lambda m, p, s, reply: Reply(404, {}, b"")))
    assert report.level == 0
    assert [r.ids for r in report.failed] == [("P-MANIFEST-1",), ("P-MANIFEST-2",)]


def test_nothing_with_consequences_runs_when_calls_are_off() -> None:
    plugin = build()
    report = check(PluginTarget(plugin), call=False)
    skipped = {r.ids[0] for r in report.results if r.state == "skip"}
    assert skipped == {"P-INVOKE-1", "P-INVOKE-3", "P-VERSION-5", "P-DIGEST-4", "P-DIGEST-5", "P-IDEMPOTENCY-1"}
    plugin.close()


def test_a_silent_port_is_one_error() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TargetError, match="Does it run"):
            check(UrlTarget(url))


@pytest.mark.parametrize("url", ["ftp://x", "localhost:80", "http://", "http://user:pass@x/", "http://[::1"])
def test_bad_urls_are_named(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="URL"):
        UrlTarget(url)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3},
        {"type": "integer", "exclusiveMinimum": 3, "multipleOf": 5},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "maximum": -2.5},
        {"type": "string", "minLength": 9, "maxLength": 9},
        {"type": "string", "format": "date"},
        {"enum": ["a", "b"]},
        {"const": 0},
        {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        {"type": ["null", "string"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]},
        {"type": "integer", "examples": [7], "minimum": 5},
    ],
)
def test_samples_fit(schema: dict[str, Any]) -> None:
    made = sample(schema)
    assert made is not None
    assert matches(schema, made)


def test_no_sample_rather_than_a_wrong_one() -> None:
    assert sample({"type": "string", "pattern": "^[0-9]{12}$"}) is None
