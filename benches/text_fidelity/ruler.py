"""The ruler: KL and the best token at every position of a text, against the same engine in float32.

A distribution is given by the log-probabilities of its likeliest tokens. What is left counts as one token. Merging
tokens never raises KL, so the value is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from octavo import LLM, SamplingParams
from octavo.evaluation.intervals import Estimate, ratio

CANDIDATES = 600
TOKENS = 320
# Neighbouring positions are alike; an interval draws whole runs of this many.
RUN = 16
_LEAST = 1e-9

Row = Mapping[int, float]


def rows_of(llm: LLM, ids: Sequence[int]) -> list[Row]:
    """Log-probabilities of the likeliest tokens after each of `ids` but the last."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=CANDIDATES)
    output = llm.generate([list(ids)], params, use_tqdm=False)[0]
    return [
        {token: found.logprob for token, found in (row or {}).items()} for row in (output.prompt_logprobs or [])[1:]
    ]


def kl(want: Row, got: Row) -> float:
    """KL(want || got) over the tokens that both name, and the rest as one."""
    common = [token for token in want if token in got]
    rest = max(_LEAST, 1 - sum(math.exp(want[token]) for token in common))
    got_rest = max(_LEAST, 1 - sum(math.exp(got[token]) for token in common))
    total = sum(math.exp(want[token]) * (want[token] - got[token]) for token in common)
    return max(0.0, total + rest * math.log(rest / got_rest))


def compare(want: Sequence[Row], got: Sequence[Row]) -> dict[str, Any]:
    """Mean KL and the share of the same best token, each with a 95 % interval. Empty rows are left out."""
    pairs = [(a, b) for a, b in zip(want, got, strict=True) if b]
    each = [kl(a, b) for a, b in pairs]
    same = [float(best(a) == best(b)) for a, b in pairs]
    return {"positions": len(each), "kl_mean": _interval(each), "same_best_token": _interval(same)}


def best(row: Row) -> int:
    """The likeliest token."""
    return max(row, key=row.__getitem__)


def _interval(values: Sequence[float]) -> dict[str, float]:
    runs = [values[first : first + RUN] for first in range(0, len(values), RUN)]
    found: Estimate = ratio([sum(run) for run in runs], [len(run) for run in runs])
    return {"value": found.value, "low": found.low, "high": found.high}
