"""`run`: interleaved rounds. In each round the machine's limits and then every engine are measured, one after another.

Each block is a fresh process that holds one engine, so an idle engine's threads and memory disturb nobody, and every
round brings a load and a start. The result file is written after each block: an interrupted run keeps what it has.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..result_file import load, save
from .environments import say
from .footprint import environment_facts
from .places import ROOT, Places, all_engines
from .summary import summarise


@dataclass
class Plan:
    """What to measure.

    Attributes:
        prefix: a command that each block is started through, to keep the machine quiet.
        blocks: (engine, setting) in the order of a round.
    """

    blocks: list[tuple[str, str]]
    shapes: list[str]
    figures: set[str]
    rounds: int
    threads: int
    prefix: list[str] = field(default_factory=list)


def run(places: Places, plan: Plan, output: Path, *, keep: bool, command: str) -> None:
    """Measures and writes the result file; with `keep` the measured rounds stay.

    The result file has the summary. The raw records stay in the cache folder.
    """
    result = load(output) if output.exists() else {}
    raw = places.cache / f"{output.stem}.records.json"
    records = json.loads(raw.read_text()) if keep else []
    result.pop("note", None)
    result |= {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": command,
        "machine": machine(plan.threads),
        "environments": (result.get("environments", {}) if keep else {})
        | {engine: environment_facts(places, engine) for engine, _ in plan.blocks},
    }
    first = max((record["round"] for record in records), default=-1) + 1
    for number in range(first, first + plan.rounds):
        for shape in plan.shapes:
            measured = limits(places, plan)
            records.append({"round": number, "shape": shape, "limits": measured})
            for engine, setting in plan.blocks:
                record = {"round": number, "shape": shape, "engine": engine, "setting": setting}
                records.append(record | block(places, plan, engine, setting, shape, number))
                raw.write_text(json.dumps(records))
                write(output, result | {"summary": summarise(records)})


def write(output: Path, result: dict[str, Any]) -> None:
    """Writes the result, or leaves the old file whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".part")
    save(draft, result)
    draft.replace(output)


def block(places: Places, plan: Plan, engine: str, setting: str, shape: str, number: int) -> dict[str, Any]:
    """One engine's samples of one round, or its error."""
    specification = {
        "cache": str(places.cache),
        "pythons": {name: str(path) for name, path in places.pythons.items()},
        "engine": engine,
        "setting": setting,
        "shape": shape,
        "figures": sorted(plan.figures),
        "threads": plan.threads,
        "seed": 1000 * (number + 1),
    }
    command = [sys.executable, "-m", "benches.compare.block", json.dumps(specification)]
    done = subprocess.run([*plan.prefix, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"round {number}, {shape}, {engine} {setting}: {done.stderr.strip().splitlines()[-1:]}")
        return {"error": done.stderr.strip()[-2000:]}
    answer: dict[str, Any] = json.loads(done.stdout)
    shown = {name: round(values[-1], 2) for name, values in answer["samples"].items()}
    say(f"round {number}, {shape}, {engine} {setting}: {shown}")
    return answer


def limits(places: Places, plan: Plan) -> dict[str, Any]:
    """The machine's limits now."""
    command = [*plan.prefix, str(places.limits), "--bench", "--threads", str(plan.threads)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return answer


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    vectors = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f in facts["flags"].split()]
    return {
        "cpu": facts["model name"].strip(),
        "family": int(facts["cpu family"]),
        "cpu_model": int(facts["model"]),
        "vectors": vectors,
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(pages / 1e9, 1),
        "kernel": platform.release(),
    }


def blocks_of(engines: list[str]) -> list[tuple[str, str]]:
    """Every setting of every engine."""
    table = all_engines()
    return [(engine, setting) for engine in engines for setting in table[engine]["settings"]]
