"""Requests in the form in which Claude Code sends them: its headers, blocks, tools and turns."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from servers import KEY, Process

HEADERS = {
    "accept": "application/json",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "anthropic-dangerous-direct-browser-access": "true",
    "authorization": f"Bearer {KEY}",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
    "x-app": "cli",
    "x-stainless-helper-method": "stream",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
CACHED = {"cache_control": {"type": "ephemeral"}}


def tool(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    """A tool. Its description is short: the embedded model has a short context."""
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"name": name, "description": "", "input_schema": schema}


STRING: Any = {"type": "string"}
NUMBER: Any = {"type": "number"}
TODO: Any = {
    "type": "object",
    "properties": {
        "content": {"type": "string", "minLength": 1},
        "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
        "activeForm": {"type": "string", "minLength": 1},
    },
    "required": ["content", "status", "activeForm"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    tool("Task", ["description", "prompt"], description=STRING, prompt=STRING, subagent_type=STRING),
    tool("Bash", ["command"], command=STRING, timeout=NUMBER, run_in_background={"type": "boolean"}),
    tool("Glob", ["pattern"], pattern=STRING, path=STRING),
    tool("Grep", ["pattern"], **{"pattern": STRING, "-A": NUMBER, "output_mode": {"enum": ["content", "count"]}}),
    tool("ExitPlanMode", ["plan"], plan=STRING),
    tool("Read", ["file_path"], file_path=STRING, offset=NUMBER, limit=NUMBER),
    tool("Edit", ["file_path", "old_string"], file_path=STRING, old_string=STRING, replace_all={"default": False}),
    tool("Write", ["file_path", "content"], file_path=STRING, content=STRING),
    tool("NotebookEdit", ["notebook_path"], notebook_path=STRING, cell_type={"enum": ["code", "markdown"]}),
    tool("WebFetch", ["url", "prompt"], url={"type": "string", "format": "uri"}, prompt=STRING),
    tool("TodoWrite", ["todos"], todos={"type": "array", "items": TODO}),
    tool("BashOutput", ["bash_id"], bash_id=STRING, filter=STRING),
    tool("KillShell", ["shell_id"], shell_id=STRING),
    tool("SlashCommand", ["command"], command=STRING),
    {**tool("mcp__files__list", [], path=STRING), **CACHED},
    {"type": "web_search_20250305", "name": "web_search", "allowed_domains": ["a.example"], "max_uses": 8},
]
USER = {"user_id": json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": "6f1c"})}
REQUEST: dict[str, Any] = {
    "model": "octavo-embedded",
    "max_tokens": 32000,
    "stream": True,
    "temperature": 1,
    "metadata": USER,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.0.0.abc; cc_entrypoint=cli; cch=1f2e3;"},
        {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude.", **CACHED},
        {"type": "text", "text": "You help users with software.\n\n# Tone\nBe short.", **CACHED},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n"},
                {"type": "text", "text": "Who are you?", **CACHED},
            ],
        }
    ],
    "tools": TOOLS,
    "thinking": {"type": "enabled", "budget_tokens": 31999},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
}
LATER: list[Any] = [
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I read the file.", "signature": "EqQB"},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "toolu_01A", "name": "Read", "input": {"file_path": "/a/b.py"}},
            {"type": "tool_use", "id": "toolu_01B", "name": "Bash", "input": {"command": "ls"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_01A", "content": "1\tx = 1"},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_01B",
                "content": "<tool_use_error>no</tool_use_error>",
                "is_error": True,
                **CACHED,
            },
            {"type": "text", "text": "<system-reminder>Be short.</system-reminder>"},
        ],
    },
]


def post(server: Process, body: dict[str, Any], path: str = "/v1/messages?beta=true") -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=HEADERS, timeout=60)


def events(found: httpx.Response) -> list[dict[str, Any]]:
    assert found.status_code == 200, found.text
    read = []
    for part in found.text.strip().split("\n\n"):
        name, data = part.split("\n")
        read.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {read[-1]['type']}"
    return read


@pytest.mark.parametrize("later", [[], LATER], ids=["first turn", "after tools"])
def test_a_turn(server: Process, later: list[Any]) -> None:
    body = {**REQUEST, "max_tokens": 40, "messages": REQUEST["messages"] + later}
    found = events(post(server, body))
    assert found[0]["type"] == "message_start"
    assert found[-1]["type"] == "message_stop"
    assert found[-2]["delta"]["stop_reason"] in ("end_turn", "max_tokens", "tool_use")
    usage = found[-2]["usage"]
    counted = {k: v for k, v in body.items() if k in ("model", "system", "messages", "tools", "thinking")}
    count = post(server, counted, "/v1/messages/count_tokens?beta=true").json()["input_tokens"]
    assert count == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_the_limit_of_a_large_model_is_cut_to_this_one(server: Process) -> None:
    body = {**REQUEST, "stream": False, "stop_sequences": ["."]}
    assert post(server, body).status_code == 200


def test_the_prefix_is_found_again_though_the_first_line_differs(server: Process) -> None:
    system = [{"type": "text", "text": "x-anthropic-billing-header: cch=ffffe;"}, *REQUEST["system"][1:]]
    first = {**REQUEST, "stream": False, "max_tokens": 1}
    post(server, first)
    assert post(server, {**first, "system": system}).json()["usage"]["cache_read_input_tokens"] > 500


def test_a_forced_tool_has_its_input(server: Process) -> None:
    body = {**REQUEST, "max_tokens": 200, "temperature": 0, "tool_choice": {"type": "tool", "name": "TodoWrite"}}
    found = events(post(server, body))
    (start,) = [e for e in found if e["type"] == "content_block_start"]
    assert (start["content_block"]["type"], start["content_block"]["name"]) == ("tool_use", "TodoWrite")
    parts = [e["delta"]["partial_json"] for e in found if e["type"] == "content_block_delta"]
    assert "".join(parts).startswith("{")


def test_the_question_for_a_title(server: Process) -> None:
    """A short request of the small model beside the conversation, with a last turn of the assistant."""
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "{"}]
    body = {"model": "octavo-embedded", "max_tokens": 8, "messages": turns, "system": [], "metadata": USER}
    found = post(server, body).json()
    assert found["content"][0]["type"] == "text"
    assert found["usage"]["output_tokens"] > 0
