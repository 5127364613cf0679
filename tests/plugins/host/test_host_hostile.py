"""A service that wants to do harm: odd redirects, deep and infinite values, schemas that take very long to check."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from octavo.errors import InvalidRequestError
from octavo.plugins.host import Outcome, PluginHost, PluginSource, Secret
from octavo.plugins.host.breaker import FAILURES
from octavo.plugins.host.transport import HttpAnswer, HttpRequest, HttpTransport
from raw_server import RawServer, document, http, manifest, ok, problem, raw_server

GOOD = {"city": "Corrin"}
LOCATIONS = [
    "http://[",
    "http://[::1",
    "//[",
    "/\xfc",
    "http://\xe9.example/",
    "/a b",
    "http://127.0.0.1:abc/",
    "\x7f",
    "?",
]


@pytest.fixture
def two(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PluginHost, RawServer]]:
    """A host with the plugin `w`, beside another one that does nothing wrong; `w` gets a secret."""
    monkeypatch.setenv("W_TOKEN", "s3cr3t-value")
    headers = {"Authorization": Secret.env("W_TOKEN", prefix="Bearer ")}
    with raw_server() as other:
        sources = {"w": PluginSource(server.url, headers=headers), "good": PluginSource(other.url)}
        with PluginHost(sources, sleep=lambda seconds: None) as host:
            yield host, server


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_redirect_that_cannot_be_read(two: tuple[PluginHost, RawServer], location: str) -> None:
    host, server = two
    found = http(307, b"").replace(b"\r\n\r\n", b"\r\nLocation: " + location.encode("latin-1") + b"\r\n\r\n")
    server.answers = [found]
    assert host.call("w__get", GOOD).status in ("refused", "bad_response")
    server._get = lambda path: found  # type: ignore[method-assign]
    tools = host.refresh()
    assert [tool.name for tool in tools] == ["good__get"]
    assert tools.missing["w"].code in ("refused", "bad-response")


def test_a_redirect_may_have_characters_outside_ascii(two: tuple[PluginHost, RawServer]) -> None:
    host, server = two
    redirect = http(307, b"").replace(b"\r\n\r\n", "\r\nLocation: /v1/über?q=é\r\n\r\n".encode())
    server.answers = [redirect, ok(1)]
    assert host.call("w__get", GOOD).content == 1
    assert server.posts[-1][0] == "/v1/%C3%BCber?q=%C3%A9"


def test_a_document_whose_url_cannot_be_read(server: RawServer) -> None:
    with PluginHost({"w": PluginSource(server.url, openapi="http://[")}) as host:
        assert host.tools().missing["w"].code == "refused"


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("levels", [99, 100, 400, 600, 900])
def test_a_deep_answer(two: tuple[PluginHost, RawServer], levels: int) -> None:
    host, server = two
    server.answers = [http(200, f'{{"result": {nested(levels)}}}'.encode())]
    done = host.call("w__get", GOOD)
    assert (done.status, "deep" in done.text) == (("ok", False) if levels < 100 else ("bad_response", True))
    server.answers = [
        http(
            500,
            f'{{"type": "urn:octavo-plugin:internal", "more": {nested(levels)}}}'.encode(),
            kind="application/problem+json",
        )
    ]
    assert host.call("w__get", GOOD).status == "internal"


def test_a_deep_document(two: tuple[PluginHost, RawServer]) -> None:
    host, server = two
    server.document = json.loads(json.dumps(document()).replace('"default": 3', f'"default": {nested(300)}'))
    tools = host.tools()
    assert [tool.name for tool in tools] == ["good__get"]
    assert "nests deeper than 200 levels" in tools.missing["w"].detail


@pytest.mark.parametrize("number", ["1e999", "-1e999", '[1, {"a": 1e400}]'])
def test_infinity_never_reaches_the_model(two: tuple[PluginHost, RawServer], number: str) -> None:
    host, server = two
    server.answers = [http(200, f'{{"result": {number}}}'.encode())]
    done = host.call("w__get", GOOD)
    assert (done.status, done.content) == ("bad_response", None)


# --- time on the processor ------------------------------------------------------------------------------------------


class Ticks:
    """A clock of its own: a millisecond passes with each look at it, however fast the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def slow(levels: int) -> dict[str, Any]:
    """A schema whose check takes 2 ** levels steps for a value of so many levels."""
    again = {"properties": {"a": {"$ref": "#/components/schemas/Slow"}}}
    return {"type": "object", "anyOf": [again, {**again, "title": "the same"}], "properties": {"b": {"const": 1}}}


