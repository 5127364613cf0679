"""Requests of Anthropic's API: what the model reads of them, and what is refused, skipped or logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from octavo import LLM
from octavo.server import create_app
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.fields.requests import read
from octavo.server.protocols.anthropic.conversion import convert
from octavo.server.protocols.anthropic.requests import CountTokensRequest, MessagesRequest
from starlette.testclient import TestClient

PNG: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
CACHED = {"cache_control": {"type": "ephemeral"}}
SCHEMA: Any = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


@pytest.fixture
def context(llm: LLM) -> Context:
    found: Context = create_app(llm).state.octavo.context
    return found


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def chat(context: Context, *turns: Any, **fields: Any) -> Any:
    return convert(context, read(CountTokensRequest, {"messages": list(turns), **fields}))


def refused(context: Context, *turns: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat(context, *turns, **fields).chat()
    assert caught.value.status == 400
    return caught.value


CALL = {"type": "tool_use", "id": "toolu_1", "name": "find", "input": {"q": "é", "n": 12345678901234567890123}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "found"}
TURNS: list[tuple[list[Any], list[dict[str, Any]]]] = [
    ([{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}]),
    ([user(text("Hi", **CACHED), text("you"))], [{"role": "user", "content": "Hi\nyou"}]),
    # Turns of the same role in a row are one turn.
    ([user(text("a")), user(text("b"))], [{"role": "user", "content": "a\nb"}]),
    (
        [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "user", "content": "b"}],
    ),
    (
        [user(text("a")), {"role": "assistant", "content": [text("b"), CALL]}, user(RESULT, text("c"))],
        [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": "b",
                "tool_calls": [
                    {
                        "id": "toolu_1",
                        "type": "function",
                        "function": {"name": "find", "arguments": '{"q": "é", "n": 12345678901234567890123}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "found"},
            {"role": "user", "content": "c"},
        ],
    ),
    # Thinking is kept for templates that show it; only Anthropic's models can read the redacted kind.
    (
        [
            user(text("a")),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    text("b"),
                ],
            },
            user(text("c")),
        ],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "hm"},
            {"role": "user", "content": "c"},
        ],
    ),
    # Documents of text
    (
        [
            user(
                {
                    "type": "document",
                    "title": "T",
                    "source": {"type": "text", "media_type": "text/plain", "data": "body"},
                },
                {"type": "document", "source": {"type": "content", "content": [text("one"), text("two")]}},
                {"type": "search_result", "source": "http://a", "title": "S", "content": [text("three")]},
            )
        ],
        [{"role": "user", "content": "T\nbody\none\ntwo\nS\nthree"}],
    ),
    # Blocks of tools that Anthropic's servers have run
    (
        [
            user(text("a")),
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                    text("b"),
                ],
            },
            user(text("c")),
        ],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ),
]


@pytest.mark.parametrize(("turns", "wanted"), TURNS)
def test_turns(context: Context, turns: list[Any], wanted: list[Any]) -> None:
    found = chat(context, *turns)
    assert found.messages == wanted
    found.chat()


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ({}, ""),
        ({"content": "ok"}, "ok"),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": []}, ""),
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": "Error: no such file", "is_error": True}, "Error: no such file"),
        ({"is_error": True}, "Error"),
        ({"content": [text("a"), PNG]}, "a\n[image: not shown, this model reads text only]"),
        ({"content": [{"type": "tool_reference", "tool_name": "find"}]}, "[tool: find]"),
    ],
)
def test_results_of_tools(context: Context, block: dict[str, Any], wanted: str) -> None:
    turn = user({"type": "tool_result", "tool_use_id": "x", **block})
    (message,) = chat(context, turn).messages
    assert message == {"role": "tool", "tool_call_id": "x", "content": wanted}


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        ([PNG], "messages[0].content[0]"),
        ([text("a"), {"type": "image", "source": {"type": "url", "url": "http://a"}}], "messages[0].content[1]"),
        ([{"type": "document", "source": {"type": "base64", "data": "x"}}], "messages[0].content[0].source"),
        ([{"type": "document", "source": {"type": "file", "file_id": "f"}}], "messages[0].content[0].source"),
        (
            [{"type": "document", "citations": {"enabled": True}, "source": {"type": "text", "data": "x"}}],
            "messages[0].content[0].citations",
        ),
        ([{"type": "audio"}], "messages[0].content[0]"),
        ([{}], "messages[0].content[0]"),
        ([{"type": "text"}], "messages[0].content[0].text"),
        ([{"type": "text", "text": 3}], "messages[0].content[0].text"),
        ([{"type": "tool_result", "content": "x"}], "messages[0].content[0].tool_use_id"),
        ([{"type": "tool_result", "tool_use_id": "x", "content": [3]}], "messages[0].content[0].content[0]"),
        ([{"type": "tool_result", "tool_use_id": "x", "content": {}}], "messages[0].content[0].content"),
        ([CALL], "messages[0].content[0]"),
    ],
)
def test_what_is_not_text_is_refused_by_name(context: Context, blocks: list[Any], named: str) -> None:
    error = refused(context, user(*blocks))
    assert error.param == named
    assert named in error.message


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({**CALL, "input": "x"}, "messages[1].content[0].input"),
        ({**CALL, "id": None}, "messages[1].content[0].id"),
        ({"type": "tool_use", "id": "a", "input": {}}, "messages[1].content[0].name"),
        (PNG, "messages[1].content[0]"),
        (CALL, "messages[1]"),
    ],
)
def test_a_bad_turn_of_the_assistant_is_refused_by_name(context: Context, block: Any, named: str) -> None:
    assert refused(context, user(text("a")), {"role": "assistant", "content": [block]}).param == named


def test_the_system_message(context: Context) -> None:
    """Claude Code's line of billing is different in each request: it would spoil the prefix cache."""
    system = [text("x-anthropic-billing-header: cc_version=2; cch=1a2b3;"), text("One.", **CACHED), text("Two.")]
    found = chat(context, user(text("a")), system=system)
    assert found.messages[0] == {"role": "system", "content": "One.\nTwo."}
    assert chat(context, user(text("a")), system="One.").messages[0]["content"] == "One."
    assert len(chat(context, user(text("a")), system="").messages) == 1
    assert refused(context, user(text("a")), system=[PNG]).param == "system[0]"


