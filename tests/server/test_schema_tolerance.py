"""Schemas that no grammar holds: loosened part by part with a word in the log, or refused by name under `strict`."""

from __future__ import annotations

import json
import logging
from typing import Any

import jsonschema
import pytest
from octavo import LLM, JsonSchema, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.server import ServerConfig, create_app
from starlette.testclient import TestClient

TURN = [{"role": "user", "content": "hi"}]
# Parts that are not held, and the keyword that the warning names.
UNHELD: list[tuple[Any, str]] = [
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "string", "pattern": "^(?!x).*$"}, "pattern"),
    ({"type": "string", "pattern": r"^(a)\1$"}, "pattern"),
    ({"type": "string", "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)@[a-z]+$"}, "pattern"),
    ({"type": "string", "maxLength": 100_000}, "maxLength"),
    ({"type": "string", "minLength": -1}, "minLength"),
    ({"type": "array", "maxItems": 1000, "items": {"type": "string", "maxLength": 1000}}, "maxItems"),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "minimum"),
    ({"type": "number", "maximum": 1.7976931348623157e308}, "maximum"),
    ({"type": "number", "minimum": "0"}, "minimum"),
    ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
    ({"not": {"type": "null"}}, "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 1}}, "if"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
    ({"type": "object", "propertyNames": {"minLength": 2}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"type": "array", "contains": {"type": "string"}}, "contains"),
    ({"allOf": [{"type": "object"}], "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"$ref": "https://example.com/schema.json"}, "$ref"),
    ({"$ref": "#/$defs/missing"}, "$ref"),
    ({"$dynamicRef": "#node"}, "$dynamicRef"),
    ({"type": "any"}, "type"),
    ({"type": "dict"}, "type"),
    ({"type": "float"}, "type"),
    ({"type": "STRING"}, "type"),
    ({"type": ["string", "Any"]}, "type"),
    ({"type": "string", "required": True}, "required"),
    ({"type": "string", "enum": [1, 2]}, "enum"),
    ({"type": "string", "enum": []}, "enum"),
    ({"anyOf": []}, "anyOf"),
    ({"type": "object", "properties": ["a"]}, "properties"),
    ({"type": "array", "items": "string"}, ""),
    ("string", ""),
    (None, ""),
]  # fmt: skip
# Parts that say nothing, or that are held in other words.
SILENT: list[Any] = [
    {"type": "array", "items": {"type": "string"}, "uniqueItems": False},
    {"type": "object", "propertyNames": {"type": "string"}},
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "required": None, "properties": None},
    {"type": "string", "description": None, "title": None},
    {"type": "integer", "x-order": 3, "nullable": True, "example": 4, "deprecated": True},
    {"oneOf": [{"type": "string"}, {"type": "null"}]},
    {"oneOf": [{"const": "a"}, {"const": "b"}]},
]
FORMATS = [
    "password", "byte", "binary", "phone", "url", "uri-reference", "regex", "json-pointer", "file-path", "decimal",
    "enum", "local-date-time", "int32", "int64", "double", "path", "ipvanyaddress", "base64url", "color", "made-up",
]  # fmt: skip
STYLES = ["hermes", "qwen3_coder", "pythonic", "mistral_args"]


def tool(part: Any, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": part, "y": {"enum": [1, 2]}}, "required": ["y"]}
    return {"type": "function", "function": {"name": "lookup", "parameters": parameters, **more}}


def post(llm: LLM, body: dict[str, Any], **config: Any) -> Any:
    client = TestClient(create_app(llm, ServerConfig(**config)))
    return client.post("/v1/chat/completions", json={"messages": TURN, "max_tokens": 1, **body})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [row.getMessage() for row in caplog.records if row.levelno == logging.WARNING]


@pytest.mark.parametrize(("part", "keyword"), UNHELD, ids=lambda value: json.dumps(value)[:40])
def test_a_part_of_a_tool_is_loosened_with_a_warning(
    llm: LLM, caplog: pytest.LogCaptureFixture, part: Any, keyword: str
) -> None:
    found = post(llm, {"tools": [tool(part), {**tool({"type": "null"}), "function": {"name": "other"}}]})
    assert found.status_code == 200, found.text
    (said,) = [text for text in warnings(caplog) if keyword in text][:1]
    assert "lookup" in said
    assert "/properties/x" in said
    refused = post(llm, {"tools": [tool(part, strict=True)]})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert all(word in message for word in ("lookup", "/properties/x", keyword)), message
    # The same for an answer without strict.
    schema = {"type": "object", "properties": {"x": part}}
    for strict, status in ((False, 200), (True, 400)):
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": strict}}
        found = post(llm, {"response_format": form})
        assert found.status_code == status, found.text
    assert "/properties/x" in found.json()["error"]["message"]


@pytest.mark.parametrize("part", SILENT, ids=lambda value: json.dumps(value)[:40])
def test_what_says_nothing_is_no_reason(llm: LLM, caplog: pytest.LogCaptureFixture, part: Any) -> None:
    found = post(llm, {"tools": [tool(part, strict=True)]})
    assert found.status_code == 200, found.text
    assert not warnings(caplog)
    llm.generate("x", SamplingParams(structured=JsonSchema({"properties": {"x": part}}), max_tokens=1))


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_format_is_an_annotation(llm: LLM, caplog: pytest.LogCaptureFixture, name: str) -> None:
    part = {"type": "string", "format": name}
    assert post(llm, {"tools": [tool(part, strict=True)]}).status_code == 200
    assert [text for text in warnings(caplog) if repr(name) in text and "annotation" in text]
    llm.generate("x", SamplingParams(structured=JsonSchema(part), max_tokens=1))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object"},
        {"type": "object", "properties": None, "required": None},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "examples": [{"a": 1}], "default": {}, "x-tag": 1,
         "nullable": True, "$id": "https://example.com/a", "$comment": "c"},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "minProperties": 1},
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "anyOf": [{"required": ["a"]}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "missing"]},
        {"type": "object", "properties": {"user-id": {"type": "integer"}, "$filter": {"type": "string"}, "class": {}},
         "required": ["user-id"]},
        {"type": "object", "properties": {"": {}, "a b": {"type": "string"}, "<x>": {}, "n" * 300: {}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"n": {"$ref": "#/$defs/a"}}}}},
        {"$id": "https://e/x", "properties": {"a": {"$ref": "#p"}}, "$defs": {"p": {"$anchor": "p", "type": "null"}}},
        {"type": "string"},
        {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}},
        {"not": {}},
        {"anyOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"type": "object", "properties": {"b": {}}}]},
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_any_parameters_are_taken_in_any_form(llm: LLM, style: str, parameters: Any) -> None:
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    body = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "max_tokens": 80}
    found = post(llm, {**body, "parallel_tool_calls": False, "temperature": 1.5, "seed": 1}, tool_parser=style)
    assert found.status_code == 200, found.text
    message = found.json()["choices"][0]["message"]
    assert not message["content"]
    if found.json()["choices"][0]["finish_reason"] == "tool_calls":
        (call,) = message["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert isinstance(arguments, dict)
        if not parameters or parameters == {"type": "object", "properties": None, "required": None}:
            assert style not in ("qwen3_coder", "pythonic") or arguments == {}
        if not parameters:
            assert arguments == {}


def test_names_that_python_cannot_spell_are_read_back(llm: LLM) -> None:
    parameters = {
        "type": "object", "properties": {"user-id": {"enum": [7]}, "$filter": {"enum": ["a"]}},
        "required": ["user-id", "$filter"],
    }  # fmt: skip
    body = {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    for style in ("pythonic", "qwen3_coder"):
        asked = {**body, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
        found = post(llm, asked, tool_parser=style).json()
        (call,) = found["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"user-id": 7, "$filter": "a"}


OPEN = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.mark.parametrize("closed", [True, False])
def test_objects_are_closed_with_a_switch(llm: LLM, closed: bool) -> None:
    config = {"disable_additional_properties": closed}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": OPEN}}
    function = {"name": "f", "parameters": OPEN}
    call = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    keys = set()
    for asked in ({"response_format": form}, call, {"structured_outputs": {"json": OPEN}}):
        for seed in range(4):
            more = {"max_tokens": 40, "temperature": 1.8, "seed": seed, "parallel_tool_calls": False}
            choice = post(llm, {**asked, **more}, **config).json()["choices"][0]
            calls = choice["message"].get("tool_calls")
            text = calls[0]["function"]["arguments"] if calls else choice["message"]["content"]
            if closed:
                assert set(json.loads(text)) == {"ok"}, text
            keys.add(len(text) > 25)
    assert closed or True in keys


def test_the_switches_of_a_request_and_of_python(llm: LLM) -> None:
    def lengths(**fields: Any) -> list[int]:
        asked = {"structured_outputs": {"json": OPEN, **fields}, "max_tokens": 40, "temperature": 1.8}
        return [post(llm, {**asked, "seed": s}).json()["usage"]["completion_tokens"] for s in range(4)]

    assert max(lengths()) < 25
    assert max(lengths(disable_additional_properties=False)) >= 25
    for closed in (True, False):
        held = JsonSchema(OPEN, disable_additional_properties=closed)
        params = SamplingParams(structured=held, n=6, temperature=1.8, seed=2, max_tokens=40)
        texts = [sample.text for sample in llm.generate("x", params)[0].outputs]
        # Spaces are free in JSON: {"ok":false} has twelve characters.
        assert (max(len("".join(text.split())) for text in texts) > 12) is not closed
    # What the schema says itself counts.
    for more in (True, {"type": "integer"}):
        jsonschema.validate({"ok": True, "z": 1}, {**OPEN, "additionalProperties": more})
        held = JsonSchema({**OPEN, "additionalProperties": more})
        params = SamplingParams(structured=held, n=6, temperature=1.8, seed=2, max_tokens=40)
        assert max(len(sample.text) for sample in llm.generate("x", params)[0].outputs) > 30


def test_python_refuses_by_name(llm: LLM) -> None:
    for part, keyword in UNHELD:
        held = JsonSchema({"type": "object", "properties": {"x": part}, "required": ["x"]})
        with pytest.raises(InvalidRequestError, match="structured") as caught:
            llm.generate("x", SamplingParams(structured=held, max_tokens=1))
        if keyword != "maxItems":
            assert keyword in str(caught.value)


@pytest.mark.parametrize("name", ["date-time", "date", "time", "duration", "email"])
def test_formats_are_what_pydantic_reads(llm: LLM, name: str) -> None:
    from datetime import date, datetime, time, timedelta

    from pydantic import TypeAdapter

    kinds: dict[str, Any] = {"date-time": datetime, "date": date, "time": time, "duration": timedelta}
    params = SamplingParams(
        structured=JsonSchema({"type": "string", "format": name}), n=16, temperature=3.0, seed=5, max_tokens=100
    )
    for sample in llm.generate("When?", params)[0].outputs:
        assert sample.finish_reason == "stop", sample.text
        text = json.loads(sample.text)
        if name in kinds:
            TypeAdapter(kinds[name]).validate_python(text)
            if name == "date-time":
                datetime.fromisoformat(text)
        else:
            assert len(text) < 80
            assert "@" in text
