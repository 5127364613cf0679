"""The items of a Responses request as messages of a chat request: one turn for each answer."""

from __future__ import annotations

import re
from typing import Any

from octavo.plugins.loop import PluginCall
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.protocols.response_mcp import McpHistory, result_of
from octavo.server.protocols.response_tools import ResponseTools, function_name

# Items of tools that other servers run. What they hold is in the answer's text as far as it matters.
_SKIPPED = frozenset({
    "web_search_call", "file_search_call", "computer_call", "computer_call_output", "code_interpreter_call",
    "image_generation_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
    "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response",
    "mcp_call", "tool_search_call", "tool_search_output", "program", "program_output",
})  # fmt: skip
# Items of plugins, on a server that has some.
_OF_PLUGINS = frozenset({"mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call"})
# Fields of a chat request that have another name here.
_FIELDS = {"response_format": "text.format", "messages": "input", "max_tokens": "max_output_tokens"}
_PATH = re.compile(r"\b(?:messages|tools)\[\d+\](?:\.\w+|\[\d+\])*")


class Conversation:
    """The messages that items become.

    The items of one answer (reasoning, messages, calls) are one turn of the assistant, as the model wrote them.

    Attributes:
        tools: the tools of the request, and those that items add.
        mcp: earlier calls of plugins and their approvals.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._messages: list[dict[str, Any]] = []
        # Texts of a message's field that several items share.
        self._texts: dict[tuple[int, str], list[str]] = {}
        self.tools = ResponseTools(context)
        self.mcp = McpHistory()
        # Path in the chat request -> path in this API.
        self._names: dict[str, str] = {}
        self._answer: dict[str, Any] | None = None

    def add_system(self, text: str, where: str) -> None:
        """Adds instructions. All that stand before the first turn are one message: many templates take only one."""
        if not self._messages:
            self._append({"role": "system", "content": ""}, {"": where})
        elif self._messages[0]["role"] != "system" or len(self._messages) > 1:
            self._append({"role": "system", "content": text}, {"": where})
            return
        self._add_text("content", text, "\n\n")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in the form of the chat API."""
        for (index, name), texts in self._texts.items():
            message = self._messages[index]
            if name != "content" or message[name] is None or message["role"] == "system":
                message[name] = "".join(texts)
        self._texts.clear()
        return self._messages

    def _add_text(self, field: str, text: str, gap: str) -> None:
        """Appends a text to a field of the last message, after `gap` unless white space is there."""
        texts = self._texts.setdefault((len(self._messages) - 1, field), [])
        if texts and texts[-1] and text and not texts[-1][-1].isspace() and not text[0].isspace():
            texts.append(gap)
        texts.append(text)

    def add(self, item: dict[str, Any], where: str) -> None:
        """Adds an item.

        Raises:
            ApiError: 400 for an item of a type that is not supported.
        """
        kind = item.get("type") or "message"
        if kind == "message":
            self._message(item, where)
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(kind, item, where)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            turn = {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))}
            self._append(turn, {"": where, ".content": f"{where}.output", ".tool_call_id": f"{where}.call_id"})
        elif kind == "additional_tools":
            self._tools(item, where)
        elif isinstance(kind, str) and kind in _OF_PLUGINS and self._context.config.plugins is not None:
            self.mcp.add(item, where)
            if kind == "mcp_call":
                self._ran(item, where)
        elif isinstance(kind, str) and kind in _SKIPPED:
            self._context.warn_once(f"item {kind}", "an item of type %s is skipped: its tool is not run here", kind)
        else:
            shown = str(kind)[:80]
            raise bad_request(f"{where} is of type {shown!r}: messages, reasoning and calls are supported", where)

    def _tools(self, item: dict[str, Any], where: str) -> None:
        tools = item.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise bad_request(f"{where}.tools is no list of tools", f"{where}.tools")
        for i, tool in enumerate(tools):
            self.tools.add(tool, f"{where}.tools[{i}]")

    def _append(self, message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        at = f"messages[{len(self._messages)}]"
        self._names.update({at + path: name for path, name in names.items()})
        self._messages.append(message)
        self._answer = message if message["role"] == "assistant" else None
        return message

    def _turn(self, where: str) -> dict[str, Any]:
        """The assistant's turn that an item of an answer belongs to."""
        if self._answer is None:
            return self._append({"role": "assistant", "content": None}, {"": where})
        return self._answer

    def _message(self, item: dict[str, Any], where: str) -> None:
        role, content = item.get("role"), _content(item.get("content"))
        leading = all(message["role"] == "system" for message in self._messages)
        if role in ("system", "developer") and isinstance(content, str) and leading:
            self.add_system(content, where)
            return
        if role == "user" and isinstance(content, str):
            self._user(content, where)
            return
        if role != "assistant":
            self._append({"role": role, "content": content}, {"": where})
            return
        turn = self._turn(where)
        if isinstance(content, str) and turn["content"] is None:
            self._add_text("content", content, "\n\n")
        elif content is not None and turn["content"] is None:
            # It is no text: the chat API refuses it, by this name.
            self._names[f"messages[{len(self._messages) - 1}].content"] = f"{where}.content"
            turn["content"] = content

    def _user(self, text: str, where: str) -> None:
        """Adds a turn of the user, or joins it to the one before if the template wants the roles in turn."""
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "user" or last["content"] is not None or not self._context.needs_alternation:
            self._append({"role": "user", "content": None}, {"": where})
        self._add_text("content", text, "\n\n")

    def _reasoning(self, item: dict[str, Any]) -> None:
        parts = item.get("content") or item.get("summary")
        parts = parts if isinstance(parts, list) else []
        texts = [p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)]
        if not texts:
            if item.get("encrypted_content"):
                self._context.warn_once("encrypted reasoning", "encrypted reasoning cannot be read: it is skipped")
            return
        self._turn("input")
        self._add_text("reasoning_content", "\n".join(texts), "\n")

    def _call(self, kind: str, item: dict[str, Any], where: str) -> None:
        turn = self._turn(where)
        calls = turn.setdefault("tool_calls", [])
        at = f"messages[{len(self._messages) - 1}].tool_calls[{len(calls)}]"
        inner = "function" if kind == "function_call" else "custom"
        self._names |= {at: where, f"{at}.id": f"{where}.call_id", f"{at}.{inner}": where}
        key = "arguments" if inner == "function" else "input"
        named = {"name": function_name(item.get("name"), item.get("namespace")), key: item.get(key)}
        calls.append({"id": item.get("call_id"), "type": inner, inner: named})

    def _ran(self, item: dict[str, Any], where: str) -> None:
        """Adds a call of a plugin with its result."""
        name = function_name(item.get("name"), item.get("server_label"))
        self._pending(item, name, where)
        self._append({"role": "tool", "tool_call_id": item.get("id"), "content": result_of(self._context, item)}, {})

    def _pending(self, item: dict[str, Any], name: Any, where: str) -> None:
        calls = self._turn(where).setdefault("tool_calls", [])
        function = {"name": name, "arguments": item.get("arguments")}
        calls.append({"id": item.get("id"), "type": "function", "function": function})

    def decided(self) -> list[PluginCall]:
        """Calls of plugins that were decided and have not run. They end the conversation, in a turn of their own.

        Raises:
            ApiError: 400 for a call of a plugin that the request does not name.
        """
        calls = self.mcp.waiting(self.tools.mcp)
        for call in calls:
            self._pending({"id": call.id, "arguments": call.arguments}, call.name, "input")
        return calls

    def in_own_names(self, error: ApiError) -> ApiError:
        """`error` with the names that this API has for the fields of a chat request."""
        error.param = error.param and self._own(error.param)
        error.message = _PATH.sub(lambda found: self._own(found[0]), error.message)
        for chat, own in _FIELDS.items():
            error.message = re.sub(rf"^{chat}\b(?:\.json_schema)?", own, error.message)
        return error

    def _own(self, path: str) -> str:
        names = {**self._names, **self.tools.names}
        known = path
        while known:
            if known in names:
                return names[known] + path[len(known) :]
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        path = path.replace("response_format.json_schema", "response_format")
        head, dot, rest = path.partition(".")
        if head == "tool_choice":
            rest = rest.removeprefix("allowed_tools.").removeprefix("function.").removeprefix("custom.")
        return _FIELDS.get(head, head) + dot + rest


def _content(content: Any) -> Any:
    """Parts with the names of the chat API; one text if all of them are texts."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        if not isinstance(part, dict):
            return content
        kind = "text" if part.get("type") in ("input_text", "output_text", "text") else part.get("type")
        parts.append({k: v for k, v in {**part, "type": kind}.items() if k in ("type", "text", "refusal")})
    if parts and all(part["type"] == "text" and isinstance(part.get("text"), str) for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts
