"""The response of /v1/responses: its items, its events and what of it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from octavo.server.calls.kinds import custom_input
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.generation import Deltas
from octavo.server.http import Reply, event, json_reply
from octavo.server.parsing import Arguments, Content, Piece, Reasoning
from octavo.server.protocols.openai_chat import Begun
from octavo.server.response import Response, new_id, now

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True)
class Asked:
    """What a response has from its request.

    Attributes:
        fields: fields of the response that repeat the request.
        own_name: name of a function -> `name`, and `namespace` if there is one, in the API.
        keep: stores the response with its items, in place of what was stored under its id; None: nothing is stored.
    """

    fields: dict[str, Any]
    own_name: Callable[[str], dict[str, str]]
    keep: Callable[[dict[str, Any], list[dict[str, Any]]], None] | None


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
        self._items: list[dict[str, Any]] = []
        # Arguments of a custom tool's function. Its input can be read at their end.
        self._held = ""
        self._sequence = 0
        self._begun = self._ended = False

    def feed(self, deltas: Deltas) -> bytes:
        out = b""
        for index, delta in deltas:
            self.usage.take(index, delta, self.generation.handles[index])
            if not self._begun:
                self._begun = True
                if self.stream:
                    self._keep("in_progress")
                out += self._event("response.created", response=self._whole("in_progress"))
                out += self._event("response.in_progress", response=self._whole("in_progress"))
            for sample in delta.outputs:
                if sample.finish_reason is not None:
                    self._reason = sample.finish_reason
                for piece in self._reader.read(sample):
                    out += self._piece(piece)
                self.usage.reasoning = self._reader.reasoning_tokens
        return out if self.stream else b""

    def _piece(self, piece: Piece) -> bytes:
        out = b""
        last = self._items[-1]["type"] if self._items else None
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

    def _arguments(self, text: str) -> bytes:
        item = self._items[-1]
        if item["type"] == "custom_tool_call":
            self._held += text
            return b""
        item["arguments"] += text
        return self._event("response.function_call_arguments.delta", **self._place, delta=text)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _open(self, kind: str | None, name: str) -> bytes:
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
        self._items.append(item)
        at = len(self._items) - 1
        out = self._event("response.output_item.added", output_index=at, item=item)
        if part is not None:
            item["content"].append(part)
            out += self._event(
                "response.content_part.added", item_id=item["id"], output_index=at, content_index=0, part=part
            )
        return out

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> bytes:
        """The end of the last item."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return b""
        item, place = self._items[-1], self._place
        item["status"] = status
        out = b""
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
        return out + self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def end(self) -> bytes:
        # Streams of this API end with their last event, without [DONE].
        status = self._status
        out = self._close(status)
        self._keep(status)
        return out + self._event(f"response.{status}", response=self._whole(status))

    def reply(self) -> Reply:
        self._close(self._status)
        self._keep(self._status)
        return json_reply(self._whole(self._status))

    def error(self, error: ApiError) -> bytes:
        out = self._close("incomplete")
        fault = {"code": "server_error", "message": error.message}
        self._keep("failed", fault)
        return out + self._event("response.failed", response=self._whole("failed", fault))

    def close(self) -> None:
        super().close()
        if self.stream and self._begun and not self._ended:
            # The client has left.
            self._close("incomplete")
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
