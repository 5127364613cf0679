"""From the messages of a request to the prompt: what the model's chat template gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.server.calls.arguments import arguments_object
from octavo.server.calls.as_text import calls_as_text
from octavo.server.calls.ids import link, shorten
from octavo.server.calls.kinds import INPUT
from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.continuation import FIELD, check_format, continues
from octavo.server.errors import bad_request, from_octavo
from octavo.server.fields.requests import ChatRequest, Message, ToolCall

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


def prompt_of(context: Context, request: ChatRequest, toolbox: Toolbox, packs: Sequence[str] = ()) -> str:
    """The prompt of a conversation. Every API that has messages makes a ChatRequest and calls this.

    Args:
        packs: packs whose texts begin the system message.

    Raises:
        ApiError: 400 for content that is not text, for fields that contradict each other, and for messages that the
            template rejects.
    """
    variables = dict(request.chat_template_kwargs or {})
    taken = _RESERVED & set(variables)
    if taken:
        raise bad_request(
            f"chat_template_kwargs names {min(taken)!r}, which has a field of its own", "chat_template_kwargs"
        )
    variables.pop(FIELD, None)
    unfinished = continues(request)
    turns = context.with_packs_chat(template_turns(context, request.messages, toolbox), packs)
    if unfinished:
        check_format(request, turns[-1]["content"])
        variables[FIELD] = True
    try:
        return context.llm.render_chat(
            turns,
            tools=toolbox.for_template(),
            add_generation_prompt=not unfinished and request.add_generation_prompt is not False,
            **variables,
        )
    except InvalidRequestError as error:
        raise from_octavo(error, {"messages": "messages", "prompt": "messages"}) from error


def template_turns(context: Context, messages: Sequence[Message], toolbox: Toolbox) -> list[dict[str, Any]]:
    """`messages` in the form that the chat template reads.

    Ids of calls have a form that the template takes, and arguments are objects. If the template shows no calls, they
    are text. If it describes no tools, the first message does.
    """
    turns = [_turn(context, message, i) for i, message in enumerate(messages)]
    if any(turn["role"] == "system" for turn in turns) and not context.template_supports_system:
        turns = _said_by_user(context, turns)
    link(turns)
    if context.needs_short_ids:
        shorten(turns)
    if any(turn.get("tool_calls") or turn["role"] in ("tool", "function") for turn in turns):
        form = context.call_form(with_tools=toolbox.for_template() is not None)
        if form == "none":
            turns = calls_as_text(turns, context.tool_format, results=not context.shows_results)
        elif form == "text":
            for call in (call for turn in turns for call in turn.get("tool_calls") or ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return toolbox.instruct(turns)


def _turn(context: Context, message: Message, index: int) -> dict[str, Any]:
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
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if reasoning is not None:
        turn["reasoning_content"] = reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(context, call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    return turn


def _said_by_user(context: Context, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`turns` with the text of system messages before the user's next text: the template has no place for them."""
    context.warn_once("system", "the chat template has no system message: its text begins the turn of the user")
    out: list[dict[str, Any]] = []
    texts: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            texts.append(turn["content"])
        elif turn["role"] == "user" and texts:
            out.append({**turn, "content": "\n\n".join([*texts, turn["content"]])})
            texts = []
        else:
            out.append(turn)
    return [*out, {"role": "user", "content": "\n\n".join(texts)}] if texts else out


def _call(context: Context, call: ToolCall, where: str) -> dict[str, Any]:
    if call.function is not None:
        name = call.function.name
        arguments, whole = arguments_object(call.function.arguments)
        if not whole:
            context.warn_once(
                "arguments of a call", "arguments of an earlier call are no JSON object: shown as far as readable"
            )
    elif call.custom is not None:
        name, arguments = call.custom.name, {INPUT: call.custom.input}
    else:
        raise bad_request(f"{where}: only calls of functions and custom tools are supported", where)
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}


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
