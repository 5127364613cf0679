"""What an endpoint makes of the engine's news: one reply, or a stream of events."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from typing import Any

from octavo import _core
from octavo.server.faults import ApiError
from octavo.server.generation import Generation, News
from octavo.server.http import DONE, Reply, event


class Answer(ABC):
    """Turns news into bytes. Does no I/O: an application reads the news and sends the bytes.

    For a reply: `feed` until the news end, then `reply`. For a stream: send what `feed` returns, then `end`; after an
    error `fault` instead. Either way the stream has one end.
    """

    def __init__(self, generation: Generation, *, stream: bool) -> None:
        self.generation = generation
        self.stream = stream
        self.usage = Usage(len(generation.streams))

    @abstractmethod
    def feed(self, news: News) -> bytes:
        """Takes news in; for a stream the events that they make."""

    @abstractmethod
    def reply(self) -> Reply:
        """The whole answer, after the last news."""

    def end(self) -> bytes:
        """The last events of a stream."""
        return DONE

    def fault(self, error: ApiError) -> bytes:
        """The last event of a stream that failed. No [DONE] follows: the answer is not complete."""
        return event(error.body())


class Usage:
    """Counts tokens over all prompts of a call."""

    def __init__(self, prompts: int) -> None:
        self._prompt = [0] * prompts
        self._cached = [0] * prompts
        self.completion = 0
        self.reasoning = 0

    def take(self, index: int, delta: _core.Delta, stream: _core.Stream) -> None:
        self.completion += delta.num_tokens
        if delta.finished:
            self._prompt[index] = stream.num_prompt_tokens
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


def finite(logprob: float) -> float:
    """JSON has no -inf: a token that cannot come gets a number that no token has."""
    return max(logprob, -9999.0)


def prompt_logprobs(rows: list[list[_core.Logprob] | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's form: per prompt token a map of token id to candidate."""
    if rows is None:
        return None
    return [
        None
        if row is None
        else {
            str(c.token_id): {"logprob": finite(c.logprob), "rank": c.rank, "decoded_token": c.token}
            for c in reversed(row)
        }
        for row in rows
    ]
