"""What a run under load amounts to: spreads of times, throughput, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from octavo.bench.load import Outcome
from octavo.errors import InvalidRequestError

# Objectives as vLLM names them, and what they bound.
SLOS = {"ttft": "time to first token", "tpot": "time per output token", "e2el": "end-to-end latency"}
METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "between pieces",
    "e2el": "end to end",
}


@dataclass(frozen=True)
class Spread:
    """A distribution of milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        if not seconds:
            return None
        ms = sorted(x * 1e3 for x in seconds)
        p50, p90, p99 = (_quantile(ms, q) for q in (0.5, 0.9, 0.99))
        return cls(math.fsum(ms) / len(ms), p50, p90, p99, ms[-1], len(ms))


def _quantile(ordered: Sequence[float], q: float) -> float:
    """With linear interpolation, as numpy's."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True)
class Report:
    """The figures of a run. Rates are per second of it.

    Attributes:
        delay: between the arrival of a request and its sending. Without a limit of concurrency it is the load
            generator's own lateness.
        goodput: complete requests per second that met every objective; None without objectives.
        errors: messages with their counts.
    """

    requests: int
    completed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    delay: Spread | None
    objectives_ms: Mapping[str, float] = field(default_factory=dict)
    goodput: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; spreads are in milliseconds."""
        fields = asdict(self)
        for name in ("ttft", "tpot", "itl", "e2el", "delay"):
            fields[f"{name}_ms"] = fields.pop(name)
        return fields


def summarise(outcomes: Sequence[Outcome], seconds: float, objectives_ms: Mapping[str, float] | None = None) -> Report:
    """The report of a run that took `seconds`. Times are those of complete answers."""
    good = [o for o in outcomes if o.error is None]
    objectives = dict(objectives_ms or {})
    prompt, output = sum(o.prompt_tokens for o in good), sum(o.output_tokens for o in good)
    span = max(seconds, 1e-9)
    return Report(
        requests=len(outcomes),
        completed=len(good),
        seconds=seconds,
        prompt_tokens=prompt,
        output_tokens=output,
        requests_per_second=len(good) / span,
        output_tokens_per_second=output / span,
        total_tokens_per_second=(prompt + output) / span,
        ttft=Spread.of([o.ttft for o in good]),
        tpot=Spread.of([o.tpot for o in good if o.tpot is not None]),
        itl=Spread.of([gap for o in good for gap in o.itl]),
        e2el=Spread.of([o.latency for o in good]),
        delay=Spread.of([o.delay for o in good]),
        objectives_ms=objectives,
        goodput=sum(_meets(o, objectives) for o in good) / span if objectives else None,
        errors=dict(Counter(o.error for o in outcomes if o.error is not None).most_common(20)),
    )


def _meets(outcome: Outcome, objectives_ms: Mapping[str, float]) -> bool:
    # A single token has no time per token, and so breaks no bound on it.
    seconds = {"ttft": outcome.ttft, "tpot": outcome.tpot or 0.0, "e2el": outcome.latency}
    return all(seconds[name] * 1e3 <= bound for name, bound in objectives_ms.items())


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """`["ttft:200", "tpot:50"]`, also as one text, as bounds in milliseconds."""
    found: dict[str, float] = {}
    for word in " ".join(words).split():
        name, _, number = word.partition(":")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if name not in SLOS or not bound > 0:
            raise InvalidRequestError(f"--goodput has {word!r}: NAME:MILLISECONDS with {', '.join(SLOS)} is expected")
        found[name] = bound
    return found
