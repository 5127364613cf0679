"""Runs the cases against a plugin, and reports what came of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import OctavoError
from octavo.plugins.conformance import call_cases, document_cases, request_cases
from octavo.plugins.conformance.case import Case
from octavo.plugins.conformance.context import Context, Skip, Violation
from octavo.plugins.conformance.target import Target

CASES: tuple[Case, ...] = (*document_cases.CASES, *request_cases.CASES, *call_cases.CASES)


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        ids: the rules of docs/plugin-protocol.md.
        state: `skip`: the case does not apply to this plugin; `detail` says why.
        detail: what was expected and what came; "" for a pass.
    """

    ids: tuple[str, ...]
    title: str
    state: Literal["pass", "fail", "skip"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The results of one run.

    Attributes:
        level: what the plugin is: 0 has no manifest, 1 has no digests, 2 has both.
    """

    target: str
    level: int
    results: Sequence[Result] = field(default_factory=tuple)

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.state == "fail"]

    @property
    def ok(self) -> bool:
        return not self.failed

    def text(self) -> str:
        """The report for readers: one line a case, and a summary."""
        lines = [f"{self.target}: level {self.level}"]
        for result in self.results:
            lines.append(f"  {result.state:4}  {', '.join(result.ids)}: {result.title}")
            if result.detail:
                lines.append(f"        {result.detail}")
        count = {state: sum(r.state == state for r in self.results) for state in ("pass", "fail", "skip")}
        lines.append(f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        results = [{"ids": list(r.ids), "title": r.title, "state": r.state, "detail": r.detail} for r in self.results]
        return {"target": self.target, "level": self.level, "ok": self.ok, "results": results}


def check(
    target: Target,
    *,
    arguments: Mapping[str, Any] | None = None,
    call: bool = True,
    cases: Iterable[Case] = CASES,
) -> Report:
    """Checks a plugin against docs/plugin-protocol.md.

    Args:
        arguments: operation -> arguments that it accepts. Else arguments are made up from the schema.
        call: whether operations that are idempotent and without consequences may be called. No others ever are.

    Raises:
        TargetError: the plugin does not answer at all.
    """
    context = Context(target, dict(arguments or {}), call)
    context.manifest_reply  # noqa: B018 - without an answer each case would report the same
    level = _level(context)
    return Report(target.name, level, tuple(_run(each, context, level) for each in cases))


def _level(context: Context) -> int:
    try:
        operations = context.manifest.operations
    except (Skip, OctavoError):
        return 0
    return 2 if any(entry.digest for entry in operations) else 1


def _run(each: Case, context: Context, level: int) -> Result:
    if level == 1 and each.level > level:
        return Result(each.ids, each.title, "skip", "the plugin has no digests")
    try:
        each.check(context)
    except Violation as error:
        return Result(each.ids, each.title, "fail", str(error))
    except Skip as reason:
        # Without a manifest nothing is known of the plugin: its absence is the fault, of its own case.
        return Result(each.ids, each.title, "skip", str(reason))
    except OctavoError as error:
        return Result(each.ids, each.title, "fail", str(error))
    return Result(each.ids, each.title, "pass")
