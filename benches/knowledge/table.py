"""The rows of docs/knowledge.md from the result file: `python -m benches.knowledge.table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benches import result_file

RESULT = Path(__file__).resolve().parents[1] / "results" / "knowledge.json"


def rows(result: dict[str, Any]) -> list[str]:
    """One row for each arm of each model and domain, in points of 100."""
    return [
        f"| {model} | {domain} | {arm} | {_points(scores['f1'])} | {_points(scores['contained'])} | "
        f"{_points(scores['f1_gain']) if 'f1_gain' in scores else ''} |"
        for model, found in result["models"].items()
        for domain in ("registers", "prose")
        if domain in found
        for arm, scores in found[domain]["arms"].items()
    ]


def forgotten(result: dict[str, Any]) -> list[str]:
    """One row for each skill of the embedded model that `octavo eval` counts, without and with the LoRA adapter."""
    return [
        f"| {row['skill']} | {row['right']} | {row['right_with_lora']} | {row['cases']} |"
        for row in result["models"]["embedded"]["prose"].get("skills", [])
        if row["right"] is not None
    ]


def _points(value: dict[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


if __name__ == "__main__":
    found = result_file.load(RESULT)
    print("\n".join([*rows(found), "", *forgotten(found)]))
