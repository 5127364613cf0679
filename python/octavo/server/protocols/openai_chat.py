"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo import _core
from octavo.request_handle import RequestHandle
from octavo.server.calls.deltas import CallDeltas
from octavo.server.calls.toolbox import Toolbox
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.requests import ChatRequest
from octavo.server.generation import Deltas, Generation
from octavo.server.http import Call, Chunks, Reply, event, json_reply
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.messages import prompt_of
from octavo.server.output_format import field_of, output_format
from octavo.server.parsing import Arguments, Content, Piece, Reasoning
from octavo.server.plugin_chat import chat_rounds, outcome_fields
from octavo.server.plugins import RanCalls, RoundsGeneration
from octavo.server.reasoning import Reader
from octavo.server.response import Response, new_id, now
from octavo.server.rounds import Ran, Rounds
from octavo.server.routes import Route
from octavo.server.sampling import candidates, sampling_params
from octavo.server.targets import Target

# JSON after the text of an unfinished choice.
_AFTER = b'},"logprobs":null,"finish_reason":null}'


def chat(context: Context, call: Call) -> Response:
    request, target = context.read_with_target(ChatRequest, call)
    names = {"prompt": "messages", "structured": field_of(request)}
    rounds = chat_rounds(context, request, call.salt)
    if rounds is None:
        begun = begin(context, request, call, names, target)
    else:
        begun = begin_rounds(context, rounds, call, names, target)
    return Chat(context, request, begun, stream=bool(request.stream))


@dataclass(frozen=True)
class Begun:
    """A generation that runs, and how its text is read.

    Attributes:
        reader: makes a reader for one sample.
        custom: names of the functions that are custom tools for the client.
        target: what it runs with.
    """

    generation: Generation
    reader: Callable[[], Reader]
    custom: frozenset[str]
    target: Target


def begin(context: Context, request: ChatRequest, call: Call, names: dict[str, str], target: Target) -> Begun:
    """Starts the generation of a chat request.

    Args:
        names: names of `LLM.submit`'s arguments -> names in the API.
        target: what the request runs with. `request` may be made from another one, and does not say it.

    Raises:
        ApiError: the request is invalid.
    """
    limits = context.config.limits
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    top = None
    if request.logprobs:
        top = candidates("top_logprobs", request.top_logprobs or 0, limits)
    toolbox = Toolbox(context, request)
    prompt = prompt_of(context, request, toolbox, target.packs)
    max_tokens = request.max_completion_tokens or request.max_tokens
    if request.max_tokens == 0:
        raise bad_request("max_tokens is 0: at least 1 is expected", "max_tokens")
    form = output_format(context, request, toolbox, prompt)
    more: dict[str, Any] = {
        "max_tokens": max_tokens,
        "logprobs": top,
        "structured": form.structured,
        **target.sampling(),
    }
    if toolbox.needs_special_tokens and request.skip_special_tokens is None:
        more["skip_special_tokens"] = False
    params = sampling_params(request, limits, call.salt, **more)
    # The template writes the special tokens itself.
    cut = context.truncate(
        prompt,
        request.truncate_prompt_tokens,
        special=False,
        reserved=max_tokens or 1,
        param=names.get("prompt", "prompt"),
    )
    generation = context.generate([(cut, False, params)], stream=bool(request.stream), names=names)
    return Begun(generation, form.reader, toolbox.custom, target)


def begin_rounds(context: Context, rounds: Rounds, call: Call, names: dict[str, str], target: Target) -> Begun:
    """Starts an answer that calls plugins; arguments as `begin`.

    Raises:
        ApiError: the request is invalid. No plugin is called then.
    """

    def next_round() -> Generation:
        begun = begin(context, rounds.request, call, names, target)
        rounds.begin(begun.reader())
        return begun.generation

    if rounds.calls():
        # Calls run first. A request that could not be answered after them must not begin them.
        begin(context, rounds.request, call, names, target).generation.close()
    custom = Toolbox(context, rounds.request).custom
    return Begun(RoundsGeneration(rounds, next_round), lambda: rounds.reader, custom, target)


class Chat(Response):
    """The response: a choice per sample."""

    def __init__(self, context: Context, request: ChatRequest, begun: Begun, *, stream: bool) -> None:
        super().__init__(begun.generation, stream=stream, options=request.stream_options)
        self._request = request
        self._begun = begun
        self._new_call_id = context.new_call_id
        kind = "chat.completion.chunk" if stream else "chat.completion"
        self._head = {"id": new_id("chatcmpl"), "object": kind, "created": now(), "model": begun.target.name}
        self._include_usage = bool(self.options.include_usage)
        self._chunks = Chunks(self._head, usage=self._include_usage)
        # The common case: only text is requested.
        self._plain = not (request.logprobs or request.return_token_ids or self.options.continuous_usage_stats)
        self._choices: dict[int, Choice] = {}
        self._prompt_logprobs: list[dict[str, Any] | None] | None = None

    def feed(self, deltas: Deltas) -> bytes:
        if isinstance(deltas, RanCalls):
            if deltas.error is not None and self.stream:
                # What has run was sent already.
                raise deltas.error
            return self._ran(deltas.ran, deltas.error)
        out = b""
        for index, delta in deltas:
            handle = self.generation.handles[index]
            self.usage.take(index, delta, handle)
            if self._request.prompt_logprobs is not None:
                self._prompt_logprobs = prompt_logprobs(delta.prompt_logprobs) or self._prompt_logprobs
            for sample in delta.outputs:
                choice, first = self._choice(sample.index, handle)
                pieces = choice.add(sample, self._request)
                objects = choice.deltas(pieces)
                if self.stream:
                    out += first + self._events(choice, pieces, objects)
        self.usage.reasoning = sum(choice.reader.reasoning_tokens for choice in self._choices.values())
        return out

    def _choice(self, index: int, handle: RequestHandle[Any] | None = None) -> tuple[Choice, bytes]:
        """A choice, and the event that begins it if it is new."""
        choice = self._choices.get(index)
        if choice is not None:
            return choice, b""
        choice = Choice(index, self._begun.reader(), CallDeltas(self._new_call_id, self._begun.custom))
        self._choices[index] = choice
        if not self.stream:
            return choice, b""
        return choice, self._chunk(choice, {"role": "assistant", "content": ""}, None, None, handle)

    def _ran(self, ran: Ran, error: ApiError | None) -> bytes:
        """Calls of plugins have run. `error`: why the answer ends after them."""
        choice, out = self._choice(0)
        choice.error = error
        for delta in choice.ran(ran):
            out += self._chunk(choice, delta, None, None) if self.stream else b""
        if choice.reason is not None and self.stream:
            out += self._chunk(choice, {}, None, choice.reason)
        return out

    def _events(self, choice: Choice, pieces: list[Piece], deltas: list[dict[str, Any]]) -> bytes:
        if self._plain and len(pieces) == 1 and isinstance(pieces[0], Content) and choice.reason is None:
            return self._chunks.text(choice.before, pieces[0].text, _AFTER)
        out = b""
        logprobs = choice.take_logprobs(self._request)
        for delta in deltas:
            # The log-probabilities of all tokens are sent with the first piece.
            out += self._chunk(choice, delta, logprobs, None)
            logprobs = None
        tokens = self._request.return_token_ids and choice.token_ids
        if choice.reason is not None or logprobs is not None or tokens:
            out += self._chunk(choice, {}, logprobs, choice.reason)
        return out

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        reason: str | None,
        handle: RequestHandle[Any] | None = None,
    ) -> bytes:
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if reason is not None:
            body["stop_reason"] = choice.stop_reason
        if not self._request.return_token_ids:
            return self._chunks.event(body, self.usage_so_far())
        body["token_ids"] = choice.take_token_ids()
        if handle is None:
            return self._chunks.event(body, self.usage_so_far())
        more = {"prompt_token_ids": handle.prompt_token_ids}
        return Chunks({**self._head, **more}, usage=self._include_usage).event(body, self.usage_so_far())

    def end(self) -> bytes:
        last = b""
        if self._include_usage:
            last = event({**self._head, "choices": [], "usage": self.usage.as_dict()})
        return last + super().end()

    def reply(self) -> Reply:
        body: dict[str, Any] = {
            **self._head,
            "choices": [c.whole(self._request) for _, c in sorted(self._choices.items())],
            "usage": self.usage.as_dict(),
        }
        if self._request.prompt_logprobs is not None:
            body["prompt_logprobs"] = self._prompt_logprobs
        if self._request.return_token_ids:
            body["prompt_token_ids"] = self.generation.handles[0].prompt_token_ids
        return json_reply(body)


