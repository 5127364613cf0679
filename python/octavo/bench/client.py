"""The server under load, as an OpenAI client sees it: one request with all its times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.bench.http import Http, HttpError
from octavo.bench.workload import Job
from octavo.errors import InvalidRequestError, OctavoError

Kind = Literal["openai", "openai-chat"]

_PATHS: Mapping[str, str] = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


@dataclass
class Trace:
    """What was seen of one request; times in seconds of `time.perf_counter`.

    Attributes:
        pieces: when each piece of text came.
    """

    begin: float = 0.0
    end: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


class Target:
    """An endpoint of a server.

    Args:
        url: with or without "/v1" at its end.
        kind: "openai" for completions, "openai-chat" for chat.
        model: its name; None: the first that the server lists.
        fields: further fields of every request.
    """

    def __init__(
        self,
        url: str,
        kind: Kind = "openai",
        *,
        model: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        endpoint: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if kind not in _PATHS:
            raise InvalidRequestError(f"--backend is {kind!r}: {' or '.join(_PATHS)} is expected")
        self.kind = kind
        self.model = model
        self._endpoint = endpoint or _PATHS[kind]
        self._fields = dict(fields or {})
        key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = Http(url.rstrip("/").removesuffix("/v1"), {**key, **(headers or {})})

    async def find_model(self) -> str:
        """Its name, asked for if it was not given. Fails clearly where no server answers.

        Raises:
            OctavoError: nothing like an OpenAI server is there.
        """
        if self.model is None:
            try:
                self.model = str(json.loads(await self._http.get("/v1/models"))["data"][0]["id"])
            except (OSError, HttpError) as error:
                raise OctavoError(f"the server lists no models: {error}") from error
            except (ValueError, LookupError, TypeError) as error:
                raise OctavoError("what /v1/models answers is no list of models: name one with --model") from error
        return self.model

    async def tokenize(self, text: str) -> list[int] | None:
        """The server's token ids; None if it cannot say (only octavo and vLLM can)."""
        body = json.dumps({"model": self.model, "prompt": text, "add_special_tokens": False})
        try:
            ids = json.loads(await self._http.post("/tokenize", body.encode()))["tokens"]
        except (OSError, HttpError, ValueError, LookupError, TypeError):
            return None
        return [int(i) for i in ids]

    async def detokenize(self, ids: list[int]) -> str:
        body = json.dumps({"model": self.model, "tokens": ids})
        return str(json.loads(await self._http.post("/detokenize", body.encode()))["prompt"])

    def body(self, job: Job) -> bytes:
        """The request for `job`."""
        fields: dict[str, Any] = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        is_turns = isinstance(job.prompt, list) and bool(job.prompt) and isinstance(job.prompt[0], dict)
        if self.kind == "openai-chat":
            fields["messages"] = job.prompt if is_turns else [{"role": "user", "content": job.prompt}]
        elif is_turns:
            raise InvalidRequestError("messages need --backend openai-chat")
        else:
            fields["prompt"] = job.prompt
        if job.output_tokens is not None:
            fields["max_tokens"] = job.output_tokens
        return json.dumps({**fields, **self._fields}, ensure_ascii=False).encode("utf-8", "replace")

    async def send(self, body: bytes) -> Trace:
        """One request, to its end. What goes wrong stands in the trace."""
        trace = Trace(begin=time.perf_counter())
        reader = _Events(trace)
        try:
            async for piece in self._http.request("POST", self._endpoint, body):
                reader.feed(piece)
            trace.end = time.perf_counter()
            if not reader.done and trace.error is None:
                trace.error = "the stream ended without [DONE]"
        except (OSError, HttpError) as error:
            trace.error = str(error) or type(error).__name__
        trace.end = trace.end or time.perf_counter()
        # A server that counts nothing: a piece is a token.
        trace.output_tokens = trace.output_tokens or len(trace.pieces)
        return trace

    async def close(self) -> None:
        await self._http.close()


class _Events:
    """Reads the events of one stream."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._held = b""
        self.done = False

    def feed(self, piece: bytes) -> None:
        now = time.perf_counter()
        *events, self._held = (self._held + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._take(line[5:].strip(), now)

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                self._trace.error = str(chunk["error"].get("message", chunk["error"]))
                return
            usage = chunk.get("usage")
            if usage:
                self._trace.prompt_tokens = int(usage.get("prompt_tokens", 0))
                self._trace.output_tokens = int(usage.get("completion_tokens", 0))
            if any(_has_text(choice) for choice in chunk.get("choices") or ()):
                self._trace.pieces.append(now)
        except (ValueError, TypeError, AttributeError):
            self._trace.error = f"an event that is no chunk: {data[:80]!r}"


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))
