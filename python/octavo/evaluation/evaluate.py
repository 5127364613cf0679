"""Evaluates a model on cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.evaluation.cases import Case, held_out_cases
from octavo.evaluation.intervals import Estimate, perplexity, proportion
from octavo.llm import LLM
from octavo.params import SamplingParams

# Additional tokens for answers that are longer than the reference.
_SLACK_TOKENS = 32
# Facts about the machine and the load, which a report does not contain.
_NOT_OF_THE_MODEL = ("path", "load_seconds")


@dataclass(frozen=True)
class CaseScore:
    """What a model did with one case.

    Attributes:
        right: whether its greedy answer is right; None for a text.
        nats: negative log-probability of the right answer, or of the text.
        tokens: how many tokens that is.
    """

    right: bool | None
    nats: float
    tokens: int


@dataclass(frozen=True)
class Skill:
    """Results of the cases of one skill.

    Attributes:
        cases: number of cases.
        right: number of correct answers, decoded greedily; None for texts.
        accuracy: share of correct answers, with Wilson's interval; None for texts.
        tokens: number of tokens of the perplexity.
        perplexity: of the right answers after their prompts, or of the texts (without the first token), with a
            bootstrap over the cases.
    """

    cases: int
    right: int | None
    accuracy: Estimate | None
    tokens: int
    perplexity: Estimate


@dataclass(frozen=True)
class Report:
    """All skills, in the order of the cases, and the model as it ran (`LLM.info()["model"]`, and its adapter).

    `scores` are those of the single cases, in their order.
    """

    model: dict[str, Any]
    skills: dict[str, Skill]
    scores: list[CaseScore] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: without the single cases."""
        return {"model": self.model, "skills": {name: dataclasses.asdict(s) for name, s in self.skills.items()}}


def evaluate(
    llm: LLM, cases: Sequence[Case] | None = None, *, adapter: str | None = None, progress: bool = False
) -> Report:
    """Perplexity and accuracy per skill.

    Args:
        llm: the model as it runs: with its quantisation.
        cases: from `read_cases`; None: the cases that ship with octavo, which suit the embedded model only.
        adapter: name of a loaded adapter to evaluate the model with.
        progress: show progress bars.

    Raises:
        InvalidRequestError: there are no cases, or the model cannot take one (no chat template, or a prompt that is
            too long).
        OctavoError: a request failed.
    """
    cases = held_out_cases() if cases is None else list(cases)
    if not cases:
        raise InvalidRequestError("cases is empty: there is nothing to evaluate")
    scores = score_cases(llm, cases, adapter=adapter, progress=progress)
    skills = {}
    for skill in dict.fromkeys(case.skill for case in cases):
        mine = [score for score, case in zip(scores, cases, strict=True) if case.skill == skill]
        asked = [score.right for score in mine if score.right is not None]
        skills[skill] = Skill(
            cases=len(mine),
            right=sum(asked) if asked else None,
            accuracy=proportion(sum(asked), len(asked)) if asked else None,
            tokens=sum(score.tokens for score in mine),
            perplexity=perplexity([score.nats for score in mine], [score.tokens for score in mine]),
        )
    facts = llm.info()["model"]
    model = {name: facts[name] for name in facts if name not in _NOT_OF_THE_MODEL}
    if adapter is not None:
        model["adapter"] = next({"digest": a.digest, "rank": a.rank} for a in llm.adapters() if a.name == adapter)
    return Report(model=model, skills=skills, scores=scores)


def score_cases(
    llm: LLM, cases: Sequence[Case], *, adapter: str | None = None, progress: bool = False
) -> list[CaseScore]:
    """What the model does with each case.

    Raises:
        InvalidRequestError: the model cannot take a case.
    """
    prompts = [prompt_ids(llm, case) for case in cases]
    # A text has no prompt: its first token is the prompt.
    answers = [llm.tokenize(case.answer, add_special_tokens=case.prompt is None) for case in cases]
    for case, ids, answer in zip(cases, prompts, answers, strict=True):
        if len(ids) + len(answer) < 2:
            raise InvalidRequestError(f"skill {case.skill}: {case.answer!r} is one token: there is nothing to predict")
    nats = answer_nats(llm, prompts, answers, adapter, progress)
    right = answered(llm, list(cases), prompts, answers, adapter, progress)
    return [
        CaseScore(
            right=right[i] if case.prompt is not None else None,
            nats=nats[i],
            tokens=len(answers[i]) - (not prompts[i]),
        )
        for i, case in enumerate(cases)
    ]


def prompt_ids(llm: LLM, case: Case) -> list[int]:
    """Tokens of a case's prompt; none for a text."""
    if case.prompt is None:
        return []
    if isinstance(case.prompt, str):
        return llm.tokenize(case.prompt)
    # The template writes the special tokens itself.
    return llm.tokenize(llm.render_chat(case.prompt), add_special_tokens=False)


def answer_nats(
    llm: LLM, prompts: list[list[int]], answers: list[list[int]], adapter: str | None, progress: bool
) -> list[float]:
    """Negative log-probability of each answer after its prompt (for a text: of all tokens except the first)."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True, lora=adapter)
    whole = [ids + answer for ids, answer in zip(prompts, answers, strict=True)]
    nats = []
    for output, ids in zip(llm.generate(whole, params, use_tqdm=progress), prompts, strict=True):
        if output.error is not None:
            raise output.error
        assert output.prompt_logprobs is not None
        rows = output.prompt_logprobs[max(1, len(ids)) :]
        nats.append(-sum(next(iter(row.values())).logprob for row in rows if row is not None))
    return nats


def answered(
    llm: LLM,
    cases: list[Case],
    prompts: list[list[int]],
    answers: list[list[int]],
    adapter: str | None,
    progress: bool,
) -> list[bool]:
    """Whether the answer to each case is correct; False for texts."""
    asked = [i for i, case in enumerate(cases) if case.prompt is not None]
    right = [False] * len(cases)
    if not asked:
        return right
    room = llm.info()["limits"]["max_model_len"]
    params = [
        SamplingParams(
            max_tokens=min(len(answers[i]) + _SLACK_TOKENS, max(1, room - len(prompts[i]))),
            temperature=0,
            repetition_penalty=1.0,
            lora=adapter,
        )
        for i in asked
    ]
    outputs = llm.generate([prompts[i] for i in asked], params, use_tqdm=progress)
    for i, output in zip(asked, outputs, strict=True):
        if output.error is not None:
            raise output.error
        right[i] = cases[i].is_right(output.text)
    return right
