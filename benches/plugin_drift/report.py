"""The figures of a run, and the gates that they must pass."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from octavo.evaluation.intervals import Estimate, proportion

from benches.plugin_drift.episode import Episode
from benches.plugin_drift.oracle import Verdict


def figures(ours: Sequence[Episode], frozen: Sequence[Episode], exact: Sequence[Episode]) -> dict[str, Any]:
    """What a run measured. Drift that no host can see is counted apart; see `undetectable`."""
    visible = [e for e in ours if not e.undetectable]
    compatible = [e for e in visible if e.compatible]
    breaking = [e for e in visible if not e.compatible]
    right = sum(e.met is Verdict.RIGHT for e in compatible)
    share = proportion(right, len(compatible)) if compatible else Estimate(1.0, 0.0, 1.0)
    extra = [n - 1 for e in visible for n in e.requests] or [0]
    return {
        "seeds": len(ours),
        "compatible": {
            "calls": len(compatible),
            "right": right,
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "at_once": sum(e.met is Verdict.RIGHT and not e.asked_again for e in compatible),
        },
        "breaking": {
            "calls": len(breaking),
            "typed": sum(e.met is Verdict.TYPED for e in breaking),
            "right_after_asking_again": sum(e.met is Verdict.RIGHT for e in breaking),
            "codes": dict(Counter(e.code for e in breaking if e.met is Verdict.TYPED).most_common()),
            "ran_otherwise": sum(e.ran_otherwise for e in breaking),
        },
        "silent_wrong": _count(visible, Verdict.WRONG),
        "untyped": _count(visible, Verdict.UNTYPED),
        "extra_requests": {
            "median": statistics.median(extra),
            "mean": statistics.fmean(extra),
            "mean_by_level": {
                level: statistics.fmean([n - 1 for e in visible if e.level == level for n in e.requests] or [0])
                for level in (0, 1, 2)
            },
        },
        "right_on_the_mix": {
            name: sum(e.met is Verdict.RIGHT for e in found if not e.undetectable) / max(1, len(visible))
            for name, found in (("ours", ours), ("frozen", frozen), ("exact", exact))
        },
        "silent_wrong_on_the_mix": {
            name: _count([e for e in found if not e.undetectable], Verdict.WRONG)
            for name, found in (("ours", ours), ("frozen", frozen), ("exact", exact))
        },
        "undetectable": {
            "calls": sum(e.undetectable for e in ours),
            "silent_wrong": _count([e for e in ours if e.undetectable], Verdict.WRONG),
        },
        "repairs": dict(Counter(kind for e in visible for kind in e.repairs).most_common()),
    }


def _count(episodes: Sequence[Episode], verdict: Verdict) -> int:
    return sum((e.before, e.met, e.after).count(verdict) for e in episodes)


def failed_gates(found: dict[str, Any], seeds: int = 10_000) -> list[str]:
    """The gates that a run does not pass, one sentence each.

    The lower end of the interval is a gate of full runs alone: a short one cannot reach it.
    """
    compatible, breaking, mix = found["compatible"], found["breaking"], found["right_on_the_mix"]
    gates = {
        f"compatible drift: {compatible['share']:.4f} right, 0.99 wanted": compatible["share"] >= 0.99,
        f"compatible drift: low end {compatible['low']:.4f}, 0.987 wanted": (
            found["seeds"] < seeds or compatible["low"] >= 0.987
        ),
        f"breaking drift: {breaking['typed']} typed and {breaking['right_after_asking_again']} right of "
        f"{breaking['calls']}, all wanted": (
            breaking["typed"] + breaking["right_after_asking_again"] == breaking["calls"]
        ),
        f"{found['silent_wrong']} silent wrong calls, 0 wanted": found["silent_wrong"] == 0,
        f"{found['untyped']} untyped failures, 0 wanted": found["untyped"] == 0,
        f"median of {found['extra_requests']['median']} extra requests, 0.05 wanted": (
            found["extra_requests"]["median"] <= 0.05
        ),
        f"{100 * (mix['ours'] - mix['frozen']):.1f} points above a frozen schema, 25 wanted": (
            mix["ours"] - mix["frozen"] >= 0.25
        ),
    }
    return [sentence for sentence, passed in gates.items() if not passed]


def failed_place_gates(found: dict[str, Any]) -> list[str]:
    """The gates that the arguments of level 0 in their places do not pass; see `places`."""
    ordinary = found["ordinary"]
    gates = {
        f"places: {found['silent_wrong']} silent wrong calls, 0 wanted": found["silent_wrong"] == 0,
        f"places: {found['untyped']} untyped failures, 0 wanted": found["untyped"] == 0,
        f"places: {ordinary['right']} of {ordinary['calls']} ordinary calls right, all wanted": (
            ordinary["right"] == ordinary["calls"]
        ),
    }
    return [sentence for sentence, passed in gates.items() if not passed]