STRICT = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}
{% endfor %}"""


def test_a_template_without_a_system_message() -> None:
    """The text of the system message begins the user's turn."""
    with LLM(chat_template=STRICT, max_num_seqs=1) as llm:
        app = create_app(llm)
        turns = [user(text("a")), {"role": "assistant", "content": "b"}, {"role": "system", "content": "later"}]
        body: Any = {"max_tokens": 1, "system": "Be brief.", "messages": [*turns, user(text("c"))]}
        found = chat(app.state.octavo.context, *body["messages"], system="Be brief.")
        assert found.messages == [
            {"role": "user", "content": "Be brief.\na"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "later\nc"},
        ]
        assert TestClient(app).post("/v1/messages", json=body).status_code == 200


TOOLS: Any = [
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    {"name": "find", "description": "Finds.", "input_schema": SCHEMA, **CACHED},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
    {"type": "custom", "name": "add", "input_schema": {"type": "object"}, "strict": True},
]


def test_tools_of_servers_are_skipped_with_a_warning(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = chat(context, user(text("a")), tools=TOOLS).chat()
    assert [tool.function.name for tool in found.tools] == ["find", "add"]
    assert found.tools[0].function.parameters == SCHEMA
    assert found.tools[1].function.strict is True
    said = [r.getMessage() for r in caplog.records]
    for kind in ("web_search_20250305", "bash_20250124", "text_editor_20250728"):
        assert sum(kind in line for line in said) == 1


@pytest.mark.parametrize(
    ("choice", "wanted", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", None),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", None),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}, None),
    ],
)
def test_tool_choice(context: Context, choice: Any, wanted: Any, parallel: bool | None) -> None:
    found = chat(context, user(text("a")), tools=TOOLS, tool_choice=choice)
    assert found.body["tool_choice"] == wanted
    assert found.body.get("parallel_tool_calls") is parallel
    found.chat()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": TOOLS[:1], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "bash"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        # The index is the client's, not the one behind skipped tools.
        ({"tools": [TOOLS[0], {"name": "a b", "input_schema": {}}]}, "tools[1].name"),
        ({"mcp_servers": [{"type": "url", "url": "http://a", "name": "m"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(context: Context, fields: dict[str, Any], named: str) -> None:
    error = refused(context, user(text("a")), **fields)
    assert error.param == named
    assert named in error.message


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, True),
        ({"type": "adaptive"}, True),
        ({"type": "between_tools"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking_sets_the_switches_of_templates(context: Context, thinking: Any, enabled: bool) -> None:
    found = chat(context, user(text("a")), thinking=thinking)
    assert found.body["chat_template_kwargs"] == {"enable_thinking": enabled, "thinking": enabled}
    assert "chat_template_kwargs" not in chat(context, user(text("a"))).body


def test_what_has_no_effect_is_logged_once(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    fields: Any = {
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "output_config": {"effort": "high", "task_budget": {"type": "tokens", "total": 9}},
    }
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            chat(context, user(text("a")), **fields)
    said = [r.getMessage() for r in caplog.records]
    for words in ("budget_tokens", "--reasoning-parser", "output_config.effort", "output_config.task_budget"):
        assert sum(words in line for line in said) == 1, words


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("stop", ["x"], "stop_sequences"),
        ("response_format", {"type": "json_object"}, "output_config.format"),
        ("guided_json", {}, None),
        ("guided_json", SCHEMA, "output_config.format"),
        ("max_completion_tokens", 5, "max_tokens"),
        ("max_new_tokens", 5, "max_tokens"),
        ("n", 2, "/v1/chat/completions"),
        ("n", 1, None),
        ("seed", 3, "/v1/chat/completions"),
        ("logprobs", True, "/v1/chat/completions"),
        ("stream_options", {"include_usage": True}, None),
        ("user", "u", None),
    ],
)
def test_fields_of_other_apis(context: Context, field: str, value: Any, remedy: str | None) -> None:
    body = {"messages": [user(text("a"))], "max_tokens": 4, field: value}
    if remedy is None:
        read(MessagesRequest, body)
    else:
        with pytest.raises(ApiError) as caught:
            read(MessagesRequest, body)
        assert caught.value.param == field
        assert remedy in caught.value.message
    # It changes no count.
    read(CountTokensRequest, body)


def test_an_empty_last_turn_is_left_out(context: Context) -> None:
    found = chat(context, user(text("a")), {"role": "assistant", "content": ""})
    assert len(found.messages) == 1
    assert "continue_final_message" not in found.body
