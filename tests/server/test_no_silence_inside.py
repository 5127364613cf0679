"""Fields inside the objects of a chat request: each changes what the engine or the client gets, or the documents say
that it has no effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_cases import TOOL
from octavo import LLM
from octavo.server import ServerConfig, create_app
from octavo.server.fields.requests import ChatRequest
from plugin_cases import both
from pydantic import BaseModel
from starlette.testclient import TestClient

DOCUMENT = Path(__file__).parents[2] / "docs" / "server.md"
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
OWN: dict[str, Any] = {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls"}}
RESULT: dict[str, Any] = {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
LAST: dict[str, Any] = {"role": "assistant", "content": "I"}
SCHEMA = {"type": "object", "properties": {"x": {"enum": ["a"]}}, "required": ["x"], "additionalProperties": False}
OTHER = {"type": "object", "properties": {"y": {"enum": ["a"]}}, "required": ["y"], "additionalProperties": False}
# No grammar holds all of it.
SETS = {"type": "object", "properties": {"x": {"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True}}}
FREE: dict[str, Any] = {"type": "custom", "custom": {"name": "run"}}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
BUY: dict[str, Any] = {"type": "function", "function": {"name": "shop__buy"}}
RAN = {"id": "c3", "plugin": "shop", "name": "price", "arguments": '{"item": "hat"}', "status": "ok", "output": 9}
SECOND = {"type": "function", "function": {"name": "other", "parameters": OTHER}}


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *turns]}


def called(**changes: Any) -> dict[str, Any]:
    return messages({"role": "assistant", "content": "", "tool_calls": [{**CALL, **changes}]}, RESULT)


def called_own(**changes: str) -> dict[str, Any]:
    return messages({"role": "assistant", "content": "", "tool_calls": [inner(OWN, "custom", **changes)]}, RESULT)


def inner(base: dict[str, Any], key: str, **changes: Any) -> dict[str, Any]:
    return {**base, key: {**base[key], **changes}}


def form(**changes: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, **changes}}}


def tools(*given: dict[str, Any], choice: Any = "auto") -> dict[str, Any]:
    return {"tools": list(given), "tool_choice": choice}


def stream(**options: bool) -> dict[str, Any]:
    return {"stream": True, "stream_options": options}


def outputs(**given: Any) -> dict[str, Any]:
    return {"structured_outputs": given}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    only = [{"type": "function", "function": {"name": name}} for name in names]
    return tools(TOOL, SECOND, choice={"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": only}})


def plugin(name: str = "shop", **fields: Any) -> dict[str, Any]:
    return {"plugins": [{"name": name, **fields}]}


def bought(**rules: Any) -> dict[str, Any]:
    """A call with consequences, which the rules hold back or not."""
    rule = {"require_approval": rules} if rules else {}
    return {**plugin(**rule), "tool_choice": BUY, "max_tokens": 200}


# "Model.field" -> requests without and with it.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "StreamOptions.include_usage": (stream(), stream(include_usage=True)),
    "StreamOptions.continuous_usage_stats": (
        stream(include_usage=True),
        stream(include_usage=True, continuous_usage_stats=True),
    ),
    "StructuredOutputs.json": ({}, outputs(json=SCHEMA)),
    "StructuredOutputs.regex": ({}, outputs(regex="ab")),
    "StructuredOutputs.choice": ({}, outputs(choice=["ab"])),
    "StructuredOutputs.grammar": ({}, outputs(grammar='start: "ab"')),
    "StructuredOutputs.json_object": ({}, outputs(json_object=True)),
    "StructuredOutputs.disable_additional_properties": (
        outputs(json={"properties": {"x": {}}}),
        outputs(json={"properties": {"x": {}}}, disable_additional_properties=False),
    ),
    "ResponseFormat.type": ({}, {"response_format": {"type": "json_object"}}),
    "ResponseFormat.json_schema": ({}, form()),
    "ResponseFormat.pattern": ({}, {"response_format": {"type": "regex", "pattern": "ab"}}),
    "ResponseFormat.grammar": ({}, {"response_format": {"type": "grammar", "grammar": 'start: "ab"'}}),
    "JsonSchemaFormat.schema": (form(), form(schema=OTHER)),
    "JsonSchemaFormat.strict": (form(schema=SETS), form(schema=SETS, strict=True)),
    "Message.role": (messages(LAST), messages({**LAST, "role": "user"})),
    "Message.content": (messages(LAST), messages({**LAST, "content": "You"})),
    "Message.name": (messages(LAST), messages({**LAST, "name": "Bob"})),
    "Message.tool_calls": (messages({**LAST, "tool_calls": []}), messages({**LAST, "tool_calls": [CALL]})),
    "Message.tool_call_id": (called(), messages(called()["messages"][1], {**RESULT, "tool_call_id": "c9"})),
    "Message.refusal": (messages({"role": "assistant"}), messages({"role": "assistant", "refusal": "No"})),
    "Message.reasoning_content": (messages(LAST), messages({**LAST, "reasoning_content": "So"})),
    "Message.reasoning": (messages(LAST), messages({**LAST, "reasoning": "So"})),
    "Message.prefix": (messages(LAST), messages({**LAST, "prefix": True})),
    "Message.partial": (messages(LAST), messages({**LAST, "partial": True})),
    "ContentPart.type": (
        messages({**USER, "content": [{"type": "text", "text": "a"}]}),
        messages({**USER, "content": [{"type": "image_url", "text": "a"}]}),
    ),
    "ContentPart.text": (
        messages({**USER, "content": [{"type": "text", "text": "a"}]}),
        messages({**USER, "content": [{"type": "text", "text": "b"}]}),
    ),
    "ContentPart.refusal": (
        messages({**LAST, "content": [{"type": "refusal", "refusal": "a"}]}),
        messages({**LAST, "content": [{"type": "refusal", "refusal": "b"}]}),
    ),
    "ToolCall.id": (called(), called(id="c7")),
    "ToolCall.function": (called(), called(function={"name": "weather", "arguments": '{"a": 1}'})),
    "ToolCall.custom": (called(), called_own()),
    "FunctionCall.name": (called(), called(**inner(CALL, "function", name="f"))),
    "FunctionCall.arguments": (called(), called(**inner(CALL, "function", arguments='{"a": 1}'))),
    "CustomCall.name": (called_own(), called_own(name="go")),
    "CustomCall.input": (called_own(), called_own(input="cd")),
    "Tool.type": (tools(TOOL), tools({"type": "other"})),
    "Tool.function": (tools(TOOL), tools(SECOND)),
    "Tool.custom": (tools(TOOL), tools(FREE)),
    "Function.name": (tools(TOOL), tools(inner(TOOL, "function", name="f"))),
    "Function.description": (tools(TOOL), tools(inner(TOOL, "function", description="d"))),
    "Function.parameters": (tools(TOOL), tools(inner(TOOL, "function", parameters=OTHER))),
    "Function.strict": (
        tools(inner(TOOL, "function", parameters={**OTHER, "not": {}}, strict=False)),
        tools(inner(TOOL, "function", parameters={**OTHER, "not": {}}, strict=True)),
    ),
    "Custom.name": (tools(FREE), tools(inner(FREE, "custom", name="go"))),
    "Custom.description": (tools(FREE), tools(inner(FREE, "custom", description="d"))),
    "Custom.format": (tools(FREE), tools(inner(FREE, "custom", format={"type": "grammar", "grammar": {}}))),
    "ChosenTool.type": (tools(TOOL), tools(TOOL, choice=NAMED)),
    "ChosenTool.function": (tools(TOOL, SECOND), tools(TOOL, SECOND, choice=NAMED)),
    "ChosenTool.custom": (
        tools(TOOL, FREE, choice=NAMED),
        tools(TOOL, FREE, choice={"type": "custom", "custom": {"name": "run"}}),
    ),
    "ChosenTool.allowed_tools": (tools(TOOL, SECOND), allowed("required", "weather")),
    "ChosenFunction.name": (
        tools(TOOL, SECOND, choice=NAMED),
        tools(TOOL, SECOND, choice=inner(NAMED, "function", name="other")),
    ),
    "Message.plugin_calls": (
        {**plugin(), **messages(LAST)},
        {**plugin(), **messages({**LAST, "plugin_calls": [RAN]})},
    ),
    "ChosenPlugin.name": (plugin(), plugin("weather")),
    "ChosenPlugin.allowed_tools": (plugin(), plugin(allowed_tools=["price"])),
    "ChosenPlugin.require_approval": (bought(), {**bought(), **plugin(require_approval="never")}),
    "ApprovalFilters.always": (
        bought(never={"tool_names": ["buy"]}),
        bought(never={"tool_names": ["buy"]}, always={"tool_names": ["buy"]}),
    ),
    "ApprovalFilters.never": (bought(), bought(never={"tool_names": ["buy"]})),
    "ApprovalFilter.tool_names": (bought(never={"tool_names": ["price"]}), bought(never={"tool_names": ["buy"]})),
    "ApprovalFilter.read_only": (bought(never={"read_only": True}), bought(never={"read_only": False})),
    "AllowedTools.mode": (allowed("auto", "weather"), allowed("required", "weather")),
    "AllowedTools.tools": (allowed("required", "weather"), allowed("required", "other")),
}
# The documents say so.
WITHOUT_EFFECT = {
    "StreamOptions.include_obfuscation": "`stream_options.include_obfuscation`",
    "JsonSchemaFormat.name": "`json_schema.name`",
    "JsonSchemaFormat.description": "`json_schema.description`",
    "ToolCall.type": "`tool_calls[].type`",
}
TEMPLATE = "{% for m in messages %}{{ m | tojson }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.fixture(scope="module")
def loud() -> Iterator[LLM]:
    """A model whose template shows all of its variables."""
    with LLM(chat_template=TEMPLATE) as llm:
        yield llm


def test_every_field_has_a_case() -> None:
    found: dict[type[BaseModel], None] = {}

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found[kind] = None
            for field in kind.model_fields.values():
                visit(field.annotation)
        for part in getattr(kind, "__args__", ()):
            visit(part)

    visit(ChatRequest)
    names = {f"{k.__name__}.{f.alias or n}" for k in found if k is not ChatRequest for n, f in k.model_fields.items()}
    assert names == CASES.keys() | WITHOUT_EFFECT.keys()
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(words in text for words in WITHOUT_EFFECT.values())


@pytest.mark.parametrize("name", CASES)
def test_a_field_inside_changes_the_outcome(loud: LLM, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen: list[Any] = []
    submit = LLM.submit

    def note(self: LLM, prompt: Any, params: Any = None, **more: Any) -> Any:
        seen.append((prompt, repr(params)))
        return submit(self, prompt, params, **more)

    monkeypatch.setattr(LLM, "submit", note)

    def outcome(body: dict[str, Any]) -> Any:
        seen.clear()
        with both()[0].host() as host:
            response = TestClient(create_app(loud, ServerConfig(plugins=host))).post(
                "/v1/chat/completions", json={"messages": [USER], "temperature": 0, "max_tokens": 4, **body}
            )
        rows = [json.loads(r[6:]) for r in response.text.splitlines() if r.startswith("data: {")]
        usage = [row.get("usage") is not None for row in rows]
        return response.status_code, list(seen), usage

    without, changed = CASES[name]
    assert outcome(changed) != outcome(without)