class Choice:
    """The output of one sample so far."""

    def __init__(self, index: int, reader: Reader, calls: CallDeltas) -> None:
        self.index = index
        self.before = b'{"index":%d,"delta":{"content":' % index
        self.stop_reason: int | str | None = None
        self.token_ids: list[int] = []
        self.reader = reader
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls = calls
        # Calls that plugins have run, as the client sees them.
        self._plugin_calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._reason: str | None = None
        self.error: ApiError | None = None

    @property
    def reason(self) -> str | None:
        """OpenAI's finish_reason."""
        return "tool_calls" if self._reason == "stop" and self._calls.calls else self._reason

    def add(self, sample: _core.SampleDelta, request: ChatRequest) -> list[Piece]:
        if request.return_token_ids:
            self.token_ids += sample.token_ids
        if request.logprobs:
            self._logprobs += [
                chat_logprobs(row, as_ids=bool(request.return_tokens_as_token_ids)) for row in sample.logprobs or []
            ]
        pieces = self.reader.read(sample)
        self._reason = self.reader.reason(sample)
        if self._reason is not None:
            self.stop_reason = sample.stop_reason
        return pieces

    def ran(self, ran: Ran) -> list[dict[str, Any]]:
        """Calls of plugins as `delta` objects. Those that wait for an approval are calls for the client, too."""
        made = [
            {"index": i, **outcome_fields(call, outcome)}
            for i, (call, outcome) in enumerate(zip(ran.calls, ran.outcomes, strict=True), len(self._plugin_calls))
        ]
        self._plugin_calls += made
        out: list[dict[str, Any]] = [{"plugin_calls": made}]
        for call in ran.waiting:
            out += [*self._calls.open(call.name, call.id), *self._calls.add(call.arguments)]
        self._reason = ran.reason
        return out

    def deltas(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        """The pieces as OpenAI's `delta` objects; also kept for the complete response."""
        out: list[dict[str, Any]] = []
        for piece in pieces:
            if not isinstance(piece, Arguments):
                out += self._calls.close()
            if isinstance(piece, Content):
                self._content.append(piece.text)
                out.append({"content": piece.text})
            elif isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
                out.append({"reasoning_content": piece.text})
            elif isinstance(piece, Arguments):
                out += self._calls.add(piece.text)
            else:
                out += self._calls.open(piece.name)
        return out if self._reason is None else [*out, *self._calls.close()]

    def take_token_ids(self) -> list[int]:
        ids, self.token_ids = self.token_ids, []
        return ids

    def take_logprobs(self, request: ChatRequest) -> dict[str, Any] | None:
        if not request.logprobs or not self._logprobs:
            return None
        rows, self._logprobs = self._logprobs, []
        return {"content": rows, "refusal": None}

    def whole(self, request: ChatRequest) -> dict[str, Any]:
        text = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or (None if self._calls.calls else ""),
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls.calls:
            message["tool_calls"] = self._calls.calls
        if self._plugin_calls:
            message["plugin_calls"] = self._plugin_calls
        body = {
            "index": self.index,
            "message": message,
            "logprobs": self.take_logprobs(request) or ({"content": [], "refusal": None} if request.logprobs else None),
            "finish_reason": self.reason,
            "stop_reason": self.stop_reason,
        }
        if self.error is not None:
            body |= self.error.body()
        if request.return_token_ids:
            body["token_ids"] = self.token_ids
        return body


ROUTES = [Route("POST", "/v1/chat/completions", chat, "Answer a conversation", ChatRequest)]
