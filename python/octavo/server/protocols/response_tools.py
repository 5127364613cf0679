"""The tools of a Responses request as tools of a chat request, and the names of both."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.protocols.response_mcp import McpTools

# Longest name of a function.
_LONGEST = 64
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.-]")


def function_name(name: Any, namespace: Any = None) -> Any:
    """The name of a tool as a function. Tools in a namespace have both names in it."""
    if not isinstance(name, str) or not isinstance(namespace, str) or not namespace:
        return name
    joined = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    flat = _NOT_IN_NAMES.sub("_", joined)
    if flat == joined and len(flat) <= _LONGEST:
        return flat
    digest = hashlib.sha256(joined.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{flat[: _LONGEST - len(digest) - 1]}_{digest}"


class ResponseTools:
    """The tools of a request.

    Attributes:
        chat: the tools in the form of the chat API, without those of plugins.
        names: path in the chat request -> path in this API.
        mcp: the plugins of the server.
    """

    def __init__(self, context: Context) -> None:
        self.mcp = McpTools(context)
        self.chat: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}
        # Function -> (namespace, name).
        self._spaces: dict[str, tuple[str, str]] = {}

    def add(self, tool: dict[str, Any], where: str) -> None:
        """Adds a tool, or those of a namespace.

        Raises:
            ApiError: 400 for a namespace without a name or tools.
        """
        if tool.get("type") != "namespace":
            if not self.mcp.takes(tool):
                self._add(tool, where)
            else:
                self.mcp.add(tool, where)
            return
        space, inner = tool.get("name"), tool.get("tools")
        if not isinstance(space, str) or not space:
            raise bad_request(f"{where}.name is missing", f"{where}.name")
        if not isinstance(inner, list) or not all(isinstance(t, dict) for t in inner):
            raise bad_request(f"{where}.tools is no list of tools", f"{where}.tools")
        about = tool.get("description")
        for i, one in enumerate(inner):
            name = one.get("name")
            flat = function_name(name, space)
            if isinstance(name, str):
                self._spaces[flat] = (space, name)
            one = {**one, "name": flat}
            if i == 0 and about:
                # The first tool describes its namespace, for which functions have no place.
                one["description"] = f"{space}: {about}\n\n{one.get('description') or ''}".rstrip()
            self._add(one, f"{where}.tools[{i}]")

    def _add(self, tool: dict[str, Any], where: str) -> None:
        kind = tool.get("type")
        at = f"tools[{len(self.chat)}]"
        self.names[at] = where
        if kind in ("function", "custom"):
            self.names[f"{at}.{kind}"] = where
            self.chat.append({"type": kind, kind: {k: v for k, v in tool.items() if k != "type"}})
        else:
            self.chat.append({"type": kind})

    def own_name(self, function: str) -> dict[str, str]:
        """`name` of a called function, and its `namespace` if it has one."""
        found = self._spaces.get(function)
        return {"name": function} if found is None else {"name": found[1], "namespace": found[0]}

    def choice(self, given: str | dict[str, Any] | None) -> Any:
        """`tool_choice` in the form of the chat API."""
        if not isinstance(given, dict):
            return given
        kind = given.get("type")
        if kind in ("function", "custom"):
            return {"type": kind, kind: {"name": self._flat(given)}}
        if kind == "mcp" and self.mcp.labels:
            return self.mcp.choice(given, "tool_choice")
        if kind == "allowed_tools":
            tools = given.get("tools")
            if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
                raise bad_request("tool_choice.tools is no list of tools", "tool_choice.tools")
            allowed = [own for t in tools for own in self._allowed(t)]
            return {"type": kind, "allowed_tools": {"mode": given.get("mode") or "auto", "tools": allowed}}
        return {"type": kind}

    def _allowed(self, tool: dict[str, Any]) -> list[dict[str, Any]]:
        """An entry of `allowed_tools` in the form of the chat API."""
        if tool.get("type") == "mcp" and self.mcp.labels:
            return self.mcp.functions(tool, "tool_choice.tools")
        return [{**tool, "name": self._flat(tool)} if "name" in tool else tool]

    def _flat(self, tool: dict[str, Any]) -> Any:
        name, space = tool.get("name"), tool.get("namespace")
        if space:
            return function_name(name, space)
        inside = [flat for flat, (_, own) in self._spaces.items() if own == name]
        known = any(t.get(t["type"], {}).get("name") == name for t in self.chat if t["type"] in ("function", "custom"))
        return inside[0] if len(inside) == 1 and not known else name
