"""A case of the conformance test: one rule of docs/plugin-protocol.md, and the function that checks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.plugins.conformance.context import Context

Check = Callable[[Context], None]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        ids: the ids of the rules that it checks.
        title: the rule, in a few words.
        level: the lowest level of a plugin that the rule binds.
        check: raises `Violation` or `Skip`; returns if the rule holds.
    """

    ids: tuple[str, ...]
    title: str
    level: int
    check: Check


def case(*ids: str, level: int = 1) -> Callable[[Check], Case]:
    """Makes a function a case; its docstring is the title."""

    def made(check: Check) -> Case:
        return Case(ids, (check.__doc__ or "").strip().rstrip("."), level, check)

    return made
