"""Calls survive new releases of a plugin made with the SDK: digests, aliases, API majors, protocol versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from octavo.plugins import Plugin, Request
from octavo.plugins.host import HttpAnswer, HttpRequest, PluginHost, PluginSource, Tool
from raw_server import OWN, RawServer, http, manifest, ok, problem

BASE = "http://127.0.0.1:9/weather/"


class InProcess:
    """The host's transport to a plugin in this process. `plugin` may be replaced: a deployment."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.seen: list[HttpRequest] = []

    def send(self, request: HttpRequest) -> HttpAnswer:
        self.seen.append(request)
        path = "/" + request.url.removeprefix(BASE)
        answer = self.plugin.handle(Request(request.method, path, dict(request.headers), request.body or b""))
        return HttpAnswer(answer.status, {k.lower(): v for k, v in dict(answer.headers).items()}, answer.body)


def first() -> Plugin:
    plugin = Plugin("weather", version="1.0.0")

    @plugin.operation(since="1.0")
    def forecast(town: str, days: int = 3) -> dict[str, Any]:
        """The forecast."""
        return {"city": town, "days": days}

    @plugin.operation(since="1.0", consequential=True)
    def alarm(town: str) -> str:
        return town

    return plugin


def renamed() -> Plugin:
    plugin = Plugin("weather", version="1.1.0")

    @plugin.operation(since="1.0", aliases={"city": ["town"]})
    def forecast(city: str, days: int = 5, unit: str = "C") -> dict[str, Any]:
        """The forecast."""
        return {"city": city, "days": days, "unit": unit}

    @plugin.operation(since="1.0", consequential=True, aliases={"city": ["town"]})
    def alarm(city: str) -> str:
        return city

    return plugin


def second(*, converts: bool) -> Plugin:
    plugin = Plugin("weather", version="2.0.0")

    @plugin.operation(since="1.0" if converts else "2.0")
    def forecast(place: str, hours: int) -> dict[str, Any]:
        """The forecast."""
        return {"place": place, "hours": hours}

    if converts:

        @plugin.convert(major=1, name="forecast")
        def forecast_1(town: str, days: int = 3) -> dict[str, Any]:
            return {"place": town, "hours": days * 24}

    return plugin


@pytest.fixture
def wire() -> InProcess:
    return InProcess(first())


@pytest.fixture
def host(wire: InProcess) -> PluginHost:
    return PluginHost({"w": BASE}, transport=wire, sleep=lambda _: None)


def tool_of(host: PluginHost, operation: str) -> Tool:
    return next(tool for tool in host.tools() if tool.operation == operation)


def test_a_call_of_the_sdks_plugin(host: PluginHost, wire: InProcess) -> None:
    tools = {tool.operation: tool for tool in host.tools()}
    assert host.health()["w"]["level"] == 2
    assert host.health()["w"]["notes"] == []
    done = host.call("w__forecast", {"town": "Corrin"}, digest=tools["forecast"].digest)
    assert (done.content, done.repairs, done.version) == ({"city": "Corrin", "days": 3}, (), "1.0.0")
    assert tools["alarm"].consequential
    assert host.call("w__alarm", {"town": "x"}).status == "approval_required"
    assert host.call("w__alarm", {"town": "x"}, approved=True).content == "x"


def test_a_renamed_argument_is_repaired_with_one_more_request(host: PluginHost, wire: InProcess) -> None:
    tool = tool_of(host, "forecast")
    wire.plugin = renamed()
    done = host.call("w__forecast", {"town": "Corrin"}, digest=tool.digest)
    assert done.content == {"city": "Corrin", "days": 3, "unit": "C"}
    assert [(r.kind, r.pointer, r.after) for r in done.repairs] == [
        ("rename", "/town", "Corrin"),
        ("default", "/days", 3),
    ]
    assert done.requests == 2
    assert done.arguments == {"city": "Corrin", "days": 3}
    # The host has the new schema now, from the plugin's own answer.
    again = host.call("w__forecast", {"town": "Corrin"}, digest=tool.digest)
    assert (again.requests, len(again.repairs)) == (1, 2)
    assert wire.seen[-1].headers["Octavo-Digest"] == done.digest != tool.digest


def test_what_has_consequences_waits_for_new_arguments(host: PluginHost, wire: InProcess) -> None:
    tool = tool_of(host, "alarm")
    wire.plugin = renamed()
    done = host.call("w__alarm", {"town": "x"}, digest=tool.digest, approved=True)
    assert (done.status, done.sent, done.repairs) == ("schema_changed", False, ())
    assert done.schema is not None
    assert list(done.schema["properties"]) == ["city"]
    # Arguments under that schema, with its digest, are right.
    assert host.call("w__alarm", {"city": "x"}, digest=done.digest, approved=True).content == "x"


