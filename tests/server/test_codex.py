"""A request of OpenAI's Codex."""

from __future__ import annotations

from typing import Any

from in_process import TOOL, Served
from octavo import LLM
from octavo.server import ServerConfig

MODEL = "octavo-embedded"
FUNCTION: Any = {"type": "function", **TOOL["function"]}


def call(call_id: str, name: str, arguments: str) -> Any:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def result(call_id: str, output: str) -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def test_codex(llm: LLM) -> None:
    """What OpenAI's Codex sends with its defaults."""
    tools: Any = [
        {**FUNCTION, "name": "exec_command", "strict": False},
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Patch.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"},
        },
        {"type": "web_search", "external_web_access": False},
        {
            "type": "namespace",
            "name": "mcp__docs__",
            "description": "Docs.",
            "tools": [{**FUNCTION, "name": "search", "defer_loading": True}],
        },
        {
            "type": "tool_search",
            "execution": "client",
            "description": "x",
            "parameters": {"type": "object", "properties": {}},
        },
    ]
    items: Any = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAAA"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        call("call_1", "exec_command", '{"city": "Oslo"}'), result("call_1", "exit 0"),
        {"type": "custom_tool_call", "status": "completed", "call_id": "call_2", "name": "apply_patch", "input": "***"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "ok"},
    ]  # fmt: skip
    served = Served(llm, ServerConfig())
    events = list(
        served.client.responses.create(
            model=MODEL, instructions="You are Codex.", input=items, tools=tools, tool_choice="auto",
            parallel_tool_calls=False, reasoning={"effort": "medium", "summary": "auto"}, store=False, stream=True,
            include=["reasoning.encrypted_content"], prompt_cache_key="k", text={"verbosity": "medium"},
            max_output_tokens=8, extra_body={"client_metadata": {"a": "b"}},
        )
    )  # fmt: skip
    assert events[-1].type in ("response.completed", "response.incomplete")
