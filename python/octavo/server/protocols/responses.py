"""POST /v1/responses, without state: the server stores no responses."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.generation import Deltas, Generation
from octavo.server.http import Call, Reply, event, json_reply
from octavo.server.parsing import Arguments, Content, Piece, Reasoning
from octavo.server.protocols.openai_chat import begin
from octavo.server.reasoning import Reader
from octavo.server.requests import ChatRequest, Strict, read
from octavo.server.response import Response, new_id, now
from octavo.server.routes import Route
from pydantic import Field

# Fields that need stored responses, or work after the response.
_STATE = ("previous_response_id", "conversation", "background", "prompt")


class ResponsesRequest(Strict):
    """POST /v1/responses"""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


def responses(context: Context, call: Call) -> Response:
    request = context.read(ResponsesRequest, call)
    for name in _STATE:
        if (request.model_extra or {}).get(name):
            raise bad_request(f"{name} is not supported: nothing is stored here; send the whole input", name)
    try:
        begun = begin(context, _as_chat(request), call, {"prompt": "input", "structured": "text.format"})
    except ApiError as error:
        error.param = _own_name(error.param, bool(request.instructions))
        raise
    return Responses(context, request, begun.generation, begun.reader())


def _own_name(param: str | None, instructed: bool) -> str | None:
    """Name in this API of a chat request's field. The instructions are the first message of the chat."""
    if param is None:
        return None
    found = re.match(r"messages\[(\d+)\](.*)", param)
    if found:
        return f"input[{int(found[1]) - instructed}]{found[2]}"
    head, dot, rest = param.partition(".")
    names = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
    return names.get(head, head) + dot + rest


def _as_chat(request: ResponsesRequest) -> ChatRequest:
    """The same request as a chat request."""
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    for i, item in enumerate(items):
        _add_item(messages, item, f"input[{i}]")
    body: dict[str, Any] = {
        "messages": messages,
        "stream": request.stream,
        "parallel_tool_calls": request.parallel_tool_calls,
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    form = (request.text or {}).get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {k: v for k, v in form.items() if k in ("name", "schema", "strict", "description")}
        form = {"type": "json_schema", "json_schema": schema}
    body["response_format"] = form
    if request.tools:
        body["tools"] = [_tool(t, i) for i, t in enumerate(request.tools)]
        choice = request.tool_choice
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        body["tool_choice"] = choice
    return read(ChatRequest, body)


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        name = f"tools[{index}]"
        raise bad_request(f"{name} is of type {tool.get('type')!r}: only functions are supported", name)
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        content = item.get("content")
        if isinstance(content, list):
            # Types of content parts have other names in this API.
            content = [
                {**p, "type": "text"} if isinstance(p, dict) and p.get("type") in ("input_text", "output_text") else p
                for p in content
            ]
            known = ("type", "text", "refusal")
            content = [{k: v for k, v in p.items() if k in known} if isinstance(p, dict) else p for p in content]
        messages.append({"role": item.get("role"), "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        messages.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":
        raise bad_request(f"{where} is of type {kind!r}: messages and function calls are supported", where)


class Responses(Response):
    """The response: items of reasoning, text and function calls, in order of generation."""

    def __init__(self, context: Context, request: ResponsesRequest, generation: Generation, reader: Reader) -> None:
        super().__init__(generation, stream=bool(request.stream))
        self._request = request
        self._model = context.name
        self._new_call_id = context.new_call_id
        self._id = new_id("resp")
        self._created = now()
        self._reader = reader
        self._reason: str | None = None
        self._items: list[dict[str, Any]] = []
        self._sequence = 0
        self._begun = False

    def feed(self, deltas: Deltas) -> bytes:
        out = b""
        for index, delta in deltas:
            self.usage.take(index, delta, self.generation.handles[index])
            if not self._begun:
                self._begun = True
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
        kind = {Content: "message", Reasoning: "reasoning"}.get(type(piece), "function_call")
        out = b""
        last = self._items[-1] if self._items else None
        if last is None or last["type"] != kind or (kind == "function_call" and not isinstance(piece, Arguments)):
            out += self._close() + self._open(kind, getattr(piece, "name", ""))
        item, place = self._items[-1], {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        if isinstance(piece, Content):
            item["content"][0]["text"] += piece.text
            out += self._event("response.output_text.delta", **place, content_index=0, delta=piece.text, logprobs=[])
        elif isinstance(piece, Reasoning):
            item["content"][0]["text"] += piece.text
            out += self._event("response.reasoning_text.delta", **place, content_index=0, delta=piece.text)
        elif isinstance(piece, Arguments):
            item["arguments"] += piece.text
            out += self._event("response.function_call_arguments.delta", **place, delta=piece.text)
        return out

    def _open(self, kind: str, name: str) -> bytes:
        if kind == "message":
            item: dict[str, Any] = {"id": new_id("msg"), "type": kind, "role": "assistant", "content": []}
            part: dict[str, Any] | None = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        elif kind == "reasoning":
            item = {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        else:
            item = {
                "id": new_id("fc"),
                "type": kind,
                "call_id": self._new_call_id([i.get("call_id", "") for i in self._items]),
                "name": name,
                "arguments": "",
            }
            part = None
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
        item = self._items[-1]
        item["status"] = status
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        out = b""
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            out += self._event("response.function_call_arguments.done", **place, **done)
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
        return self._close(status) + self._event(f"response.{status}", response=self._whole(status))

    def reply(self) -> Reply:
        self._close(self._status)
        return json_reply(self._whole(self._status))

    def error(self, error: ApiError) -> bytes:
        failed = {**self._whole("failed"), "error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=failed)

    @property
    def _status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self._reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self.stream:
            return b""
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **fields}, kind)

    def _whole(self, status: str) -> dict[str, Any]:
        request, usage = self._request, self.usage
        ended = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": now() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._model,
            "output": self._items if ended else [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "metadata": request.metadata or {},
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.completion,
            }
            if ended
            else None,
        }


ROUTES = [Route("POST", "/v1/responses", responses, "Answer an input, without state", ResponsesRequest)]
