"""Plugins in the Responses API: tools and items of the type `mcp`, in the shapes of OpenAI's remote MCP servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from octavo.plugins.host.outcome import Outcome, Tool
from octavo.plugins.loop import Offer, PluginCall
from octavo.server.approved import written_call
from octavo.server.calls.ids import id_has, id_with
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.fields.requests import ChosenPlugin
from octavo.server.plugins import offers, refuse_operators_fields
from octavo.server.response import new_id
from octavo.server.rounds import shown_result
from pydantic import ValidationError


class McpTools:
    """The plugins that a request names.

    Attributes:
        offers: the operations that the model may call.
        labels: names of the plugins.
        missing: outcomes for plugins that do not answer.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.offers: list[Offer] = []
        self.labels: list[str] = []
        self.missing: list[Outcome] = []

    def takes(self, tool: dict[str, Any]) -> bool:
        """Whether `tool` names a plugin. A server without plugins skips a tool that names none, as it always did."""
        if tool.get("type") != "mcp":
            return False
        return self._context.config.plugins is not None or len(tool) > 1

    def add(self, tool: dict[str, Any], where: str) -> None:
        """Adds a plugin.

        Raises:
            ApiError: 400 for a plugin that the server does not have, and for what only its operator may set.
        """
        refuse_operators_fields(tool, where)
        label = tool.get("server_label")
        if not isinstance(label, str) or not label:
            raise bad_request(f"{where}.server_label is missing: name a plugin of the server", f"{where}.server_label")
        if label in self.labels:
            message = f"{where}.server_label is {label[:80]!r}, which stands before it: name a plugin once"
            raise bad_request(message, f"{where}.server_label")
        given = {key: tool[key] for key in ("allowed_tools", "require_approval") if tool.get(key) is not None}
        try:
            chosen = ChosenPlugin.model_validate({"name": label, **given})
        except ValidationError as error:
            at = f"{where}.{'.'.join(str(part) for part in error.errors()[0]['loc'][:1])}"
            expected = "a list of names, or {tool_names, read_only}"
            if at.endswith("require_approval"):
                expected = '"always", "never", or {"always": {...}, "never": {...}} with tool_names and read_only'
            raise bad_request(f"{at} has another form: {expected} is expected", at) from error
        found, fault = offers(
            self._context,
            label,
            where,
            field="server_label",
            allowed=chosen.allowed_tools,
            approval=chosen.require_approval,
        )
        about = tool.get("server_description")
        if found and isinstance(about, str) and about:
            # The first operation describes its plugin, for which functions have no place.
            first = found[0].tool
            described = replace(first, description=f"{label}: {about}\n\n{first.description}".rstrip())
            found[0] = replace(found[0], tool=described)
        self.labels.append(label)
        self.offers += found
        if fault is not None:
            self.missing.append(Outcome("", label, "", {}, "unavailable", text=fault))

    def functions(self, given: dict[str, Any], where: str) -> list[dict[str, Any]]:
        """The functions that a choice of a plugin stands for: of one operation if it has a name, else of all.

        Raises:
            ApiError: 400 for a plugin or an operation that the request does not have.
        """
        label, name = given.get("server_label"), given.get("name")
        found = [o.tool for o in self.offers if o.tool.plugin == label and name in (None, o.tool.operation)]
        if not found:
            shown = f"{label} {name or ''}".strip()
            raise bad_request(f"{where} names the plugin {shown[:80]!r}, which tools lacks", where)
        return [{"type": "function", "name": tool.name} for tool in found]

    def choice(self, given: dict[str, Any], where: str) -> dict[str, Any]:
        """`tool_choice` of an operation or of a plugin, in the form of the chat API."""
        found = self.functions(given, where)
        if given.get("name"):
            return {"type": "function", "function": {"name": found[0]["name"]}}
        return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": found}}

    def tool(self, label: Any, name: Any) -> Tool | None:
        return next((o.tool for o in self.offers if (o.tool.plugin, o.tool.operation) == (label, name)), None)

    def listed(self, known: set[str]) -> Iterator[dict[str, Any]]:
        """Items with the operations of each plugin whose list is not `known`."""
        for label in self.labels:
            fault = next((outcome.text for outcome in self.missing if outcome.plugin == label), None)
            if label in known and fault is None:
                continue
            tools = [offer.tool for offer in self.offers if offer.tool.plugin == label]
            yield {
                "id": new_id("mcpl"),
                "type": "mcp_list_tools",
                "server_label": label,
                "tools": [
                    {
                        "name": tool.operation,
                        "description": tool.description,
                        "input_schema": tool.parameters,
                        "annotations": {"readOnlyHint": not tool.consequential},
                    }
                    for tool in tools
                ],
                "error": fault,
            }