def test_an_older_major_goes_on_through_its_converter(host: PluginHost, wire: InProcess) -> None:
    tool = tool_of(host, "forecast")
    wire.plugin = second(converts=True)
    done = host.call("w__forecast", {"town": "Corrin"}, digest=tool.digest)
    assert (done.status, done.content) == ("ok", {"place": "Corrin", "hours": 72})
    assert wire.seen[-1].url == BASE + "v1/invoke/forecast"
    # Who asks again sees the new major.
    assert list(host.refresh("w")[0].parameters["properties"]) == ["place", "hours"]
    assert host.call("w__forecast", {"place": "Corrin", "hours": 2}).content == {"place": "Corrin", "hours": 2}
    # And the old arguments still go to the old major.
    assert host.call("w__forecast", {"town": "x"}, digest=tool.digest).content == {"place": "x", "hours": 72}


def test_a_major_that_is_gone_gives_the_new_schema(host: PluginHost, wire: InProcess) -> None:
    tool = tool_of(host, "forecast")
    wire.plugin = second(converts=False)
    done = host.call("w__forecast", {"town": "Corrin"}, digest=tool.digest)
    assert (done.status, done.sent) == ("schema_changed", False)
    assert done.schema is not None
    assert set(done.schema["properties"]) == {"place", "hours"}


def test_a_pinned_major(wire: InProcess) -> None:
    wire.plugin = second(converts=True)
    with PluginHost({"w": PluginSource(BASE, api=1)}, transport=wire) as host:
        assert list(host.tools()[0].parameters["properties"]) == ["town", "days"]
        assert host.call("w__forecast", {"town": "x", "days": 1}).content == {"place": "x", "hours": 24}
    with PluginHost({"w": PluginSource(BASE, api=7)}, transport=wire) as host:
        assert host.tools() == []


def test_arguments_under_a_schema_that_was_never_shown(host: PluginHost) -> None:
    done = host.call("w__forecast", {"town": "x"}, digest="sha256:" + "0" * 64)
    assert (done.status, done.sent) == ("schema_changed", False)
    assert done.schema is not None


def test_only_listed_operations(wire: InProcess) -> None:
    with PluginHost({"w": PluginSource(BASE, operations=["forecast"], approval="never")}, transport=wire) as host:
        assert [tool.operation for tool in host.tools()] == ["forecast"]
        assert host.call("w__alarm", {"town": "x"}).status == "unknown_operation"
    with PluginHost({"w": PluginSource(BASE, approval="always")}, transport=wire) as host:
        assert host.call("w__forecast", {"town": "x"}).status == "approval_required"


def test_the_sdks_plugin_under_uvicorn(serve: Callable[[Any], str]) -> None:
    from fastapi import FastAPI

    plugin, app = renamed(), FastAPI()
    app.mount("/weather", plugin.asgi_app)
    with PluginHost({"w": serve(app) + "/weather"}) as host:
        done = host.call("w__forecast", {"city": "Corrin"})
        assert (done.content, done.warnings) == ({"city": "Corrin", "days": 5, "unit": "C"}, ())
        assert host.health()["w"]["level"] == 2
    plugin.close()


# What other servers, caches and proxies do to the protocol.


@pytest.fixture
def raw(server: RawServer) -> PluginHost:
    return PluginHost({"w": server.url}, sleep=lambda _: None)


GOOD = {"city": "Corrin"}


def test_a_higher_minor_and_unknown_members_are_no_reason(raw: PluginHost, server: RawServer) -> None:
    assert server.manifest is not None
    server.manifest["octavo_plugin"] = {"protocol": {"1": 9, "3": 0}, "colour": "blue"}
    server.manifest["paint"] = {"a": 1}
    server.answers = [ok(1, OWN.replace("1.0", "1.9") + "Octavo-Paint: blue\r\n")]
    done = raw.call("w__get", GOOD)
    assert (done.status, done.requests) == ("ok", 3)
    raw.close()


def test_no_common_protocol(raw: PluginHost, server: RawServer) -> None:
    assert server.manifest is not None
    server.manifest["octavo_plugin"] = {"protocol": {"7": 0}}
    done = raw.call("w__get", GOOD)
    assert (done.status, done.sent, server.posts) == ("unsupported_version", False, [])
    assert "7.0" in done.text
    raw.close()


