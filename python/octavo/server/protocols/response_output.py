"""The response of /v1/responses: its items, its events and what of it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from octavo.plugins.host.outcome import Outcome, Tool
from octavo.plugins.loop import WAITING, Loop, PluginCall
from octavo.server.calls.kinds import custom_input
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.generation import Deltas
from octavo.server.http import Reply, event, json_reply
from octavo.server.parsing import Arguments, Content, Piece, Reasoning
from octavo.server.plugins import RanCalls
from octavo.server.protocols.openai_chat import Begun
from octavo.server.protocols.response_mcp import approval_item, call_item, end_call
from octavo.server.response import Response, new_id, now
from octavo.server.rounds import Ran

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class Listed(NamedTuple):
    """The plugins that a request names.

    Attributes:
        items: lists of their operations, which begin the response.
    """

    loop: Loop
    items: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Asked:
    """What a response has from its request.

    Attributes:
        fields: fields of the response that repeat the request.
        own_name: name of a function -> `name`, and `namespace` if there is one, in the API.
        keep: stores the response with its items, in place of what was stored under its id; None: nothing is stored.
        plugins: the plugins that it names; None: it names none.
    """

    fields: dict[str, Any]
    own_name: Callable[[str], dict[str, str]]
    keep: Callable[[dict[str, Any], list[dict[str, Any]]], None] | None
    plugins: Listed | None = None


class Responses(Response):
    """The response: items of reasoning, text and calls, in order of generation."""

    def __init__(self, context: Context, asked: Asked, begun: Begun, *, stream: bool) -> None:
        super().__init__(begun.generation, stream=stream)
        self._asked = asked
        self._custom = begun.custom
        self._reader = begun.reader()
        self._new_call_id = context.new_call_id
        self._id = new_id("resp")
        self._created = now()
        self._head = {"model": begun.target.name, **asked.fields}
        self._reason: str | None = None
        self._fault: ApiError | None = None
        self._items: list[dict[str, Any]] = []
        # Arguments of a custom tool's function. Its input can be read at their end.
        self._held = ""
        # The last call is of a plugin and may wait for an approval: its item comes when that is known.
        self._hidden = False
        # Indices of the items of calls that run.
        self._running: list[int] = []
        self._sequence = 0
        self._begun = self._ended = False

    def feed(self, deltas: Deltas) -> bytes:
        out = self._begin()
        if isinstance(deltas, RanCalls):
            if deltas.error is not None and self.stream:
                raise deltas.error
            self._fault = deltas.error
            out += self._ran(deltas.ran)
        for index, delta in deltas:
            self.usage.take(index, delta, self.generation.handles[index])
            for sample in delta.outputs:
                if sample.finish_reason is not None:
                    self._reason = sample.finish_reason
                for piece in self._reader.read(sample):
                    out += self._piece(piece)
                self.usage.reasoning = self._reader.reasoning_tokens
        return out if self.stream else b""

    def _begin(self) -> bytes:
        """The first events and items."""
        if self._begun:
            return b""
        self._begun = True
        if self.stream:
            self._keep("in_progress")
        out = self._event("response.created", response=self._whole("in_progress"))
        out += self._event("response.in_progress", response=self._whole("in_progress"))
        for item in self._asked.plugins.items if self._asked.plugins else ():
            out += self._add({**item, "tools": []}) + self._event("response.mcp_list_tools.in_progress", **self._place)
            self._items[-1] = item
            end = "failed" if item["error"] else "completed"
            out += self._event(f"response.mcp_list_tools.{end}", **self._place) + self._done()
        return out

    def _add(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _done(self, at: int = -1) -> bytes:
        at %= len(self._items)
        return self._event("response.output_item.done", output_index=at, item=self._items[at])

    def _piece(self, piece: Piece) -> bytes:
        out = b""
        last = self._items[-1]["type"] if self._items and self._items[-1].get("status") == "in_progress" else None
        if isinstance(piece, Arguments):
            return self._arguments(piece.text)
        kind = {Content: "message", Reasoning: "reasoning"}.get(type(piece))
        if kind is None or last != kind:
            out += self._close() + self._open(kind, getattr(piece, "name", ""))
        if isinstance(piece, Content | Reasoning):
            item = self._items[-1]
            item["content"][0]["text"] += piece.text
            text = {"content_index": 0, "delta": piece.text}
            if kind == "message":
                out += self._event("response.output_text.delta", **self._place, **text, logprobs=[])
            else:
                out += self._event("response.reasoning_text.delta", **self._place, **text)
        return out

    def _ran(self, ran: Ran) -> bytes:
        """The items of calls of plugins that have ended, or wait for an approval."""
        out = self._close()
        if ran.reason is not None:
            self._reason = ran.reason
        for call, outcome in zip(ran.calls, ran.outcomes, strict=True):
            # A plugin that does not answer has made no call: the list of its operations says so.
            if call.name and self._asked.plugins is not None:
                out += self._end_of_call(self._asked.plugins.loop, call, outcome)
        return out

    def _end_of_call(self, loop: Loop, call: PluginCall, outcome: Outcome) -> bytes:
        tool, out = loop.tool(call.name), b""
        shown = call.request_id is None and not loop.may_wait(call.name)
        if shown:
            at = self._running.pop(0)
        elif outcome.status != WAITING:
            out += self._open_call(tool, call.request_id) + self._arguments(call.arguments) + self._close()
            at = self._running.pop()
        if shown or outcome.status != WAITING:
            item = self._items[at]
            end_call(item, outcome)
            end = "completed" if item["status"] == "completed" else "failed"
            out += self._event(f"response.mcp_call.{end}", item_id=item["id"], output_index=at) + self._done(at)
        if outcome.status == WAITING:
            out += self._add(approval_item(tool, call)) + self._done()
        return out

    def _open_call(self, tool: Tool, request_id: str | None = None) -> bytes:
        self._hidden = False
        return self._add(call_item(tool, request_id)) + self._event("response.mcp_call.in_progress", **self._place)

    def _arguments(self, text: str) -> bytes:
        if self._hidden:
            return b""
        item = self._items[-1]
        if item["type"] == "custom_tool_call":
            self._held += text
            return b""
        item["arguments"] += text
        kind = "mcp_call" if item["type"] == "mcp_call" else "function_call"
        return self._event(f"response.{kind}_arguments.delta", **self._place, delta=text)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _open(self, kind: str | None, name: str) -> bytes:
        plugins = self._asked.plugins
        self._hidden = False
        if kind is None and plugins is not None and name in plugins.loop.names:
            self._hidden = plugins.loop.may_wait(name)
            return b"" if self._hidden else self._open_call(plugins.loop.tool(name))
        part: dict[str, Any] | None = None
        if kind == "message":
            item: dict[str, Any] = {"id": new_id("msg"), "type": kind, "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        elif kind == "reasoning":
            item = {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        else:
            call_id = self._new_call_id([i.get("call_id", "") for i in self._items])
            names = {"call_id": call_id, **self._asked.own_name(name)}
            if name in self._custom:
                item = {"id": new_id("ctc"), "type": "custom_tool_call", **names, "input": ""}
                self._held = ""
            else:
                item = {"id": new_id("fc"), "type": "function_call", **names, "arguments": ""}
        item["status"] = "in_progress"
        out, at = self._add(item), len(self._items) - 1
        if part is not None:
            item["content"].append(part)
            out += self._event(
                "response.content_part.added", item_id=item["id"], output_index=at, content_index=0, part=part
            )
        return out

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> bytes:
        """The end of the last item."""
        if not self._items or self._items[-1].get("status") != "in_progress":
            return b""
        item, place = self._items[-1], self._place
        item["status"] = status
        out = b""
        if item["type"] == "mcp_call":
            out += self._event("response.mcp_call_arguments.done", **place, arguments=item["arguments"])
            item["status"] = "calling"
            self._running.append(place["output_index"])
            return out
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            out += self._event("response.function_call_arguments.done", **place, **done)
        elif item["type"] == "custom_tool_call":
            item["input"] = custom_input(self._held)
            out += self._event("response.custom_tool_call_input.delta", **place, delta=item["input"])
            out += self._event("response.custom_tool_call_input.done", **place, input=item["input"])
        else:
            part = item["content"][0]
            message = item["type"] == "message"
            name = "output_text" if message else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if message else {}
            out += self._event(f"response.{name}.done", **place, content_index=0, text=part["text"], **more)
            out += self._event("response.content_part.done", **place, content_index=0, part=part)
        return out + self._done()

    def _close_all(self, status: Literal["completed", "incomplete"]) -> bytes:
        """The end of the last item, and of calls that do not run because the answer has ended."""
        out = self._close(status)
        for at in self._running:
            self._items[at]["status"] = "incomplete"
            out += self._done(at)
        self._running.clear()
        return out

    def end(self) -> bytes:
        # Streams of this API end with their last event, without [DONE].
        status = self._status
        out = self._close_all(status)
        self._keep(status)
        return out + self._event(f"response.{status}", response=self._whole(status))

    def reply(self) -> Reply:
        if self._fault is not None:
            # Calls of plugins have run: the client gets their items, and why no answer follows.
            self._close_all("incomplete")
            fault = {"code": self._fault.code or "server_error", "message": self._fault.message}
            self._keep("failed", fault)
            return json_reply(self._whole("failed", fault))
        self._close_all(self._status)
        self._keep(self._status)
        return json_reply(self._whole(self._status))

    def error(self, error: ApiError) -> bytes:
        out = self._close_all("incomplete")
        fault = {"code": "server_error", "message": error.message}
        self._keep("failed", fault)
        return out + self._event("response.failed", response=self._whole("failed", fault))

    def close(self) -> None:
        super().close()
        if self.stream and self._begun and not self._ended:
            # The client has left.
            self._close_all("incomplete")
            self._keep("cancelled")

    @property
    def _status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self._reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self.stream:
            return b""
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **fields}, kind)

    def _keep(self, status: Status, fault: dict[str, Any] | None = None) -> None:
        self._ended = status != "in_progress"
        if self._asked.keep is not None:
            self._asked.keep(self._whole(status, fault), self._items if self._ended else [])

    def _whole(self, status: Status, fault: dict[str, Any] | None = None) -> dict[str, Any]:
        usage = self.usage
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": now() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": fault,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [] if status == "in_progress" else self._items,
            **self._head,
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.completion,
            }
            if status in ("completed", "incomplete")
            else None,
        }
