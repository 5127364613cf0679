"""What an adapter makes a model forget: skills, English that it was not trained on, and reading of other towns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams
from octavo.evaluation import Estimate, evaluate, first_of_each, held_out_cases
from octavo.evaluation.intervals import perplexity

from . import arms, scores
from .domain import Domain

# English prose on everyday subjects, written for this bench: a paragraph is a document.
HELD_OUT = Path(__file__).with_name("held_out.txt")
# Cases of each skill that an adapter is measured on.
_KEPT_CASES = 20


def kept_skills(llm: LLM, adapter: str) -> list[dict[str, Any]]:
    """The skills of `octavo eval` without and with the adapter."""
    cases = first_of_each(held_out_cases(), _KEPT_CASES)
    before, after = evaluate(llm, cases).skills, evaluate(llm, cases, adapter=adapter).skills
    return [
        {
            "skill": skill,
            "cases": before[skill].cases,
            "right": before[skill].right,
            "right_with_lora": after[skill].right,
            "perplexity": before[skill].perplexity.value,
            "perplexity_with_lora": after[skill].perplexity.value,
        }
        for skill in before
    ]


def text_nats(llm: LLM, texts: list[str], adapter: str | None = None) -> tuple[list[float], list[int]]:
    """Negative log-probability of each text in nats, and its scored tokens: all except the first of the prompt."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True, lora=adapter)
    nats, tokens = [], []
    for output in llm.generate(texts, params, use_tqdm=False):
        if output.error is not None:
            raise output.error
        assert output.prompt_logprobs is not None
        rows = [next(iter(row.values())).logprob for row in output.prompt_logprobs if row is not None]
        nats.append(-sum(rows))
        tokens.append(len(rows))
    return nats, tokens


def kept_text(llm: LLM, adapter: str) -> dict[str, Any]:
    """Perplexity of the held-out text without and with the adapter; the factor between them is paired by paragraph."""
    text = HELD_OUT.read_text(encoding="utf-8")
    paragraphs = text.strip().split("\n\n")
    before, tokens = text_nats(llm, paragraphs)
    after, _ = text_nats(llm, paragraphs, adapter)
    change = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "text": HELD_OUT.name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "paragraphs": len(paragraphs),
        "tokens": sum(tokens),
        "perplexity": _interval(perplexity(before, tokens)),
        "perplexity_with_lora": _interval(perplexity(after, tokens)),
        "factor": _interval(perplexity(change, tokens)),
    }


def kept_reading(llm: LLM, adapter: str, trained: Domain, other: Domain) -> dict[str, Any]:
    """Answers from the gold passages of a domain that the adapter was not trained on, without and with it.

    "trained_with_lora" counts the wrong answers with a value of the domain that it was trained on.
    """
    values = [question.value for question in other.questions]
    asked = [question.forms[1] for question in other.questions]
    answers = arms.gold(llm, other, lora=adapter)
    before, after = scores.scored(arms.gold(llm, other), values, asked), scores.scored(answers, values, asked)
    wrong = [answer for answer, right in zip(answers, after["contained"], strict=True) if not right]
    learned = {question.value for question in trained.questions}
    return {
        "questions": len(values),
        "trained_with_lora": sum(any(scores.contained(answer, value) for value in learned) for answer in wrong),
        **{score: scores.mean(found) for score, found in before.items()},
        **{f"{score}_with_lora": scores.mean(found) for score, found in after.items()},
        **{f"{score}_gain": scores.gain(found, before[score]) for score, found in after.items()},
    }


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
