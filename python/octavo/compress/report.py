"""What a smaller model costs and gains: sizes, speed and skills before and after."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.evaluation.cases import Case
from octavo.evaluation.paired import CaseScore, SkillChange, compare_skills, score_cases
from octavo.llm import LLM
from octavo.params import SamplingParams

__all__ = ["Measured", "Report", "decode_rate", "measure", "report_of"]

FILE = "compress.json"
_DECODED_TOKENS = 128
_REPEATS = 7
_SPEED = (
    "decoding one sequence on this machine, up to {tokens} tokens after a prompt of 4, the prefill aside: best of "
    "{repeats}; int8 weights, the original and then the smaller model, at the end of the run"
)


@dataclass(frozen=True)
class Measured:
    """One model as octavo runs it, with int8 weights.

    Attributes:
        parameters: weights.
        bytes: size of its weight files.
        scores: of the cases, if there are any.
    """

    parameters: int
    bytes: int
    scores: list[CaseScore]


@dataclass(frozen=True)
class Report:
    """The model before and after.

    Attributes:
        parameters, bytes: before and after.
        tokens_per_second: before and after.
        speed: what these are the tokens of.
        skills: by name; empty where nothing was measured.
        kept: mean over skills of the share of right answers after, by that before; None: not measured.
        steps: what was done, in order, with numbers.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    tokens_per_second: tuple[float, float]
    speed: str
    skills: dict[str, SkillChange]
    kept: float | None
    steps: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. What was not measured says so."""
        found = dataclasses.asdict(self)
        for field, empty in (("skills", {}), ("kept", None)):
            if found[field] == empty:
                found[field] = "not measured"
        return found

    def save(self, folder: Path) -> None:
        """Writes compress.json into a model folder."""
        (folder / FILE).write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, cases: Sequence[Case]) -> Measured:
    """Loads the model of `folder` and measures it.

    Raises:
        InvalidRequestError: the model cannot take a case.
    """
    with LLM(folder) as llm:
        scores = score_cases(llm, cases) if cases else []
        parameters = int(llm.info()["model"]["parameters"])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Measured(parameters, size, scores)


def report_of(
    before: Measured,
    after: Measured,
    tokens_per_second: tuple[float, float],
    cases: Sequence[Case],
    steps: list[dict[str, Any]],
) -> Report:
    """Both measurements side by side; `tokens_per_second` as `decode_rate` has them."""
    skills = compare_skills(cases, before.scores, after.scores) if cases else {}
    shares = [skill.kept for skill in skills.values() if skill.kept is not None]
    return Report(
        parameters=(before.parameters, after.parameters),
        bytes=(before.bytes, after.bytes),
        tokens_per_second=tokens_per_second,
        speed=_SPEED.format(tokens=_DECODED_TOKENS, repeats=_REPEATS),
        skills=skills,
        kept=sum(shares) / len(shares) if shares else None,
        steps=steps,
    )


def decode_rate(folder: Path) -> float:
    """Tokens per second of one sequence, the prompt aside. Two folders are compared one right after the other."""
    with LLM(folder) as llm:
        room = int(llm.info()["limits"]["max_model_len"])
        count = max(2, min(_DECODED_TOKENS, room - 8))

        def seconds(tokens: int) -> float:
            params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
            begin = time.perf_counter()
            llm.generate([[1, 2, 3, 4]], params, use_tqdm=False)
            return time.perf_counter() - begin

        times = [(seconds(1), seconds(count)) for _ in range(_REPEATS)]
    best = min(long for _, long in times) - min(short for short, _ in times)
    return (count - 1) / max(best, 1e-6)
