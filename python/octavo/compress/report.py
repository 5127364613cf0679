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

__all__ = ["Measured", "Report", "measure", "report_of"]

FILE = "compress.json"
_DECODED_TOKENS = 128
_REPEATS = 7


@dataclass(frozen=True)
class Measured:
    """One model as octavo runs it, with int8 weights.

    Attributes:
        parameters: weights.
        bytes: size of its weight files.
        tokens_per_second: decoding one sequence on this machine; the best of some repeats.
        scores: of the cases, if there are any.
    """

    parameters: int
    bytes: int
    tokens_per_second: float
    scores: list[CaseScore]


@dataclass(frozen=True)
class Report:
    """The model before and after.

    Attributes:
        parameters, bytes, tokens_per_second: before and after.
        skills: by name; empty where nothing was measured.
        kept: mean over skills of the share of right answers after, by that before; None: not measured.
        steps: what was done, in order, with numbers.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    tokens_per_second: tuple[float, float]
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
        speed = _decode_rate(llm)
        parameters = int(llm.info()["model"]["parameters"])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Measured(parameters, size, speed, scores)


def report_of(before: Measured, after: Measured, cases: Sequence[Case], steps: list[dict[str, Any]]) -> Report:
    """Both measurements side by side."""
    skills = compare_skills(cases, before.scores, after.scores) if cases else {}
    shares = [skill.kept for skill in skills.values() if skill.kept is not None]
    return Report(
        parameters=(before.parameters, after.parameters),
        bytes=(before.bytes, after.bytes),
        tokens_per_second=(before.tokens_per_second, after.tokens_per_second),
        skills=skills,
        kept=sum(shares) / len(shares) if shares else None,
        steps=steps,
    )


def _decode_rate(llm: LLM) -> float:
    """Tokens per second of one sequence, the prompt aside."""
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
