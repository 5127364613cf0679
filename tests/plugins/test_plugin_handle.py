"""`Plugin.handle`: paths, versions, digests, arguments, results, problems."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import weather_plugin
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.errors import InvalidRequestError
from octavo.plugins import Limits, Plugin, Request, Response, bearer
from octavo.plugins.manifest import Manifest, OperationEntry
from octavo.plugins.schema import digest


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    with weather_plugin.build() as found:
        yield found


def send(plugin: Plugin, path: str, arguments: Any = None, method: str = "POST", **headers: str) -> Response:
    body = b"" if arguments is None else json.dumps({"arguments": arguments, "more": 1}).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return plugin.handle(Request(method, path, fields, body))


def problem(response: Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status
    assert body["detail"]
    return response.status, body["type"].removeprefix("urn:octavo-plugin:")


def test_a_call_has_a_result_and_its_versions(plugin: Plugin) -> None:
    response = send(plugin, "/v3/invoke/get_forecast", {"city": "Corrin", "days": 1}, octavo_protocol="7, 1")
    assert response.json() == {"result": {"city": "Corrin", "days": [{"high": 20.0, "low": 10.0}]}, "warnings": []}
    entry = Manifest.from_json(plugin.manifest()).entry("get_forecast", 3)
    assert entry is not None
    assert response.headers == {
        "content-type": "application/json",
        "cache-control": "no-store",
        "octavo-protocol": "1.0",
        "octavo-digest": entry.digest,
    }


def test_an_async_operation_runs_under_both_ways_of_calling(plugin: Plugin) -> None:
    assert send(plugin, "v3/invoke/send", {"to": "a", "text": "b"}).json()["result"] == 1
    body = json.dumps({"arguments": {"to": "c", "text": "d"}}).encode()
    response = asyncio.run(plugin.ahandle(Request("POST", "v3/invoke/send", {}, body)))
    assert response.json()["result"] == 2
    assert plugin.sent == [("a", "b"), ("c", "d")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "arguments", "headers", "expected"),
    [
        ("v3/invoke/get_forecast", {"city": "x"}, {"octavo_protocol": "2"}, (400, "unsupported-version")),
        ("v3/invoke/get_forecast", None, {}, (400, "malformed-request")),
        ("v3/invoke/get_forecast", [1], {}, (400, "malformed-request")),
        ("v3/invoke/get_forecast", {"city": 3}, {}, (422, "invalid-arguments")),
        ("v3/invoke/get_forecast", {"city": "x"}, {"content_type": "text/plain"}, (415, "unsupported-media-type")),
        ("v3/invoke/get_forecast", {"city": "x"}, {"octavo_digest": "sha256:0"}, (409, "schema-changed")),
        ("v3/invoke/get_forecast", {"city": "x" * 5000}, {}, (413, "body-too-large")),
        ("v3/invoke/get_forcast", {"city": "x"}, {}, (404, "unknown-operation")),
        ("v4/invoke/get_forecast", {"city": "x"}, {}, (404, "unknown-operation")),
        ("vx/invoke/get_forecast", {"city": "x"}, {}, (404, "unknown-operation")),
        ("v03/invoke/get_forecast", {"city": "x"}, {}, (404, "unknown-operation")),
        ("v3/invoke/get_forecast/x", {"city": "x"}, {}, (404, "not-found")),
        ("v3/invoke/fail", {"how": "x"}, {}, (500, "internal")),
        ("v3/invoke/fail", {"how": "type"}, {}, (500, "internal")),
        ("v3/invoke/fail", {"how": "busy"}, {}, (503, "unavailable")),
    ],
)
def test_each_fault_has_its_type(
    plugin: Plugin, path: str, arguments: Any, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    response = send(plugin, path, arguments, **headers)
    assert problem(response) == expected
    assert response.headers["octavo-protocol"] == "1.0"
    # A secret in an exception or a value goes to the log alone.
    assert b"secret" not in response.body
    # The digest is that of an operation that was found.
    early = ("unsupported-version", "unknown-operation", "not-found")
    assert ("octavo-digest" in response.headers) is (expected[1] not in early)


def test_a_problem_says_what_to_do(plugin: Plugin) -> None:
    assert send(plugin, "v3/invoke/get_forecast", {}, octavo_protocol="2").json()["supported"] == ["1.0"]
    unknown = send(plugin, "v3/invoke/get_forcast", {}).json()
    assert (unknown["nearest"], unknown["majors"]) == (["get_forecast"], [1, 2, 3])
    assert "get_forecast" in unknown["detail"]
    assert "1, 2, 3" in send(plugin, "v9/invoke/get_forecast", {}).json()["detail"]
    assert "major 3 alone" in send(plugin, "v1/invoke/send", {}).json()["detail"]
    busy = send(plugin, "v3/invoke/fail", {"how": "busy"})
    assert (busy.headers["retry-after"], busy.json()["detail"]) == ("7", "the station is off")
    method = send(plugin, "v3/invoke/fail", method="GET")
    assert (method.status, method.headers["allow"]) == (405, "POST")


def test_a_schema_change_brings_the_new_schema(plugin: Plugin) -> None:
    body = send(plugin, "v3/invoke/get_forecast", {"town": 3}, octavo_digest="sha256:old").json()
    found = OperationEntry.from_json(body["operation"])
    listed = Manifest.from_json(plugin.manifest()).entry("get_forecast", 3)
    assert listed is not None
    assert found.digest == body["digest"] == listed.digest == digest(found.arguments, found.result)
    assert found.aliases == {"city": ("town",)}
    assert found.arguments["properties"]["days"]["maximum"] == 7
    # With the digest that the problem names, the call runs.
    assert send(plugin, "v3/invoke/get_forecast", {"city": "x"}, octavo_digest=found.digest).status == 200


@pytest.mark.parametrize(
    ("operation", "arguments", "pointers"),
    [
        ("get_forecast", {}, ["/city"]),
        ("get_forecast", {"city": "x", "days": 8}, ["/days"]),
        ("get_forecast", {"city": "x", "days": "3"}, ["/days"]),
        ("get_forecast", {"city": "x", "days": True}, ["/days"]),
        ("get_forecast", {"city": "x", "dayz": 3}, ["/dayz"]),
        ("get_forecast", {"city": "x", "town": "y"}, ["/town"]),
        ("where", {"place": {"name": "a", "inside": {"name": 3}}}, ["/place/inside/name"]),
        ("where", {"place": {"name": "a", "insde": None}}, ["/place/insde"]),
        ("where", {"place": {"name": "a"}, "request": {}}, ["/request"]),
        ("send", {"to": "x", "body": "y"}, ["/text", "/body"]),
    ],
)
def test_arguments_are_checked_as_the_schema_says(
    plugin: Plugin, operation: str, arguments: Any, pointers: list[str]
) -> None:
    response = send(plugin, f"v3/invoke/{operation}", arguments)
    assert problem(response) == (422, "invalid-arguments")
    assert [error["pointer"] for error in response.json()["errors"]] == pointers
    path = plugin.openapi()["paths"][f"/v3/invoke/{operation}"]["post"]
    schema = path["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": plugin.openapi()["components"]}
    assert not jsonschema.Draft202012Validator(whole).is_valid({"arguments": arguments})


def test_a_whole_float_is_an_integer_of_json_schema(plugin: Plugin) -> None:
    body = b'{"arguments": {"city": "x", "days": 2.0}}'
    response = plugin.handle(Request("POST", "v3/invoke/get_forecast", {}, body))
    assert len(response.json()["result"]["days"]) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"arguments": 1}',
        b'{"arguments": {"city": "a", "city": "b"}}',
        b'{"arguments": {"city": "a", "days": NaN}}',
        b'{"arguments": {"city": "a", "days": 1e999}}',
        b'{"arguments": {"city": ' + b"[" * 5000 + b"]" * 5000,
        b'{"arguments": ' + b'{"a":' * 100 + b"1" + b"}" * 101,
        b'\xff\xfe{"arguments": {}}',
        b'{"arguments": {"city": "\xff"}}',
    ],
)
def test_a_body_that_is_no_call_is_refused(body: bytes) -> None:
    with weather_plugin.build(limits=Limits(body_bytes=1 << 20)) as plugin:
        response = plugin.handle(Request("POST", "v3/invoke/get_forecast", {}, body))
    assert problem(response) == (400, "malformed-request")


def test_a_former_name_is_accepted_and_reported(plugin: Plugin) -> None:
    response = send(plugin, "v3/invoke/get_forecast", {"town": "x"})
    assert response.json()["result"]["city"] == "x"
    assert response.json()["warnings"] == ["argument town is now called city"]


def test_older_majors_are_converted_step_by_step(plugin: Plugin) -> None:
    response = send(plugin, "v1/invoke/get_weather", {"town": "x"})
    assert response.json()["result"] == [20.0, 21.0, 22.0]
    assert response.headers["deprecation"] == "@1700000000"
    assert len(send(plugin, "v2/invoke/get_forecast", {"city": "x", "days": 5}).json()["result"]["days"]) == 5
    # Fits the older schema, and no longer what the operation can do.
    gone = send(plugin, "v2/invoke/get_forecast", {"city": "x", "days": 9})
    assert problem(gone) == (422, "invalid-arguments")
    assert "major 3 does not support this" in gone.json()["detail"]
    assert problem(send(plugin, "v2/invoke/get_weather", {"town": "x"})) == (404, "unknown-operation")
    assert send(plugin, "v2/invoke/where", {"place": {"name": "a"}}).json()["result"] == "a"


def test_the_manifest_lists_what_is_served(plugin: Plugin) -> None:
    manifest = Manifest.from_json(plugin.manifest())
    assert not manifest.notes
    assert [(e.major, e.id) for e in manifest.operations] == [
        (3, "fail"),
        (3, "get_forecast"),
        (3, "send"),
        (3, "stall"),
        (3, "where"),
        (2, "get_forecast"),
        (2, "where"),
        (1, "get_weather"),
    ]
    assert manifest.majors == (1, 2, 3)
    send_entry = manifest.entry("send", 3)
    assert send_entry is not None
    assert (send_entry.consequential, send_entry.idempotent) == (True, False)


def test_documents_have_a_tag_and_the_stated_hash(plugin: Plugin) -> None:
    manifest = send(plugin, ".well-known/octavo-plugin.json", method="GET")
    assert manifest.json() == plugin.manifest()
    document = send(plugin, "/openapi.json", method="GET")
    assert manifest.json()["openapi"]["sha256"] == hashlib.sha256(document.body).hexdigest()
    assert document.json() == plugin.openapi()
    assert manifest.headers["cache-control"] == "max-age=300"
    known = send(plugin, "openapi.json", method="GET", if_none_match=f'"x", W/{document.headers["etag"]}')
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", document.headers["etag"])
    head = send(plugin, "openapi.json", method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(document.body)))


def test_digests_are_those_of_the_document(plugin: Plugin) -> None:
    document = plugin.openapi()
    for entry in Manifest.from_json(plugin.manifest()).operations:
        post = document["paths"][f"/v{entry.major}/invoke/{entry.id}"]["post"]
        arguments = post["requestBody"]["content"]["application/json"]["schema"]["properties"]["arguments"]
        result = post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["result"]
        assert digest(arguments, result, document) == entry.digest
        assert OperationEntry.from_json(post["x-octavo-operation"]) == entry


def test_deprecation_is_in_headers_and_warnings(plugin: Plugin) -> None:
    response = send(plugin, "v3/invoke/where", {"place": {"name": "a"}})
    assert response.headers["deprecation"] == "@1796083200"
    assert response.headers["sunset"] == "Tue, 01 Jun 2027 00:00:00 GMT"
    assert response.json()["warnings"] == [
        "where in major 3 is deprecated since 2026-12-01; ends 2027-06-01; use get_forecast"
    ]
    # A problem of the operation has the headers too.
    assert send(plugin, "v3/invoke/where", {}).headers["deprecation"] == "@1796083200"


def test_a_check_of_credentials_guards_everything_but_the_health() -> None:
    with weather_plugin.build(authorize=bearer("s3cret", "other")) as plugin:
        for path in ("openapi.json", ".well-known/octavo-plugin.json"):
            assert problem(send(plugin, path, method="GET")) == (401, "unauthorized")
            assert send(plugin, path, method="GET", authorization="Bearer s3cret").status == 200
        call = send(plugin, "v3/invoke/get_forecast", {"city": "x"}, authorization="Bearer wrong")
        assert problem(call) == (401, "unauthorized")
        assert call.headers["www-authenticate"] == "Bearer"
        assert send(plugin, "v3/invoke/get_forecast", {"city": "x"}, authorization="bearer other").status == 200
        assert send(plugin, "health", method="GET").status == 200
        assert "s3cret" not in repr(plugin) + repr(plugin._authorize)

    def broken(_request: Request) -> bool:
        raise RuntimeError("secret-value")

    # A check that forgets its answer lets no request pass.
    for check in (broken, lambda _request: None, lambda _request: "yes"):
        with weather_plugin.build(authorize=check) as plugin:
            assert problem(send(plugin, "openapi.json", method="GET")) == (401, "unauthorized")


def test_health() -> None:
    state = {"fail": False}

    def check() -> bool:
        if state["fail"]:
            raise OSError("secret-value")
        return True

    with weather_plugin.build(health=check) as plugin:
        assert send(plugin, "health", method="GET").json()["status"] == "ok"
        state["fail"] = True
        assert problem(send(plugin, "health", method="GET")) == (503, "unavailable")


@pytest.mark.parametrize(("value", "status"), [(None, 200), (1, 200), (False, 503), (0, 503), ("", 503)])
def test_a_false_value_is_no_health(value: object, status: int) -> None:
    with weather_plugin.build(health=lambda: value) as plugin:
        assert send(plugin, "health", method="GET").status == status


def test_a_check_that_must_be_awaited_is_no_check() -> None:
    async def wait(*_: Any) -> bool:
        return False

    class Waits:
        async def __call__(self, *_: Any) -> bool:
            return False

    for function in (wait, functools.partial(wait, 1), Waits()):
        for option in ("health", "authorize"):
            with pytest.raises(InvalidRequestError, match=f"{option} is an async function"):
                weather_plugin.build(**{option: function})
    with pytest.raises(InvalidRequestError, match="health is True: a function is expected"):
        weather_plugin.build(health=True)
    # Hidden behind a plain function, it is found when it runs.
    with weather_plugin.build(health=lambda: wait()) as plugin:
        assert problem(send(plugin, "health", method="GET")) == (503, "unavailable")


def test_contradicting_definitions_are_answered_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    plugin = Plugin("p", version="2.0.0")

    @plugin.convert(major=1)
    def gone(x: int) -> dict[str, int]:
        return {"x": x}

    with plugin:
        for path in ("health", "v1/invoke/gone", "openapi.json"):
            assert problem(send(plugin, path)) == (500, "internal")
        assert asyncio.run(plugin.ahandle(Request("GET", "health"))).status == 500
        assert "converts to gone, which major 2 does not have" in caplog.text
        with pytest.raises(InvalidRequestError, match="converts to gone"):
            plugin.manifest()


def test_a_body_that_ended_early_does_not_run(plugin: Plugin) -> None:
    body = b'{"arguments": {"to": "a", "text": "b"}}'
    for path in ("v3/invoke/send", "mcp"):
        response = plugin.handle(Request("POST", path, {}, body, is_complete=False))
        assert problem(response) == (400, "malformed-request")
    assert plugin.sent == []  # type: ignore[attr-defined]


def test_a_permitted_page_may_call_from_a_browser() -> None:
    page = "https://a.example"
    with weather_plugin.build(allowed_origins=[page], authorize=bearer("t")) as plugin:
        asked = {"access_control_request_method": "POST", "access_control_request_headers": "octavo-digest"}
        before = send(plugin, "v3/invoke/send", method="OPTIONS", origin=page, **asked)
        assert (before.status, before.body) == (204, b"")
        assert before.headers["access-control-allow-origin"] == page
        assert before.headers["access-control-allow-headers"] == "octavo-digest"
        answer = send(plugin, "v3/invoke/get_forecast", {"city": "x"}, origin=page, authorization="Bearer t")
        assert answer.headers["access-control-allow-origin"] == page
        assert "Octavo-Digest" in answer.headers["access-control-expose-headers"]
        # A page of this machine may call, but gets no CORS headers; foreign pages may not.
        local = send(plugin, "openapi.json", method="GET", origin="http://localhost:5173", authorization="Bearer t")
        assert local.status == 200
        assert "access-control-allow-origin" not in local.headers
        foreign = send(plugin, "v3/invoke/send", method="OPTIONS", origin="https://b.example", **asked)
        assert problem(foreign) == (403, "forbidden")
        assert "access-control-allow-origin" not in foreign.headers


CODES = {200, 304, 400, 404, 405, 409, 413, 415, 422}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT"]),
    st.sampled_from(["/", "v3/invoke/get_forecast", "v3/invoke/where", "v1/invoke/get_weather", "openapi.json", "mcp"])
    | st.text(max_size=20),
    st.dictionaries(st.sampled_from(["Octavo-Protocol", "Octavo-Digest", "Idempotency-Key"]), st.text(max_size=9)),
    st.binary(max_size=30) | st.builds(lambda a: json.dumps({"arguments": a}).encode(), st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda i: st.dictionaries(st.sampled_from(["city", "place", "name", "town", "days"]), i, max_size=3)
        | st.lists(i, max_size=2), max_leaves=4,
    )),
)  # fmt: skip
def test_no_request_breaks_the_plugin(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    response = weather_plugin.plugin.handle(Request(method, path, headers, body))
    assert response.status in CODES
    assert response.headers["octavo-protocol"] == "1.0"
