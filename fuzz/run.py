"""Runs the fuzz targets one after the other, one process at a time, and writes what they found.

    python fuzz/run.py                       # all targets, 600 seconds each; writes benches/results/fuzz.json
    python fuzz/run.py config --seconds 900  # this one again; the rows of the others stay

Needs cargo-fuzz and a nightly compiler (`cargo install cargo-fuzz`). Inputs that reach new code grow in fuzz/work,
where the next run begins; inputs that fail are kept in fuzz/artifacts. The exit status is 1 if one fails also alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
RESULT = FUZZ.parent / "benches" / "results" / "fuzz.json"
TARGETS = ["template", "tokenizer", "config", "adapter", "safetensors", "index"]
LIMITS = ["-timeout=20", "-rss_limit_mb=2048"]
# `-fork=1`: one child at work, whose failure ends it alone; the rest lets the run go on after a finding.
OPTIONS = [*LIMITS, "-max_len=65536", "-fork=1", "-ignore_crashes=1", "-ignore_timeouts=1", "-ignore_ooms=1"]
# What libFuzzer says after each job: "#14565840: cov: 1643 ft: 6490 corp: 1419 exec/s: 48780 oom/... time: 306s ..."
STATS = re.compile(r"^#(\d+): cov: (\d+) ft: \d+ corp: (\d+) .*time: (\d+)s", re.MULTILINE)


def cargo_fuzz(*arguments: str) -> list[str]:
    """A command of cargo-fuzz."""
    return ["cargo", "+nightly", "fuzz", *arguments]


def cpu_seconds() -> float:
    """What the ended children have used so far: less than the time that passed, if the machine had other work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def still_fails(target: str, artifact: Path) -> bool:
    """Whether an input fails when it runs alone. A timeout of a process that was merely stopped does not."""
    command = cargo_fuzz("run", target, str(artifact), "--", *LIMITS)
    return subprocess.run(command, cwd=FUZZ.parent, capture_output=True).returncode != 0


def fuzz(target: str, seconds: int) -> dict[str, object]:
    """One target for so long. Raises RuntimeError if libFuzzer itself fails, with the end of what it said."""
    grown, artifacts = FUZZ / "work" / target, FUZZ / "artifacts" / target
    for folder in (grown, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    before, cpu, start = set(artifacts.iterdir()), cpu_seconds(), time.monotonic()
    inputs = len(list(grown.iterdir()))
    command = cargo_fuzz("run", target, str(grown), str(FUZZ / "corpus" / target), "--", *OPTIONS)
    run = subprocess.run(
        [*command, f"-max_total_time={seconds}"],
        cwd=FUZZ.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    stats = STATS.findall(run.stdout)
    if not stats:
        raise RuntimeError(f"fuzzing {target} gave no statistics (status {run.returncode}):\n{run.stdout[-2000:]}")
    passed, cpu = time.monotonic() - start, cpu_seconds() - cpu
    runs, edges, inputs_after, _ = map(int, stats[-1])
    saved = sorted(set(artifacts.iterdir()) - before)
    return {
        "target": target,
        "date": datetime.date.today().isoformat(),
        "runs": runs,
        "seconds": round(passed),
        "cpu_seconds": round(cpu),
        "edges": edges,
        "inputs_before": inputs,
        "inputs_after": inputs_after,
        "saved": len(saved),
        "findings": [artifact.name for artifact in saved if still_fails(target, artifact)],
    }


def cpu_name() -> str:
    """Of /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def record(row: dict[str, object]) -> None:
    """Puts a row into the result file, in place of an earlier one of its target."""
    rows = {row["target"]: row for row in json.loads(RESULT.read_text())["targets"]} if RESULT.exists() else {}
    rows[row["target"]] = row
    result = {
        "command": "python fuzz/run.py",
        "sanitizer": "address",
        "options": OPTIONS,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "nice": os.nice(0)},
        "targets": [rows[target] for target in TARGETS if target in rows],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.targets) - set(TARGETS)):
        parser.error(f"no such target: {', '.join(unknown)}. There are {', '.join(TARGETS)}")

    subprocess.run(cargo_fuzz("build"), cwd=FUZZ.parent, check=True)
    failed = False
    for target in arguments.targets or TARGETS:
        row = fuzz(target, arguments.seconds)
        print(json.dumps(row), flush=True)
        record(row)
        failed |= bool(row["findings"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
