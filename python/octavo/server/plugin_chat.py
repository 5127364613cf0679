"""Plugins in the chat API: the fields of a request, calls that an earlier answer ran, and calls that wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from octavo.plugins.host.outcome import Outcome
from octavo.plugins.loop import WAITING, Loop, Offer, PluginCall
from octavo.server.approved import written_call
from octavo.server.calls.arguments import arguments_object
from octavo.server.calls.ids import id_has
from octavo.server.context import Context
from octavo.server.continuation import continues
from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChatRequest, ChosenPlugin, FunctionCall, Message, ToolCall
from octavo.server.plugins import host_of, offers, refuse_operators_fields
from octavo.server.rounds import RoundReader, Rounds, shown_result

# Text between the contents of two rounds.
_GAP = "\n\n"


def chat_rounds(context: Context, request: ChatRequest, owner: str | None) -> Rounds | None:
    """The rounds of a request that names plugins; None if it names none.

    Args:
        owner: the caller.

    Raises:
        ApiError: 400 for fields that are invalid beside plugins.
    """
    if not request.plugins:
        alone = next((n for n in ("plugin_approvals", "max_plugin_rounds") if getattr(request, n)), None)
        if alone is not None:
            raise bad_request(f"{alone} is given without plugins: name them in plugins", alone)
        return None
    if (request.n or 1) > 1:
        raise bad_request(f"n is {request.n} and plugins are named: an answer with plugins has one choice", "n")
    if continues(request):
        raise bad_request("a message cannot be continued with plugins: leave one of the two out", "plugins")
    found: list[Offer] = []
    missing: list[Outcome] = []
    empty = next((i for i, plugin in enumerate(request.plugins) if plugin == ""), None)
    if empty is not None:
        raise bad_request(f"plugins[{empty}] is empty: name a plugin of the server", f"plugins[{empty}]")
    chosen = [p if isinstance(p, ChosenPlugin) else ChosenPlugin(name=p) for p in request.plugins]
    for i, plugin in enumerate(chosen):
        where = f"plugins[{i}]"
        if plugin.name in [p.name for p in chosen[:i]]:
            raise bad_request(f"{where} is {plugin.name[:80]!r}, which stands before it: name a plugin once", where)
        refuse_operators_fields(plugin.model_extra or {}, where)
        allowed, approval = plugin.allowed_tools, plugin.require_approval
        new, fault = offers(context, plugin.name, where, allowed=allowed, approval=approval)
        found += new
        if fault is not None:
            missing.append(Outcome("", plugin.name, "", {}, "unavailable", text=fault))
    loop = Loop(
        host_of(context),
        found,
        max_rounds=request.max_plugin_rounds or context.config.max_plugin_rounds,
        deadline=request.timeout,
        missing=missing,
        once=context.approved.of(owner),
    )
    messages = [turn for message in request.messages for turn in _turns(context, message, loop)]
    plain = request.model_copy(update={"messages": messages})
    waiting = list(_waiting(messages, loop, request.plugin_approvals or {}))
    unknown = next((i for i in request.plugin_approvals or {} if i not in [call.id for call in waiting]), None)
    if unknown is not None:
        message = f"plugin_approvals names {unknown[:80]!r}: the last turn has no call of a plugin with this id"
        raise bad_request(message + " that has no result", "plugin_approvals")
    return Rounds(context, plain, loop, RoundReader(loop.names, gap=_GAP), waiting)


def _waiting(messages: list[Message], loop: Loop, approvals: dict[str, bool]) -> Iterator[PluginCall]:
    """Calls of plugins in the last turn of the assistant that have no result."""
    answered: set[str | None] = set()
    for message in reversed(messages):
        if message.role == "tool":
            answered.add(message.tool_call_id)
            continue
        for call in message.tool_calls or () if message.role == "assistant" else ():
            function = call.function
            if function is None or function.name not in loop.names or call.id is None or call.id in answered:
                continue
            given = function.arguments
            text = given if isinstance(given, str) else json.dumps(arguments_object(given)[0], ensure_ascii=False)
            current = id_has(call.id, written_call(loop.tool(function.name), text))
            yield PluginCall(call.id, function.name, text, approvals.get(call.id), current=current)
        return


def _turns(context: Context, message: Message, loop: Loop) -> Iterator[Message]:
    """A message, after the calls that the answer has run before its text: clients send them back with it."""
    calls, results = [], []
    for i, entry in enumerate(message.plugin_calls or ()):
        call_id, plugin, name = entry.get("id"), entry.get("plugin"), entry.get("name")
        if not name or entry.get("status") == WAITING:
            continue
        if not all(isinstance(value, str) for value in (call_id, plugin, name)):
            where = f"messages[].plugin_calls[{i}]"
            raise bad_request(f"{where} is not as the server sent it: id, plugin and name are texts", where)
        function = loop.name_of(str(plugin), str(name))
        arguments = entry.get("arguments")
        calls.append(ToolCall(id=call_id, function=FunctionCall(name=function, arguments=arguments)))
        output, status = entry.get("output"), entry.get("status")
        outcome = Outcome(function, str(plugin), str(name), {}, status or "internal", content=output, text=str(output))
        text = shown_result(context, outcome)
        results.append(Message(role="tool", tool_call_id=call_id, name=function, content=text))
    if calls:
        yield Message(role="assistant", content=None, tool_calls=calls)
        yield from results
    if not calls or message.content or message.tool_calls:
        yield message


def outcome_fields(call: PluginCall, outcome: Outcome) -> dict[str, Any]:
    """An outcome as a client of the chat API sees it."""
    found: dict[str, Any] = {
        "id": call.id,
        "plugin": outcome.plugin,
        "name": outcome.operation,
        "arguments": call.arguments,
        "status": outcome.status,
        "output": outcome.text if outcome.status != "ok" or isinstance(outcome.content, str) else outcome.content,
        "version": outcome.version,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.repairs:
        found["sent"] = outcome.arguments
        found["repairs"] = [{"kind": r.kind, "pointer": r.pointer, "detail": r.detail} for r in outcome.repairs]
    if outcome.warnings:
        found["warnings"] = list(outcome.warnings)
    return found
