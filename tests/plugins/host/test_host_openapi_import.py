"""Documents of OpenAPI 3.0 and 3.1: what becomes an operation, where its arguments go, and what is left out aloud."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from octavo.plugins.host.endpoint import build_plain
from octavo.plugins.host.openapi_import import Imported, read_document
from octavo.plugins.host.outcome import Failure

BASE = "http://127.0.0.1:9/api/"


def read(paths: dict[str, Any], version: str = "3.1.0", own: frozenset[str] = frozenset(), **more: Any) -> Imported:
    document = {"openapi": version, "info": {"title": "t", "version": "1"}, "paths": paths, **more}
    return read_document(document, BASE, BASE + "openapi.json", own)


def parameter(name: str, place: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema, **more}


def body(schema: Any, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def test_places_and_styles() -> None:
    listed = [
        parameter("tags", "query", {"type": "array", "items": {"type": "string"}}),
        parameter("ids", "query", {"type": "array", "items": {"type": "integer"}}, explode=False),
        parameter("at", "query", {"type": "object"}, style="deepObject", explode=True),
        parameter("X-Trace", "header", {"type": "string"}),
        parameter("Authorization", "header", {"type": "string"}, required=True),
        parameter("X-Key", "header", {"type": "string"}, required=True),
        parameter("old", "query", {"type": "string"}, style="spaceDelimited"),
    ]
    item = {"parameters": [parameter("id", "path", {"type": "string"}, required=True)]}
    found = read(
        {"/things/{id}": {**item, "get": {"operationId": "thing", "parameters": listed}}}, own=frozenset({"x-key"})
    )
    thing = found.plain["thing"]
    assert set(thing.parameters["properties"]) == {"id", "tags", "ids", "at", "X-Trace"}
    assert thing.parameters["required"] == ["id"]
    assert any("'old'" in note for note in found.notes)
    assert thing.plain is not None
    arguments = {"id": "a/b c", "tags": ["x&y", "z"], "ids": [1, 2], "at": {"lat": 1.5}, "X-Trace": "t"}
    built = build_plain(thing.plain, arguments)
    assert built.url == BASE + "things/a%2Fb%20c?tags=x%26y&tags=z&ids=1%2C2&at%5Blat%5D=1.5"
    assert (built.headers, built.body) == ({"X-Trace": "t"}, None)
    with pytest.raises(Failure, match="header"):
        build_plain(thing.plain, {"id": "x", "X-Trace": "a\r\nX-Evil: 1"})


def test_schemas_of_3_0() -> None:
    old = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
            "name": {"type": "string", "nullable": True},
            "kind": {"type": "string", "enum": ["a"], "nullable": True},
            "part": {"nullable": True, "allOf": [{"$ref": "#/components/schemas/Part"}]},
        },
    }
    part = {"type": "object", "properties": {"n": {"type": "number", "nullable": True}}}
    found = read(
        {"/p": {"post": {"operationId": "p", "requestBody": body(old)}}},
        "3.0.3",
        components={"schemas": {"Part": part}},
    )
    valid = jsonschema.Draft202012Validator(found.plain["p"].parameters).is_valid
    assert valid({"age": 9, "name": None, "kind": None, "part": None})
    assert valid({"age": 1, "part": {"n": None}})
    assert not valid({"age": 0})
    assert not valid({"age": 10})
    assert not valid({"kind": "b"})
    assert not valid({"more": 1})


def test_bodies() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}, "required": ["next"]}
    paths = {
        "/flat": {"post": {"requestBody": body({"type": "object", "properties": {"a": {"type": "string"}}})}},
        "/list": {"post": {"requestBody": body({"type": "array", "items": {"type": "integer"}})}},
        "/open": {"post": {"requestBody": body({"type": "object", "additionalProperties": True})}},
        "/node": {"post": {"requestBody": body({"$ref": "#/components/schemas/Node"}, False)}},
        "/clash": {
            "post": {
                "parameters": [parameter("a", "query", {"type": "string"})],
                "requestBody": body({"type": "object", "properties": {"a": {"type": "integer"}}}),
            }
        },
        "/form": {"post": {"requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object"}}}}}},
    }
    found = read(paths, components={"schemas": {"Node": node}})
    properties = {name: set(e.parameters["properties"]) for name, e in found.plain.items()}
    assert properties == {
        "post_flat": {"a"},
        "post_list": {"body"},
        "post_open": {"body"},
        "post_node": {"body"},
        "post_clash": {"a", "body"},
    }
    assert any("/form" in note and "not JSON" in note for note in found.notes)
    assert found.plain["post_node"].plain is not None
    assert build_plain(found.plain["post_node"].plain, {}).body is None
    assert found.plain["post_list"].plain is not None
    assert build_plain(found.plain["post_list"].plain, {"body": [1]}).body == b"[1]"
    assert found.plain["post_clash"].plain is not None
    built = build_plain(found.plain["post_clash"].plain, {"a": "q", "body": {"a": 1}})
    assert (built.url, built.body) == (BASE + "clash?a=q", b'{"a": 1}')
    # A recursive schema keeps its references, and they lead somewhere.
    check = jsonschema.Draft202012Validator(found.plain["post_node"].parameters)
    assert not check.is_valid({"body": {"next": 3}})


def test_effects_and_descriptions() -> None:
    found = read(
        {
            "/a": {
                "get": {"operationId": "read", "summary": "Reads.", "description": "It reads all."},
                "post": {"operationId": "write", "summary": "Write", "description": "Writes one."},
                "put": {"operationId": "safe", "x-openai-isConsequential": False, "deprecated": True},
            }
        }
    )
    assert {name: e.consequential for name, e in found.plain.items()} == {"read": False, "write": True, "safe": False}
    assert found.plain["read"].description == "Reads.\n\nIt reads all."
    assert found.plain["write"].description == "Writes one."
    assert found.plain["safe"].deprecated
    assert [found.plain[n].idempotent for n in ("read", "write", "safe")] == [True, False, True]


def test_what_cannot_be_called_is_left_out_aloud() -> None:
    found = read(
        {
            "/a/{x}": {"get": {"operationId": "no_parameter"}},
            "/b": {"get": {"operationId": "remote", "parameters": [parameter("a", "query", {"$ref": "http://x/y"})]}},
            "/c": {"get": {"operationId": "invalid", "parameters": [parameter("a", "query", {"type": "strin"})]}},
            "/d": {"get": {"operationId": "same"}},
            "/e": {"get": {"operationId": "same"}},
            "/f": {"get": {"operationId": 3, "parameters": "none"}},
        }
    )
    assert set(found.plain) == {"same", "get_f"}
    assert len(found.notes) == 4


@pytest.mark.parametrize("version", ["2.0", "4.0.0", None, 3])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(Failure, match=r"not 3\.0 or 3\.1"):
        read({}, version)


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("/v7", "http://127.0.0.1:9/v7/a"),
        ("v7", "http://127.0.0.1:9/api/v7/a"),
        ("http://127.0.0.1:9/x/", "http://127.0.0.1:9/x/a"),
        ("/", BASE + "a"),
        ("http://evil.example/", BASE + "a"),
        ("https://127.0.0.1:9/", BASE + "a"),
        ("//evil.example", BASE + "a"),
        ("http://127.0.0.1:9@evil.example/", BASE + "a"),
    ],
)
def test_servers_stay_within_the_registered_origin(server: str, url: str) -> None:
    found = read({"/a": {"get": {"operationId": "a"}}}, servers=[{"url": server}])
    assert found.plain["a"].plain is not None
    assert build_plain(found.plain["a"].plain, {}).url == url
    assert bool(found.notes) == ("evil" in server or "https" in server)
