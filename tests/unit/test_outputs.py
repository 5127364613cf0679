"""Outputs grow by deltas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo.errors import OctavoError, RequestTimeoutError
from octavo.outputs import Logprob, RequestOutput


@dataclass
class Candidate:
    token_id: int
    logprob: float
    rank: int
    token: str

    @property
    def bytes(self) -> bytes:
        return self.token.encode()


@dataclass
class Sample:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[Candidate]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class News:
    """What the engine hands over."""

    outputs: list[Sample] = field(default_factory=list)
    finished: bool = False
    prompt_logprobs: Any = None
    metrics: dict[str, float] | None = None
    error: tuple[str, str] | None = None


METRICS = {
    "queue_seconds": 0.1,
    "ttft_seconds": 0.2,
    "tpot_seconds": 0.3,
    "total_seconds": 0.4,
    "prompt_tokens": 3,
    "cached_prompt_tokens": 0,
    "generated_tokens": 3,
}


def grown(*news: News) -> RequestOutput:
    output = RequestOutput(7, "prompt", [1, 2, 3])
    for piece in news:
        output.add(piece)  # type: ignore[arg-type]
    return output


def test_text_and_tokens_are_joined_by_sample() -> None:
    output = grown(
        News([Sample(1, "b", [5])]),
        News([Sample(0, "a", [4]), Sample(1, "B", [6])]),
        News(
            [Sample(0, "A", [7], finish_reason="length"), Sample(1, finish_reason="stop", stop_reason="x")],
            True,
            None,
            METRICS,
        ),
    )
    assert [(o.index, o.text, o.token_ids, o.finish_reason, o.stop_reason) for o in output.outputs] == [
        (0, "aA", [4, 7], "length", None),
        (1, "bB", [5, 6], "stop", "x"),
    ]
    assert output.text == "aA"
    assert output.finished
    assert output.metrics is not None
    assert output.metrics.tpot_seconds == 0.3


def test_logprobs_keep_the_chosen_first_and_once() -> None:
    rows = [[Candidate(5, -2.0, 2, "b"), Candidate(9, -0.5, 1, "a"), Candidate(5, -2.0, 2, "b")]]
    output = grown(
        News([Sample(0, "b", [5], rows, -2.0)]), News([Sample(0, "a", [9], [[Candidate(9, -0.1, 1, "a")]], -2.1)])
    )
    sample = output.outputs[0]
    assert sample.logprobs == [
        {5: Logprob(-2.0, 2, "b", b"b"), 9: Logprob(-0.5, 1, "a", b"a")},
        {9: Logprob(-0.1, 1, "a", b"a")},
    ]
    assert list(sample.logprobs[0]) == [5, 9]
    assert sample.cumulative_logprob == -2.1


def test_prompt_logprobs() -> None:
    output = grown(News(prompt_logprobs=[None, [Candidate(2, -1.0, 1, "x")]]))
    assert output.prompt_logprobs == [None, {2: Logprob(-1.0, 1, "x", b"x")}]


def test_errors_become_exceptions() -> None:
    output = grown(News([Sample(0, finish_reason="error")], True, None, METRICS, ("RequestTimeoutError", "too late")))
    assert isinstance(output.error, RequestTimeoutError)
    assert str(output.error) == "too late"
    unknown = grown(News([], True, None, None, ("SomethingNew", "odd"))).error
    assert type(unknown) is OctavoError


def test_empty_output_has_empty_text() -> None:
    assert grown().text == ""
