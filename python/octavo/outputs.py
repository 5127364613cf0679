"""Outputs of requests."""

from __future__ import annotations

import builtins
import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from octavo.attention import AttentionMetrics
from octavo.errors import OctavoError, from_engine

if TYPE_CHECKING:
    from octavo import _core
    from octavo.plugins.host.outcome import Outcome

__all__ = [
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "FinishReason",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
]

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate token of a position.

    Attributes:
        logprob: natural logarithm of its probability under the model's raw logits.
        rank: 1 is the most likely token.
        decoded_token: its text; U+FFFD for a part of a character.
        bytes: the bytes that it adds to the text.
    """

    logprob: float
    rank: int
    decoded_token: str
    bytes: builtins.bytes = b""


@dataclass(frozen=True)
class RequestMetrics:
    """Times (seconds) and counts (tokens) of one request; `attention` if attention was dynamic."""

    queue_seconds: float
    ttft_seconds: float
    tpot_seconds: float
    total_seconds: float
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    attention: AttentionMetrics | None = None


@dataclass
class CompletionOutput:
    """One sample of a request.

    Attributes:
        index: which of the `n` samples.
        text: the text so far (in a stream: the new text).
        token_ids: the tokens, the stop token included.
        logprobs: per token a dict of candidates, the chosen token first; None if not asked for.
        cumulative_logprob: sum over the tokens; None if logprobs were not asked for.
        finish_reason: "stop", "length", "abort", "error"; None while it runs.
        stop_reason: the stop string or stop token that ended it; None for end-of-sequence.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    """The output of one request; in a stream, the new part of it.

    Attributes:
        request_id: unique within the engine.
        prompt: the prompt as text, if it was given as text.
        prompt_token_ids: the prompt as tokens.
        outputs: the samples, by index (in a stream: those with news).
        prompt_logprobs: per prompt token a dict of candidates, the actual token first; None for the first token.
        finished: every sample has ended.
        metrics: set when finished.
        error: the error that ended the request, if one did.
        tool_trace: outcomes of the calls of plugins, in order (in a stream: the new ones).

    With plugins an output is that of all rounds: text without the calls, all tokens, counts and times together, and
    the prompt of the first round.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False
    metrics: RequestMetrics | None = None
    error: OctavoError | None = None
    tool_trace: list[Outcome] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.outputs[0].text if self.outputs else ""

    def add(self, delta: _core.Delta) -> RequestOutput:
        """Appends what came since; returns self."""
        for news in delta.outputs:
            output = next((o for o in self.outputs if o.index == news.index), None)
            if output is None:
                output = CompletionOutput(news.index)
                self.outputs.append(output)
                self.outputs.sort(key=lambda o: o.index)
            output.text += news.text
            output.token_ids += news.token_ids
            rows = news.logprobs
            if rows is not None:
                output.logprobs = (output.logprobs or []) + [_candidates(row) for row in rows]
                output.cumulative_logprob = news.cumulative_logprob
            if news.finish_reason is not None:
                output.finish_reason = news.finish_reason
                output.stop_reason = news.stop_reason
        prompt_rows = delta.prompt_logprobs
        if prompt_rows is not None:
            self.prompt_logprobs = [None if row is None else _candidates(row) for row in prompt_rows]
        if delta.finished:
            self.finished = True
            self.metrics, self.error = _end(delta)
        return self


@dataclass
class EmbeddingOutput:
    """An embedding.

    Attributes:
        embedding: as many float32 values as the model's hidden states have, or as `dimensions` says.
    """

    embedding: list[float]


@dataclass
class EmbeddingRequestOutput:
    """The embedding of one prompt.

    Attributes:
        request_id: unique within the engine.
        prompt: the prompt as text, if it was given as text.
        prompt_token_ids: the prompt as tokens.
        outputs: the embedding; None if the request failed.
        finished: the request has ended.
        metrics: set when finished.
        error: the error that ended the request, if one did.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput | None = None
    finished: bool = False
    metrics: RequestMetrics | None = None
    error: OctavoError | None = None

    @property
    def embedding(self) -> list[float]:
        """`outputs.embedding`; empty if the request failed."""
        return self.outputs.embedding if self.outputs is not None else []

    def add(self, delta: _core.Delta) -> EmbeddingRequestOutput:
        """Adds the engine's result; returns self."""
        if delta.finished:
            self.finished = True
            self.metrics, self.error = _end(delta)
            if delta.embedding is not None and self.error is None:
                self.outputs = EmbeddingOutput(floats(delta.embedding))
        return self


def floats(values: bytes) -> list[float]:
    """The values of little-endian float32 bytes."""
    found = array("f", values)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()


def _end(delta: _core.Delta) -> tuple[RequestMetrics | None, OctavoError | None]:
    metrics = delta.metrics
    return (
        _metrics(metrics) if metrics else None,
        from_engine(*delta.error) if delta.error is not None else None,
    )


def _metrics(values: dict[str, Any]) -> RequestMetrics:
    """From the engine's dict, whose keys are the names of the fields."""
    report = values.get("attention")
    return RequestMetrics(**{**values, "attention": AttentionMetrics.from_report(report) if report else None})


def _candidates(row: list[_core.Logprob]) -> dict[int, Logprob]:
    out: dict[int, Logprob] = {}
    for c in row:
        out.setdefault(c.token_id, Logprob(c.logprob, c.rank, c.token, c.bytes))
    return out
