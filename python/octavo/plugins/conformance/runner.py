"""Runs the cases against a plugin, and reports what came of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from octavo.errors import InvalidRequestError, OctavoError
from octavo.plugins.conformance import argument_cases, call_cases, document_cases, request_cases
from octavo.plugins.conformance.case import Case
from octavo.plugins.conformance.context import Context, Skip, Violation
from octavo.plugins.conformance.target import Target
from octavo.plugins.host.source import redact

CASES: tuple[Case, ...] = (*document_cases.CASES, *request_cases.CASES, *argument_cases.CASES, *call_cases.CASES)


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
        InvalidRequestError: `arguments` names an operation that the plugin does not have.
        TargetError: the plugin does not answer at all.
    """
    context = Context(target, dict(arguments or {}), call)
    context.manifest_reply  # noqa: B018 - without an answer each case would report the same
    level = _level(context)
    if level:
        known = {entry.id for entry in context.manifest.operations}
        unknown = next((name for name in context.samples if name not in known), None)
        if unknown is not None:
            raise InvalidRequestError(f"arguments are for {unknown[:80]!r}: the plugin has {', '.join(sorted(known))}")
    results = (_run(each, context, level) for each in cases)
    return Report(target.name, level, tuple(hidden(target, result) for result in results))


def hidden(target: Target, result: Result) -> Result:
    """A result without the secrets of the requests: a plugin may echo them."""
    return replace(result, detail=redact(result.detail, getattr(target, "secrets", ())))


def _level(context: Context) -> int:
    try:
        operations = context.manifest.operations
    except Exception:
        # Of its own case.
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
    except Exception as error:
        # Whatever a plugin sends, the other cases are reported.
        why = f"what the plugin sent cannot be read: {type(error).__name__}: {str(error)[:200]}"
        return Result(each.ids, each.title, "fail", why)
    return Result(each.ids, each.title, "pass")
