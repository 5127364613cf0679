"""The calls of one answer in the chat API: as `delta` objects of a stream, and complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.server.calls.kinds import custom_input


class CallDeltas:
    """The calls of one answer so far.

    Args:
        new_id: makes an id that is not among the given ones.
        custom: names of functions that are custom tools for the client.

    Attributes:
        calls: the calls, complete after `close`.
    """

    def __init__(self, new_id: Callable[[list[str]], str], custom: frozenset[str]) -> None:
        self._new_id = new_id
        self._custom = custom
        # Arguments of a custom tool's function. Its input can be read at their end.
        self._held: str | None = None
        self.calls: list[dict[str, Any]] = []

    def open(self, name: str, call_id: str | None = None) -> list[dict[str, Any]]:
        """Begins a call, with a new id if none is given."""
        out = self.close()
        kind, key = ("custom", "input") if name in self._custom else ("function", "arguments")
        self._held = "" if kind == "custom" else None
        head = {"id": call_id or self._new_id([call["id"] for call in self.calls]), "type": kind}
        # Two objects: arguments are appended to the kept one.
        self.calls.append({**head, kind: {"name": name, key: ""}})
        return [*out, self._delta({**head, kind: {"name": name, key: ""}})]

    def add(self, arguments: str) -> list[dict[str, Any]]:
        """Appends arguments to the last call."""
        if self._held is not None:
            self._held += arguments
            return []
        self.calls[-1]["function"]["arguments"] += arguments
        return [self._delta({"function": {"arguments": arguments}})]

    def close(self) -> list[dict[str, Any]]:
        """Ends the last call."""
        if self._held is None:
            return []
        text, self._held = custom_input(self._held), None
        self.calls[-1]["custom"]["input"] = text
        return [self._delta({"custom": {"input": text}})]

    def _delta(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}
