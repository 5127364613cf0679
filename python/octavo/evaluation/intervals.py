"""Estimates with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def proportion(right: int, count: int) -> Estimate:
    """A share of successes, with Wilson's score interval: sound for small counts and for shares near 0 or 1."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} of {count} is no share")
    share = right / count
    weight = _Z**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum of numerators / sum of denominators, such as nats per token, with a percentile bootstrap.

    Whole documents are resampled, since the tokens of one are not independent; the seed is fixed.
    """
    if len(numerators) != len(denominators) or sum(denominators) <= 0:
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators, or a sum of 0")
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(top), (_RESAMPLES, len(top)))
    low, high = np.quantile(top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1), [0.025, 0.975])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """exp(nats per token) over documents, with the interval of `ratio`."""
    mean = ratio(nats, tokens)
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))