def chain(levels: int) -> Any:
    value: Any = {"b": 2}
    for _ in range(levels):
        value = {"a": value}
    return value


def with_result(server: RawServer, schema: Any, value: Any) -> None:
    found = document()
    found["components"] = {"schemas": {"Slow": schema}}
    operation = found["paths"]["/v1/invoke/get"]["post"]
    media = operation["responses"]["200"]["content"]["application/json"]
    media["schema"]["properties"]["result"] = {"$ref": "#/components/schemas/Slow"}
    server.document = found
    # Without digests the host has no doubt which schema is meant.
    server.manifest = manifest(digest="")
    server.answers = [ok(value)]


RESULTS: dict[str, tuple[Any, Any]] = {
    "branches": (slow(0), chain(60)),
    "values that are many times one of many": (
        {"items": {"enum": [f"x{i}" for i in range(9000)]}},
        ["x8999"] * 9000,
    ),
    "many properties of many values": (
        {"items": {"properties": {f"p{i}": {} for i in range(9000)}}},
        [{}] * 9000,
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_check_of_a_result_ends_at_the_deadline(server: RawServer, name: str) -> None:
    clock = Ticks()
    with_result(server, *RESULTS[name])
    with PluginHost({"w": PluginSource(server.url, timeout=0.5)}, clock=clock) as host:
        done = host.call("w__get", GOOD)
    assert done.ok
    assert done.warnings[0] == "the result was not checked against the operation's schema: it takes too long"
    assert clock.now < 1.0


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        ({"uniqueItems": True}, [[i, {"k": 1.0}] for i in range(30_000)], None),
        ({"uniqueItems": True}, [*range(3000), 2999.0], "must differ"),
        ({"uniqueItems": True}, [1, True, "1", None, [], {}], None),
        (
            {"type": "object", "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
            {"a" * 5000 + "!": 1},
            "unexpected",
        ),
        ({"type": "object", "propertyNames": {"pattern": "^(a|a)*$"}}, {"a" * 5000 + "!": 1}, "does not match"),
    ],
)
def test_checks_take_linear_time(server: RawServer, schema: Any, value: Any, text: str | None) -> None:
    """Each of these takes hours, or seconds, where it is checked naively."""
    with_result(server, schema, value)
    with PluginHost({"w": PluginSource(server.url, timeout=5.0)}, clock=Ticks()) as host:
        done = host.call("w__get", GOOD)
    assert done.ok
    assert [warning for warning in done.warnings if "check" in warning] == []
    assert any("does not fit" in w and str(text) in w for w in done.warnings) is (text is not None)


def test_patterns_beside_unevaluated_properties_are_refused(server: RawServer) -> None:
    """jsonschema would match them by Python's `re`, which may never end."""
    with_result(
        server,
        {"type": "object", "unevaluatedProperties": False, "allOf": [{"patternProperties": {"(a+)+$": {}}}]},
        {"a" * 50 + "!": 1},
    )
    with PluginHost({"w": PluginSource(server.url)}) as host:
        done = host.call("w__get", GOOD)
    assert done.ok
    assert "use one of the two" in done.warnings[0]


def many_definitions(count: int) -> dict[str, Any]:
    """Each definition refers to all the others."""
    refs = [{"$ref": f"#/components/schemas/S{i}"} for i in range(count)]
    return {f"S{i}": {"anyOf": refs} for i in range(count)}


def test_the_reading_of_a_document_ends_at_the_deadline(server: RawServer) -> None:
    found = document()
    found["components"] = {"schemas": many_definitions(300)}
    operation = {
        "operationId": "x",
        "parameters": [{"name": "q", "in": "query", "schema": {"$ref": "#/components/schemas/S0"}}],
    }
    found["paths"] |= {f"/x{i}": {"get": {**operation, "operationId": f"x{i}"}} for i in range(400)}
    server.document, server.manifest = found, None
    clock = Ticks()
    with PluginHost({"w": PluginSource(server.url, timeout=1.0)}, clock=clock) as host:
        problem_ = host.tools().missing["w"]
    assert (problem_.code, clock.now < 2.0) == ("timeout", True)
    assert "operations=[...]" in problem_.detail
    # The remedy helps.
    only = PluginSource(server.url, timeout=1.0, operations=["get"])
    with PluginHost({"w": only}, clock=Ticks()) as host:
        assert [tool.name for tool in host.tools()] == ["w__get"]


def test_a_documents_server_cannot_grow_without_end(server: RawServer) -> None:
    found = document()
    names = [f"v{i}" for i in range(60)]
    variables = {a: {"default": f"{{{b}}}{{{b}}}"} for a, b in itertools.pairwise(names)}
    found["servers"] = [{"url": "/{v0}", "variables": variables}]
    found["paths"]["/plain"] = {"get": {"operationId": "plain"}}
    server.document, server.manifest = found, None
    with PluginHost({"w": server.url}) as host:
        assert "w__plain" in [tool.name for tool in host.tools()]
        assert any("server" in note for note in host.health()["w"]["notes"])


# --- the own clock, the breaker, the end ----------------------------------------------------------------------------


def test_the_default_transport_keeps_to_the_hosts_clock(server: RawServer) -> None:
    now = [5.0]
    with PluginHost({"w": PluginSource(server.url, timeout=3.0)}, clock=lambda: now[0]) as host:
        assert host.call("w__get", GOOD).ok

        def late(connection: Any) -> None:
            now[0] += 100.0
            connection.sendall(b"HTTP/1.1 200 X\r\n")
            server.stop.wait(30)

        server.answers = [late]
        done = host.call("w__get", GOOD)
        assert (done.status, done.sent) == ("timeout", True)


def test_a_deadline_that_is_over_sends_nothing() -> None:
    transport = HttpTransport(clock=lambda: 50.0)
    with pytest.raises(Exception, match="over") as error:
        transport.send(HttpRequest("GET", "http://127.0.0.1:1/", {}, deadline=49.0))
    transport.close()
    assert error.value.sent is False  # type: ignore[attr-defined]


def test_calls_that_sent_nothing_say_nothing_of_the_plugin(server: RawServer) -> None:
    with PluginHost({"w": server.url}, sleep=lambda seconds: None, clock=lambda: 0.0) as host:
        host.tools()
        server.answers = [http(503, b"", kind="text/plain")]
        for _ in range(FAILURES):
            assert host.call("w__get", {"city": 7}).status == "invalid_arguments"
            assert host.call("w__get", GOOD).status == "unavailable"
        assert host.health()["w"]["circuit"] == "open"


def test_a_probe_that_sent_nothing_leaves_the_next_call_to_probe(server: RawServer) -> None:
    now = [0.0]
    with PluginHost({"w": server.url}, sleep=lambda seconds: None, clock=lambda: now[0]) as host:
        host.tools()
        server.answers = [http(503, b"", kind="text/plain")]
        for _ in range(FAILURES):
            host.call("w__get", GOOD)
        now[0] = 20.0
        assert host.call("w__get", {"city": 7}).status == "invalid_arguments"
        assert host.health()["w"]["circuit"] == "half-open"
        server.answers = [ok(1)]
        assert host.call("w__get", GOOD).ok
        assert host.health()["w"]["circuit"] == "closed"


def test_a_host_that_is_closed_starts_no_threads(server: RawServer) -> None:
    async def run() -> None:
        host = PluginHost({"w": server.url})
        state = host._states["w"]
        resolve = host._resolve

        def closing(name: str) -> tuple[str, str]:
            found = resolve(name)
            host.close()
            return found

        host._resolve = closing  # type: ignore[method-assign]
        with pytest.raises(InvalidRequestError, match="closed"):
            await host.acall("w__get", GOOD)
        assert state._executor is None

    asyncio.run(run())


def test_a_call_that_waits_when_the_host_is_closed(server: RawServer) -> None:
    async def run() -> list[Outcome | BaseException]:
        host = PluginHost({"w": PluginSource(server.url, concurrency=1, timeout=60.0)})
        begun, release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def wait(connection: Any) -> None:
            loop.call_soon_threadsafe(begun.set)
            release.wait(60)
            connection.sendall(ok(1))

        server.answers = [wait]
        calls = [asyncio.create_task(host.acall("w__get", GOOD)) for _ in range(3)]
        await begun.wait()
        closing = asyncio.create_task(asyncio.to_thread(host.close))
        await asyncio.wait(calls[1:])
        # Only now the first one may end: the host waits for it.
        release.set()
        await closing
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(run())
    assert isinstance(first, Outcome)
    assert [type(each) for each in others] == [InvalidRequestError] * 2


@pytest.mark.parametrize("name", ["a_", "a-b_", "x__y", "_a", "", "7a", "a b", "é"])
def test_a_name_that_no_tool_can_have(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="no name of a plugin"):
        PluginHost({name: "http://127.0.0.1:1"})


# --- what a document may not set ------------------------------------------------------------------------------------

HEADERS = [
    *("Host", "Transfer-Encoding", "Content-Length", "Connection", "Cookie", "Proxy-Authorization", "X-Forwarded-For"),
    *("Octavo-Protocol", "Octavo-Anything", "TE", "Upgrade", "Expect", "bad name", "a\r\nb", "é", "Sec-Fetch-Site"),
]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("required", [True, False])
def test_a_document_may_not_name_these_headers(server: RawServer, name: str, required: bool) -> None:
    server.manifest = None
    listed = {"name": name, "in": "header", "required": required, "schema": {"type": "string"}}
    server.document["paths"] = {"/a": {"get": {"operationId": "a", "parameters": [listed]}}}
    with PluginHost({"w": server.url}) as host:
        tools = {tool.name: tool for tool in host.tools()}
        notes = host.health()["w"]["notes"]
    assert ("w__a" in tools) is not required
    assert all(not tool.parameters["properties"] for tool in tools.values())
    assert len(notes) == 1


def echo(headers: dict[str, str]) -> HttpAnswer:
    text = json.dumps({"result": headers}).encode()
    return HttpAnswer(200, {"content-type": "application/json", "octavo-protocol": "1.0"}, text)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("Authorization", "Bearer pla1n-token", "pla1n-token"),
        ("X-Api-Key", "pla1n-key-0", "pla1n-key-0"),
        ("Cookie", "session=pla1n-cookie; theme=darkest", "pla1n-cookie"),
        ("X-Auth-Token", "pla1n-token", "pla1n-token"),
    ],
)
def test_a_credential_in_plain_text_that_comes_back_is_removed(
    server: RawServer, name: str, value: str, secret: str
) -> None:
    server.answers = [problem(500, "internal", got=f"{name}: {value}"), ok({"got": value, "part": f"({secret})"})]
    with PluginHost({"w": PluginSource(server.url, headers={name: value, "X-Place": "Corrin Vale"})}) as host:
        failed, done = host.call("w__get", GOOD), host.call("w__get", GOOD)
    assert server.posts[0][1][name.lower()] == value
    assert secret not in repr(failed) + repr(done)
    assert done.ok


def test_other_headers_are_no_secrets(server: RawServer) -> None:
    server.answers = [ok("Corrin Vale")]
    headers = {"X-Place": "Corrin Vale", "X-Author": "Corrin Vale"}
    with PluginHost({"w": PluginSource(server.url, headers=headers)}) as host:
        assert host.call("w__get", GOOD).content == "Corrin Vale"
