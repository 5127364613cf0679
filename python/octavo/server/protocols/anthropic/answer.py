"""The answer in Anthropic's form: one message, or its stream of events."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Any

from octavo.server.errors import ApiError
from octavo.server.generation import Deltas
from octavo.server.http import Reply, event, json_reply
from octavo.server.parsing import Call, Content, Piece, Reasoning
from octavo.server.protocols.anthropic.errors import error_body
from octavo.server.protocols.anthropic.requests import MessagesRequest
from octavo.server.protocols.openai_chat import Begun
from octavo.server.response import Response
from pydantic_core import from_json

_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class Messages(Response):
    """The response: blocks of thinking, text and tool_use, in order of generation."""

    def __init__(self, request: MessagesRequest, begun: Begun) -> None:
        super().__init__(begun.generation, stream=bool(request.stream))
        self._reader = begun.reader()
        # max_tokens 0 fills the prefix cache: the one token that is generated is dropped.
        self._silent = request.max_tokens == 0
        self._omit_thinking = request.thinking is not None and request.thinking.display == "omitted"
        self._reason: str | None = None
        self._stop: int | str | None = None
        self._blocks: list[dict[str, Any]] = []
        # The text of the last block, in parts.
        self._parts: list[str] = []
        self._open = False
        # White space with which a block of text may begin.
        self._space = ""
        self._begun = False
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": begun.target.name,
        }

    def feed(self, deltas: Deltas) -> bytes:
        out = b""
        for index, delta in deltas:
            self.usage.take(index, delta, self.generation.handles[index])
            out += self._start()
            for sample in delta.outputs:
                if sample.finish_reason is not None:
                    self._reason, self._stop = sample.finish_reason, sample.stop_reason
                pieces = self._reader.read(sample)
                if not self._silent:
                    for piece in pieces:
                        out += self._piece(piece)
            self.usage.reasoning = self._reader.reasoning_tokens
        return out

    def _start(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        # The cached part is known at the end; message_delta corrects the counts.
        usage = {**self._usage(), "input_tokens": sum(h.num_prompt_tokens for h in self.generation.handles)}
        return self._event("message_start", message=self._message([], usage))

    def _piece(self, piece: Piece) -> bytes:
        kind = {Content: "text", Reasoning: "thinking"}.get(type(piece), "tool_use")
        text = "" if isinstance(piece, Call) else piece.text
        same = self._open and self._blocks[-1]["type"] == kind
        if kind == "text" and not same:
            # A block of text does not begin with white space alone: models write it around calls.
            text = self._space + text
            self._space = text if text.isspace() else ""
            if self._space or not text:
                return b""
        elif kind != "text":
            self._space = ""
        out = b""
        if not same or isinstance(piece, Call):
            out += self._close() + self._begin(kind, piece.name if isinstance(piece, Call) else "")
        return out + self._add(kind, text)

    def _add(self, kind: str, text: str) -> bytes:
        """Adds text to the last block."""
        self._parts.append(text)
        if not text or (kind == "thinking" and self._omit_thinking):
            return b""
        name, key = _DELTAS.get(kind, ("input_json_delta", "partial_json"))
        return self._delta({"type": name, key: text})

    def _begin(self, kind: str, name: str) -> bytes:
        block: dict[str, Any] = {"type": kind}
        if kind == "text":
            block |= {"text": ""}
        elif kind == "thinking":
            block |= {"thinking": "", "signature": ""}
        else:
            block |= {"id": f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}}
        self._blocks.append(block)
        self._parts, self._open = [], True
        return self._event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _close(self) -> bytes:
        """The end of the last block."""
        if not self._open:
            return b""
        self._open = False
        block, text = self._blocks[-1], "".join(self._parts)
        out = b""
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block["thinking"] = "" if self._omit_thinking else text
            # Clients want one. It proves nothing, and nothing here checks it.
            block["signature"] = base64.b64encode(hashlib.sha256(text.encode("utf-8", "replace")).digest()).decode()
            out += self._delta({"type": "signature_delta", "signature": block["signature"]})
        else:
            block["input"] = _input(text)
        return out + self._event("content_block_stop", index=len(self._blocks) - 1)

    def _last(self) -> bytes:
        """The end of the last block. An answer of white space alone is a block, too."""
        if self._space and not self._blocks:
            return self._begin("text", "") + self._add("text", self._space) + self._close()
        return self._close()

    def end(self) -> bytes:
        out = self._start() + self._last()
        reason, sequence = self._stopped()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return out + self._event("message_delta", delta=delta, usage=self._usage()) + self._event("message_stop")

    def reply(self) -> Reply:
        self._last()
        return json_reply(self._message(self._blocks, self._usage(), *self._stopped()))

    def ping(self) -> bytes:
        return self._event("ping")

    def error(self, error: ApiError) -> bytes:
        body = error_body(error)
        return event(body, body["type"])

    def _stopped(self) -> tuple[str | None, str | None]:
        """Anthropic's stop_reason and stop_sequence."""
        if self._silent or self._reason == "length":
            return "max_tokens", None
        if isinstance(self._stop, str):
            return "stop_sequence", self._stop
        return ("tool_use" if any(block["type"] == "tool_use" for block in self._blocks) else "end_turn"), None

    def _message(
        self, content: list[dict[str, Any]], usage: dict[str, Any], reason: str | None = None, stop: str | None = None
    ) -> dict[str, Any]:
        return {**self._head, "content": content, "stop_reason": reason, "stop_sequence": stop, "usage": usage}

    def _usage(self) -> dict[str, Any]:
        cached = self.usage.cached
        return {
            "input_tokens": self.usage.prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0 if self._silent else self.usage.completion,
            "output_tokens_details": {"thinking_tokens": 0 if self._silent else self.usage.reasoning},
        }

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind) if self.stream else b""


def _input(arguments: str) -> dict[str, Any]:
    """The input of a call. One that max_tokens has cut off holds its whole values."""
    try:
        found = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
