"""Two models on the same cases: the difference of each skill, case by case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octavo.evaluation.cases import Case
from octavo.evaluation.evaluate import CaseScore, score_cases
from octavo.evaluation.intervals import Estimate

__all__ = ["CaseScore", "SkillChange", "compare_skills", "mcnemar", "score_cases"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class SkillChange:
    """A skill before and after.

    Attributes:
        cases: number of cases.
        before, after: share of right answers; None for texts.
        difference: after - before, with the 95 % interval of a paired bootstrap over the cases; None for texts.
        lost, gained: cases that were right before alone, and after alone; None for texts.
        p_value: of McNemar's exact test, two-sided; None for texts.
        kept: after / before; None for texts, and where nothing was right before.
        nats_before, nats_after: per token.
    """

    cases: int
    before: float | None
    after: float | None
    difference: Estimate | None
    lost: int | None
    gained: int | None
    p_value: float | None
    kept: float | None
    nats_before: float
    nats_after: float


def compare_skills(
    cases: Sequence[Case], before: Sequence[CaseScore], after: Sequence[CaseScore]
) -> dict[str, SkillChange]:
    """Each skill in the order of the cases. The two models may have other tokens."""
    changes = {}
    for skill in dict.fromkeys(case.skill for case in cases):
        mine = [i for i, case in enumerate(cases) if case.skill == skill]
        asked = [i for i in mine if before[i].right is not None]
        old = [float(before[i].right or 0) for i in asked]
        new = [float(after[i].right or 0) for i in asked]
        shares = (sum(old) / len(asked), sum(new) / len(asked)) if asked else (None, None)
        lost, gained = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((old, new), (new, old)))
        changes[skill] = SkillChange(
            cases=len(mine),
            before=shares[0],
            after=shares[1],
            difference=paired_difference(old, new) if asked else None,
            lost=lost if asked else None,
            gained=gained if asked else None,
            p_value=mcnemar(lost, gained) if asked else None,
            kept=shares[1] / shares[0] if shares[0] and shares[1] is not None else None,
            nats_before=_nats(before, mine),
            nats_after=_nats(after, mine),
        )
    return changes


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Mean of after - before, with a percentile bootstrap over the pairs; the seed is fixed."""
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(change), (_RESAMPLES, len(change)))
    low, high = np.quantile(change[drawn].mean(axis=1), [0.025, 0.975])
    return Estimate(float(change.mean()), float(low), float(high))


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test: how likely a split at least as uneven is if a change is a loss or a gain with equal odds.

    Args:
        lost, gained: cases that only the first, and only the second, got right. Others say nothing of a difference.

    Returns:
        The two-sided p-value, in (0, 1].
    """
    count = lost + gained
    tail = sum(math.comb(count, i) for i in range(min(lost, gained) + 1))
    # Whole numbers are divided: 2 ** count has no float where the cases are many.
    return min(1.0, 2 * tail / (1 << count))


def _nats(scores: Sequence[CaseScore], mine: Sequence[int]) -> float:
    return sum(scores[i].nats for i in mine) / max(1, sum(scores[i].tokens for i in mine))
