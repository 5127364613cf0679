"""Evaluation before and after, by octavo's own engine and in the format that is served; and what was forgotten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.evaluation import Case, evaluate, first_of_each, held_out_cases
from octavo.evaluation.evaluate import CaseScore
from octavo.evaluation.intervals import proportion
from octavo.finetune.data import Example
from octavo.finetune.plan import Plan
from octavo.finetune.run_folder import RunFolder
from octavo.hub import embedded_model
from octavo.llm import LLM

__all__ = ["cases_of", "kept_share", "measure", "old_cases"]

# Cases of a skill: enough for an interval of about 10 points, in seconds.
_MAX_CASES = 100
_OLD_CASES = 20


def cases_of(examples: Sequence[Example], run: RunFolder) -> list[Case]:
    """The held-out rows as cases; without any, rows that were trained on, and their skill says so."""
    held = set(json.loads((run.path / "held.json").read_text(encoding="utf-8"))["held"])
    chosen = [e for e in examples if e.line in held] or list(examples)
    skill = "held-out rows" if held else "rows trained on"
    step = max(1, len(chosen) // _MAX_CASES)
    return [case for e in chosen[::step][:_MAX_CASES] if (case := _case(skill, e)) is not None]


def old_cases(folder: Path, run: RunFolder) -> list[Case]:
    """What the base model could do: its own sure answers, and octavo's cases for the embedded model."""
    apart = json.loads((run.path / "held.json").read_text(encoding="utf-8"))["apart"]
    own = [Case("sure answers of the base model", [{"role": "user", "content": q}], a) for q, a in apart]
    skills = first_of_each(held_out_cases(), _OLD_CASES) if folder.samefile(embedded_model()) else []
    return own + skills


def measure(plan: Plan, folder: Path, out: Path, new: Sequence[Case], old: Sequence[Case]) -> dict[str, Any]:
    """Skills before and after with intervals, and the share of the old right answers that is kept.

    Returns:
        "model": as it ran; "learned" and "kept": a table each of skills; "old_right": old cases that were right before;
        "kept_share" and "kept_interval": the share of these that are right after, with its 95 % interval, or None if
        there are none.
    """
    cases = [*new, *old]
    with LLM(str(folder)) as llm:
        before = evaluate(llm, cases)
        if plan.method == "lora":
            llm.load_adapter("finetuned", out)
            after = evaluate(llm, cases, adapter="finetuned")
    if plan.method == "full":
        with LLM(str(out)) as llm:
            after = evaluate(llm, cases)
    rows: list[dict[str, Any]] = []
    for skill, was in before.skills.items():
        now = after.skills[skill]
        rows.append({"skill": skill, "before": dataclasses.asdict(was), "after": dataclasses.asdict(now)})
    learned = {case.skill for case in new}
    return {
        "model": before.model,
        "learned": [row for row in rows if row["skill"] in learned],
        "kept": [row for row in rows if row["skill"] not in learned],
        **kept_share(before.scores[len(new) :], after.scores[len(new) :]),
    }


def kept_share(before: Sequence[CaseScore], after: Sequence[CaseScore]) -> dict[str, Any]:
    """Case by case: how many were right before, and the share of these that still are, with its interval."""
    still = [bool(now.right) for was, now in zip(before, after, strict=True) if was.right]
    share = proportion(sum(still), len(still)) if still else None
    return {
        "old_right": len(still),
        "kept_share": share and share.value,
        "kept_interval": share and [share.low, share.high],
    }


def _case(skill: str, example: Example) -> Case | None:
    if example.messages is not None:
        return Case(skill, [dict(m) for m in example.messages[:-1]], example.messages[-1]["content"])
    return Case(skill, example.prompt or None, example.answer)
