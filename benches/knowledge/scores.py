"""Scores of short answers, with 95 % intervals from a bootstrap over the questions (paired for a difference)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)
_RESAMPLES = 10_000


def words(text: str) -> list[str]:
    """As SQuAD's script does: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_MARKS)).split()


def value_words(answer: str, question: str) -> list[str]:
    """The words of an answer that do not stand in the question, nor link the two: an echo earns nothing."""
    echo = {*words(question), "is", "are", "was", "on", "of", "in", "its"}
    return [word for word in words(answer) if word not in echo]


def token_f1(answer: str, value: str, question: str) -> float:
    """Token F1 of the answer's value words against those of the right value, 0 to 1."""
    given, right = value_words(answer, question), words(value)
    common = sum((Counter(given) & Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(right)
    return 2 * precision * recall / (precision + recall)


def contained(answer: str, value: str) -> float:
    """1.0 where the words of the right value stand in the answer, in order and side by side; else 0.0."""
    given, right = words(answer), words(value)
    return float(any(given[i : i + len(right)] == right for i in range(len(given) - len(right) + 1)))


def mean(values: Sequence[float]) -> dict[str, float]:
    """The mean in points (0 to 100), with the ends of its interval."""
    scores = np.asarray(values, np.float64) * 100
    drawn = np.random.default_rng(0).integers(0, len(scores), (_RESAMPLES, len(scores)))
    low, high = np.quantile(scores[drawn].mean(axis=1), [0.025, 0.975])
    return {"value": float(scores.mean()), "low": float(low), "high": float(high)}


def gain(arm: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The mean difference on the same questions, in points, with its paired interval."""
    return mean([a - b for a, b in zip(arm, base, strict=True)])


def scored(answers: Sequence[str], values: Sequence[str], questions: Sequence[str]) -> dict[str, Any]:
    """F1 and contained-answer of one arm, question by question."""
    rows = list(zip(answers, values, questions, strict=True))
    return {
        "f1": [token_f1(answer, value, question) for answer, value, question in rows],
        "contained": [contained(answer, value) for answer, value, _ in rows],
    }
