"""`Response`: turns a generation's output into one reply, or into a stream of events."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from typing import Any

from octavo import _core
from octavo.request_handle import RequestHandle
from octavo.server.errors import ApiError
from octavo.server.fields.requests import StreamOptions
from octavo.server.generation import Deltas, Generation
from octavo.server.http import DONE, PING, Reply, event

# Making a model costs as much as reading a small request.
_NO_OPTIONS = StreamOptions()


class Response(ABC):
    """Turns output into bytes, without I/O: the application reads the generation and sends the bytes.

    For a reply: `feed` all output, then call `reply`. For a stream: send the result of each `feed`, then that of `end`;
    after an error that of `error` instead.

    Args:
        options: the request's `stream_options`.
    """

    def __init__(self, generation: Generation, *, stream: bool, options: StreamOptions | None = None) -> None:
        self.generation = generation
        self.stream = stream
        self.usage = Usage(len(generation.handles))
        self.options = options or _NO_OPTIONS

    @abstractmethod
    def feed(self, deltas: Deltas) -> bytes:
        """Adds output; returns the events of a stream."""

    @abstractmethod
    def reply(self) -> Reply:
        """The complete response, after the last output."""

    def usage_so_far(self) -> dict[str, Any] | None:
        """The usage that each event of a stream has; None if it was not asked for."""
        return self.usage.as_dict() if self.options.continuous_usage_stats else None

    def end(self) -> bytes:
        """The last events of a stream."""
        return DONE

    def close(self) -> None:
        """Cancels what still runs. Every stream ends with this call, also if its client has left."""
        self.generation.close()

    def ping(self) -> bytes:
        """A sign of life, sent while there is no output."""
        return PING

    def error(self, error: ApiError) -> bytes:
        """The last event of a failed stream. No [DONE] follows: the response is incomplete."""
        return event(error.body())


class Usage:
    """Token counts over all prompts of a call."""

    def __init__(self, prompts: int) -> None:
        self._prompt = [0] * prompts
        self._cached = [0] * prompts
        self.completion = 0
        self.reasoning = 0

    def take(self, index: int, delta: _core.Delta, handle: RequestHandle[Any]) -> None:
        self.completion += delta.num_tokens
        while index >= len(self._prompt):
            # The rounds of an answer come one after the other.
            self._prompt.append(0)
            self._cached.append(0)
        if not self._prompt[index]:
            self._prompt[index] = handle.num_prompt_tokens
        if delta.finished:
            metrics = delta.metrics
            if metrics is not None:
                self._cached[index] = int(metrics["cached_prompt_tokens"])

    @property
    def prompt(self) -> int:
        return sum(self._prompt)

    @property
    def cached(self) -> int:
        return sum(self._cached)

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())
