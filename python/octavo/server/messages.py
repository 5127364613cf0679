"""Renders the messages of a request with the model's chat template."""

from __future__ import annotations

import json
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.server.errors import bad_request, from_octavo
from octavo.server.requests import Message

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "documents"})


def render(
    llm: LLM,
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool = True,
    variables: dict[str, Any] | None = None,
) -> str:
    """The prompt.

    Raises:
        ApiError: 400 for content that is not text, and for messages that the template rejects.
    """
    taken = _RESERVED & set(variables or {})
    if taken:
        raise bad_request(
            f"chat_template_kwargs names {min(taken)!r}, which has a field of its own", "chat_template_kwargs"
        )
    turns = [_turn(m, i) for i, m in enumerate(messages)]
    try:
        return llm.render_chat(turns, tools=tools, add_generation_prompt=add_generation_prompt, **(variables or {}))
    except InvalidRequestError as error:
        raise from_octavo(error, {"messages": "messages", "prompt": "messages"}) from error


def _turn(message: Message, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    # "developer" is the new name of the system role; templates use the old one.
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if message.role in ("user", "system", "developer", "tool", "function") and message.content is None:
        raise bad_request(f"{where}.content is missing", f"{where}.content")
    turn["content"] = _text(message, where)
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(c.id, c.function, f"{where}.tool_calls[{i}]") for i, c in enumerate(message.tool_calls)
        ]
    return turn


def _call(call_id: str, function: Any, where: str) -> dict[str, Any]:
    if function is None:
        raise bad_request(f"{where}: only calls of functions are supported", where)
    arguments: Any = function.arguments
    try:
        # Templates apply `tojson` to the arguments, which therefore must be an object.
        found = json.loads(arguments)
        arguments = found if isinstance(found, dict) else arguments
    except (ValueError, RecursionError):
        pass
    return {"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}}


def _text(message: Message, where: str) -> str:
    content = message.content
    if content is None:
        return message.refusal or ""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        text = part.text if part.type in ("text", "input_text", "output_text") else part.refusal
        if text is None:
            name = f"{where}.content[{i}]"
            raise bad_request(f"{name} is of type {part.type!r}: this model reads text only", name)
        texts.append(text)
    return "\n".join(texts)
