"""Versions, problems and manifests: strict in what is sent, tolerant in what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.errors import InvalidRequestError
from octavo.plugins.manifest import Deprecation, Limits, Manifest, ManifestError, OperationEntry
from octavo.plugins.problems import CODES, Problem, ProblemError
from octavo.plugins.protocol import (
    Version,
    answered_version,
    api_version,
    common_major,
    is_operation_id,
    is_plugin_name,
    negotiate,
    parse_versions,
)

TABLE = {1: 4, 2: 0}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Version(1, 4)),
        ("", Version(1, 4)),
        ("1", Version(1, 4)),
        ("1.99", Version(1, 4)),
        ("2, 1", Version(2, 0)),
        ("1,2", Version(2, 0)),
        ("3, 2", Version(2, 0)),
        ("3", None),
        ("nonsense", None),
        ("nonsense, 1", Version(1, 4)),
        ("1;q=1, 2.7", Version(2, 0)),
        ("01", None),
        ("1" * 300, None),
    ],
)
def test_the_highest_common_major_wins(header: str | None, expected: Version | None) -> None:
    assert negotiate(header, TABLE) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_no_header_breaks_the_negotiation_or_is_echoed(header: str) -> None:
    found = negotiate(header, TABLE)
    assert found in (None, Version(1, 4), Version(2, 0))


def test_the_host_takes_the_highest_major_that_both_have() -> None:
    assert common_major([1, 2, 9], {1: 0, 2: 0}) == 2
    assert common_major([9], {1: 0}) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [("1.0", Version(1, 0)), ("1.77", Version(1, 77)), ("1", None), ("2, 1", None), ("3.0", None), (None, None)],
)
def test_an_echoed_header_is_no_answer(header: str | None, expected: Version | None) -> None:
    assert answered_version(header, [1]) == expected


def test_versions_are_printed_as_they_are_read() -> None:
    assert [str(v) for v in parse_versions("2, 1.3")] == ["2", "1.3"]
    assert api_version("2.1.0") == (2, 1)
    assert api_version("2.1") == (2, 1)
    assert [api_version(t) for t in ("2", "v2.1", "2.1.0 ", "", "2.x")] == [None] * 5


def test_names() -> None:
    assert is_plugin_name("weather-2")
    assert not any(map(is_plugin_name, ["", "2x", "a__b", "a.b", "a" * 65, "wétter"]))
    assert is_operation_id("get_forecast")
    assert not any(map(is_operation_id, ["", "get-forecast", "a/b", "_x"]))


@pytest.mark.parametrize("code", CODES)
def test_a_problem_survives_the_wire(code: str) -> None:
    problem = Problem(code, "the input and the remedy", extensions={"errors": [{"pointer": "/days"}]})
    body = json.dumps(problem.to_json()).encode()
    assert problem.status == CODES[code][0]
    assert Problem.from_response(problem.status, "application/problem+json; charset=utf-8", body) == problem
    assert json.loads(body)["type"] == f"urn:octavo-plugin:{code}"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b'{"type": "urn:octavo-plugin:internal"}'),
        ("application/problem+json", b"{"),
        ("application/problem+json", b"[1]"),
        ("application/problem+json", b'{"type": "about:blank"}'),
        ("application/problem+json", b"[" * 100_000),
    ],
)
def test_other_errors_are_not_typed(content_type: str, body: bytes) -> None:
    assert Problem.from_response(400, content_type, body) is None


def test_a_newer_problem_is_read() -> None:
    body = b'{"type": "urn:octavo-plugin:of-tomorrow", "status": 418, "detail": 7, "more": 1}'
    problem = Problem.from_response(409, "application/problem+json", body)
    assert problem is not None
    assert (problem.code, problem.status, problem.detail, problem.extensions) == ("of-tomorrow", 409, "", {"more": 1})


def test_an_extension_never_replaces_a_member() -> None:
    error = ProblemError("unavailable", "off", retry_after=3, status=200, type="x")
    assert error.problem.to_json() == {
        "type": "urn:octavo-plugin:unavailable",
        "title": "The plugin is not available",
        "status": 503,
        "detail": "off",
    }


MANIFEST = Manifest(
    name="weather",
    version="2.1.0",
    protocol={1: 0},
    majors=(1, 2),
    operations=(
        OperationEntry("get_forecast", 2, "sha256:41", "1.0", aliases={"city": ("town",)}),
        OperationEntry("send", 2, "sha256:42", "2.0", consequential=True, deprecated=Deprecation(5, 9, "post")),
    ),
    openapi_sha256="9f",
    mcp="mcp",
    health="health",
    limits=Limits(100, 2.5),
)


def test_a_manifest_survives_the_wire() -> None:
    wire = json.loads(json.dumps(MANIFEST.to_json()))
    assert Manifest.from_json(wire) == MANIFEST
    assert wire["octavo_plugin"] == {"protocol": {"1": 0}}
    assert MANIFEST.entry("send", 2) is MANIFEST.operations[1]
    assert MANIFEST.entry("send", 1) is None


def test_a_manifest_of_tomorrow_is_read() -> None:
    wire = MANIFEST.to_json()
    wire |= {"new": {"x": 1}, "octavo_plugin": {"protocol": {"1": 7, "2": 0, "x": 1}, "more": True}}
    wire["operations"][0] |= {"streams": True}
    wire["limits"] |= {"calls": 3}
    found = Manifest.from_json(wire)
    assert found.protocol == {1: 7, 2: 0}
    assert found.operations == MANIFEST.operations
    assert found.limits == MANIFEST.limits
    assert not found.notes


def test_a_manifest_may_not_widen_its_origin() -> None:
    for url in ("http://elsewhere/openapi.json", "//elsewhere/x", "/etc/x", "../x", "a/../../x", "\\\\elsewhere\\x", 3):
        found = Manifest.from_json({**MANIFEST.to_json(), "openapi": {"url": url}, "mcp": url, "health": url})
        assert (found.openapi_url, found.mcp, found.health) == ("openapi.json", None, None)
        assert len(found.notes) == 3


def test_an_unreadable_operation_is_left_out_and_noted() -> None:
    good = MANIFEST.to_json()["operations"][0]
    bad: list[Any] = [3, {"id": "a b"}, {"id": "x", "major": True}, {"id": "x", "major": 1, "digest": 3}, good]
    found = Manifest.from_json({**MANIFEST.to_json(), "operations": [good, *bad]})
    assert [entry.id for entry in found.operations] == ["get_forecast"]
    assert len(found.notes) == 5


def test_what_cannot_be_read_counts_as_dangerous() -> None:
    entry = {"id": "x", "major": 1, "digest": "sha256:1"}
    assert OperationEntry.from_json({**entry, "consequential": "no"}).consequential
    assert not OperationEntry.from_json(entry).consequential
    assert not OperationEntry.from_json({**entry, "idempotent": "yes"}).idempotent
    assert OperationEntry.from_json({**entry, "deprecated": "soon"}).deprecated == Deprecation(0)


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"octavo_plugin": 1}, {"octavo_plugin": {"protocol": {}}, "name": "x", "operations": []}]
    + [{**MANIFEST.to_json(), key: None} for key in ("octavo_plugin", "name", "operations")],
)
def test_other_documents_are_no_manifests(document: Any) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(document)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(MANIFEST.to_json())), JSONS), JSONS)
def test_no_document_breaks_the_reader(changes: dict[str, Any], operation: Any) -> None:
    wire = MANIFEST.to_json()
    wire["operations"][0] |= (
        operation if isinstance(operation, dict) else {"aliases": operation, "deprecated": operation}
    )
    try:
        found = Manifest.from_json({**wire, **changes})
    except ManifestError:
        return
    json.dumps(found.to_json())


def test_sunset_is_never_earlier_than_the_deprecation() -> None:
    with pytest.raises(InvalidRequestError, match="must not be earlier"):
        Deprecation(10, 9)
    assert OperationEntry.from_json(
        {"id": "x", "major": 1, "digest": "sha256:1", "deprecated": {"since": 10, "sunset": 9}}
    ).deprecated == Deprecation(10, 10)


@pytest.mark.parametrize("limits", [{"body_bytes": 0}, {"body_bytes": True}, {"timeout_s": 0}, {"timeout_s": "5"}])
def test_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(limits))):
        Limits(**limits)
