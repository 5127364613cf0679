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


def held_out(result: dict[str, Any]) -> list[str]:
    """One row for each model with an adapter: perplexity of the held-out text without and with it, and the factor."""
    return [
        f"| {model} | {_ratio(row['perplexity'])} | {_ratio(row['perplexity_with_lora'])} | {_ratio(row['factor'])} |"
        for model, found in result["models"].items()
        if (row := found["prose"].get("held_out")) is not None
    ]


def other_towns(result: dict[str, Any]) -> list[str]:
    """One row for each model with an adapter: "contained" from the gold passages of other towns without and with it."""
    return [
        f"| {model} | {_points(row['contained'])} | {_points(row['contained_with_lora'])} | "
        f"{_points(row['contained_gain'])} |"
        for model, found in result["models"].items()
        if (row := found["prose"].get("other_towns")) is not None
    ]


def all_rows(result: dict[str, Any]) -> list[list[str]]:
    """The rows of each table of the document, in its order."""
    return [rows(result), forgotten(result), held_out(result), other_towns(result)]


def _ratio(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _points(value: dict[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


if __name__ == "__main__":
    print("\n\n".join("\n".join(part) for part in all_rows(result_file.load(RESULT))))
