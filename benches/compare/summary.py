"""From samples to figures: medians, the best setting of each engine, and the share of the machine's limit."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from .limits import Machine
from .measures import CASES, FIGURES
from .shapes import SHAPES

Record = dict[str, Any]


def summarise(records: list[Record]) -> dict[str, Any]:
    """Per shape: the machine's limit of each figure, and each engine's figures at its best setting.

    A round's value is the median of its repeats; a figure is the median of its rounds. The best setting is chosen for
    each figure by that median; `settings` holds all of them.
    """
    summary = {}
    for shape in dict.fromkeys(record["shape"] for record in records):
        own = [record for record in records if record["shape"] == shape]
        machine = machine_of(own)
        bounds: dict[str, float] = {}
        for case in CASES:
            bounds |= case.limit(machine, SHAPES[shape])
        engines: dict[str, Any] = {}
        for engine in dict.fromkeys(record["engine"] for record in own if "engine" in record):
            settings = settings_of([record for record in own if record.get("engine") == engine])
            if settings:
                engines[engine] = {"best": best(settings, bounds), "settings": settings}
        rates = {"read": machine.read, "int8": machine.int8, "bf16": machine.bf16}
        summary[shape] = {"machine": rates, "limits": bounds, "engines": engines, "agree": agree(own)}
    return summary


def machine_of(records: list[Record]) -> Machine:
    """The median over the rounds of each measured rate."""
    measured = [record["limits"] for record in records if "limits" in record]

    def rate(name: str) -> float:
        return float(statistics.median(limits[name]["median"] for limits in measured))

    return Machine(read=rate("read"), int8=rate("int8"), bf16=rate("bf16"))


def settings_of(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Setting to figure to {median, min, max, rounds}."""
    rounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for figure, values in record.get("samples", {}).items():
            rounds[record["setting"]][figure].append(statistics.median(values))
    return {
        setting: {
            figure: {"median": statistics.median(v), "min": min(v), "max": max(v), "rounds": len(v)}
            for figure, v in figures.items()
        }
        for setting, figures in rounds.items()
    }


def best(settings: dict[str, dict[str, Any]], bounds: dict[str, float]) -> dict[str, Any]:
    """Figure to the best setting's numbers, its name, and the share of the limit."""
    chosen = {}
    for figure, (_, _, more_is_better) in FIGURES.items():
        having = [setting for setting in settings if figure in settings[setting]]
        if not having:
            continue
        pick = max if more_is_better else min
        setting = pick(having, key=lambda s: float(settings[s][figure]["median"]))
        entry = {**settings[setting][figure], "setting": setting}
        if figure in bounds:
            ratio = entry["median"] / bounds[figure]
            entry["share_of_limit"] = ratio if more_is_better else 1 / ratio
        chosen[figure] = entry
    return chosen


def agree(records: list[Record]) -> dict[str, bool]:
    """Whether another engine begins the check prompt's completion with the same two greedy tokens.

    More cannot be asked: random weights make near ties, which 8-bit weights of different kinds break differently.
    """
    begins = {(r["engine"], r["setting"]): tuple(r["ids"][:2]) for r in records if "ids" in r}
    return {
        f"{engine} {setting}": any(other != engine and ids == theirs for (other, _), theirs in begins.items())
        for (engine, setting), ids in begins.items()
    }