def call_item(tool: Tool, request_id: str | None = None) -> dict[str, Any]:
    """A call that has begun."""
    return {
        "id": new_id("mcp"),
        "type": "mcp_call",
        "server_label": tool.plugin,
        "name": tool.operation,
        "arguments": "",
        "output": None,
        "error": None,
        "approval_request_id": request_id,
        "status": "in_progress",
    }


def end_call(item: dict[str, Any], outcome: Outcome) -> None:
    """Writes the outcome into the item of a call."""
    if outcome.status == "ok":
        content = outcome.content
        item["output"] = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    else:
        parts = [{"type": "text", "text": outcome.text}]
        item["error"] = {"type": "mcp_tool_execution_error", "content": parts, "code": outcome.status}
    item["status"] = "completed" if outcome.status == "ok" else "failed"
    if outcome.repairs:
        item["sent_arguments"] = json.dumps(outcome.arguments, ensure_ascii=False)
        item["repairs"] = [{"kind": r.kind, "pointer": r.pointer, "detail": r.detail} for r in outcome.repairs]


def approval_item(tool: Tool, call: PluginCall) -> dict[str, Any]:
    """A request for the approval of a call. Its id says what was written under which schema."""
    return {
        "id": id_with(new_id("mcpr"), written_call(tool, call.arguments)),
        "type": "mcp_approval_request",
        "server_label": tool.plugin,
        "name": tool.operation,
        "arguments": call.arguments,
    }


class McpHistory:
    """Calls and approvals among the items of a conversation.

    Attributes:
        listed: plugins whose operations an item lists.
    """

    def __init__(self) -> None:
        self.listed: set[str] = set()
        self._requests: dict[str, dict[str, Any]] = {}
        self._decisions: dict[str, bool] = {}
        self._ran: set[str] = set()

    def add(self, item: dict[str, Any], where: str) -> None:
        """Notes an item.

        Raises:
            ApiError: 400 for an approval of nothing.
        """
        kind = item["type"]
        if kind == "mcp_list_tools":
            if not item.get("error"):
                self.listed.add(str(item.get("server_label")))
        elif kind == "mcp_call":
            self._ran.add(str(item.get("approval_request_id")))
        elif kind == "mcp_approval_request":
            self._requests[str(item.get("id"))] = item
        else:
            name, approve = item.get("approval_request_id"), item.get("approve")
            if not isinstance(name, str) or name not in self._requests:
                message = f"{where}.approval_request_id is {str(name)[:80]!r}: no mcp_approval_request before it has"
                raise bad_request(message + " this id", f"{where}.approval_request_id")
            if not isinstance(approve, bool):
                raise bad_request(f"{where}.approve is no boolean: true or false is expected", f"{where}.approve")
            if self._decisions.setdefault(str(name), approve) != approve:
                raise bad_request(f"{where} decides a request that was decided before", f"{where}.approve")

    def waiting(self, tools: McpTools) -> list[PluginCall]:
        """Calls that were decided, and have not run yet.

        Raises:
            ApiError: 400 for a call of a plugin that the request does not name.
        """
        made = []
        for request_id, approved in self._decisions.items():
            if request_id in self._ran:
                continue
            item = self._requests[request_id]
            tool = tools.tool(item.get("server_label"), item.get("name"))
            if tool is None:
                shown = f"{item.get('server_label')} {item.get('name')}"
                message = f"input approves a call of {shown[:120]!r}, which tools lacks: name the plugin in tools"
                raise bad_request(message, "tools")
            arguments = str(item.get("arguments") or "{}")
            current = id_has(request_id, written_call(tool, arguments))
            made.append(PluginCall(request_id, tool.name, arguments, approved, request_id, current))
        return made


def result_of(context: Context, item: dict[str, Any]) -> str:
    """What the model reads of an earlier call."""
    error = item.get("error")
    label = str(item.get("server_label"))
    if error:
        status = error.get("code") if isinstance(error, dict) else None
        text = json.dumps(error.get("content") if isinstance(error, dict) else error, ensure_ascii=False)
        outcome = Outcome("", label, "", {}, status or "internal", text=text)
    else:
        output = item.get("output")
        try:
            content = json.loads(output) if isinstance(output, str) else output
        except (ValueError, RecursionError):
            content = output
        outcome = Outcome("", label, "", {}, "ok", content=content, text=str(output))
    return shown_result(context, outcome)