def test_one_downgrade(server: RawServer) -> None:
    assert server.manifest is not None
    server.manifest["octavo_plugin"] = {"protocol": {"1": 0, "2": 4}}
    refusal = problem(400, "unsupported-version", supported=["1.0"])
    server.answers = [refusal, ok(1)]
    with PluginHost({"w": server.url}, protocols={1: 0, 2: 0}) as host:
        assert host.call("w__get", GOOD).ok
        assert [headers["octavo-protocol"] for _, headers, _ in server.posts] == ["2", "1.0"]
        # It is remembered.
        assert host.call("w__get", GOOD).ok
        assert server.posts[-1][1]["octavo-protocol"] == "1.0"
        server.answers = [refusal]
        done = host.call("w__get", GOOD)
        assert done.status == "unsupported_version"
        assert len(server.posts) == 5


def test_an_untyped_400_is_no_problem_of_versions(raw: PluginHost, server: RawServer) -> None:
    server.answers = [http(400, b'{"detail": "unsupported-version"}', OWN)]
    done = raw.call("w__get", GOOD)
    assert done.status == "invalid_arguments"
    raw.close()


ECHOES = {
    "echoed": lambda: "Octavo-Protocol: 1\r\n",
    "missing": lambda: "",
    "of another major": lambda: "Octavo-Protocol: 5.0\r\n",
    "a list": lambda: "Octavo-Protocol: 1.0, 2.0\r\n",
}


# What ran under another schema must not run twice: only an idempotent operation is offered to the model again.
AGAIN = [(True, "schema_changed"), (False, "bad_response")]


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize(("idempotent", "status"), AGAIN)
def test_an_answer_without_the_plugins_own_version_is_of_level_0(
    raw: PluginHost, server: RawServer, name: str, idempotent: bool, status: str
) -> None:
    server.manifest = manifest(idempotent=idempotent)
    server.answers = [ok(1, ECHOES[name]())]
    raw.tools()
    done = raw.call("w__get", GOOD)
    assert done.ok
    # The document was asked: the digest was not checked.
    assert server.gets[-1] == "/openapi.json"
    assert any("Octavo-Protocol" in w or "headers" in w for w in done.warnings)
    # And where it shows another schema, the result does not count.
    schema = server.document["paths"]["/v1/invoke/get"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    changed = json.loads(json.dumps(schema["properties"]["arguments"]))
    changed["properties"]["city"] = {"type": "string", "description": "Another.", "maxLength": 90}
    schema["properties"]["arguments"] = changed
    done = raw.call("w__get", GOOD)
    assert (done.status, done.content, done.schema is not None) == (status, None, idempotent)
    raw.close()


@pytest.mark.parametrize(("idempotent", "status"), AGAIN)
def test_a_success_under_another_digest_does_not_count(
    raw: PluginHost, server: RawServer, idempotent: bool, status: str
) -> None:
    server.manifest = manifest(idempotent=idempotent)
    raw.tools()
    server.answers = [ok(1, "Octavo-Protocol: 1.0\r\nOctavo-Digest: sha256:77\r\n")]
    done = raw.call("w__get", GOOD)
    assert (done.status, done.content, done.sent) == (status, None, True)
    raw.close()


def test_a_409_without_a_schema_leads_to_the_document(raw: PluginHost, server: RawServer) -> None:
    raw.tools()
    server.answers = [problem(409, "schema-changed", digest="sha256:77"), ok(1)]
    done = raw.call("w__get", GOOD)
    # The document is the same: the plugin refuses its own schema once more, or not.
    assert done.ok
    assert len(server.gets) == 4
    server.answers = [problem(409, "schema-changed", digest="sha256:77")]
    assert raw.call("w__get", GOOD).status == "schema_changed"
    raw.close()


def test_a_manifest_that_is_no_manifest_is_level_0(raw: PluginHost, server: RawServer) -> None:
    server.manifest = {"name": "something else"}
    server.document["paths"]["/things"] = {"get": {"operationId": "things", "responses": {}}}
    assert "w__things" in [tool.name for tool in raw.tools()]
    assert raw.health()["w"]["level"] == 0
    raw.close()


def test_a_broken_manifest_is_named(raw: PluginHost, server: RawServer) -> None:
    server.manifest = {"octavo_plugin": {"protocol": {"1": 0}}, "name": "w", "operations": "none"}
    problem_ = raw.tools().missing["w"]
    assert problem_.code == "bad-response"
    assert "operations" in problem_.detail
    raw.close()
