"""What a run leaves beside its weights: report.json, a model card and a plot of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.finetune.plan import DataFacts, Plan
from octavo.finetune.plot import loss_plot

__all__ = ["card", "make_report", "write_report"]


def make_report(
    plan: Plan, data: DataFacts, log: list[dict[str, Any]], measured: dict[str, Any], keep: float
) -> dict[str, Any]:
    """The whole report as plain values."""
    steps = [line for line in log if "loss" in line]
    evaluated = [line for line in log if "eval_loss" in line]
    best = min(evaluated, key=lambda line: line["eval_loss"]) if evaluated else steps[-1]
    seconds = sum(line["seconds"] for line in log)
    share = measured["kept_share"]
    warnings = []
    if share is not None and share < keep:
        warnings.append(
            f"{share:.0%} of the old right answers are kept, fewer than {keep:.0%}: lower --rate or raise --replay. "
            "For facts that change, a pack (octavo pack) forgets nothing"
        )
    return {
        "plan": plan.as_dict() | {"model": Path(plan.model).name},
        "data": vars(data),
        "training": {
            "steps": len(steps),
            "result_of_step": best["step"],
            "first_loss": steps[0]["loss"],
            "last_loss": sum(line["loss"] for line in steps[-10:]) / len(steps[-10:]),
            "seconds": seconds,
            "cpu_seconds": sum(line["cpu"] for line in log),
            "tokens": sum(line["tokens"] for line in steps),
            "tokens_per_second": sum(line["tokens"] for line in steps) / max(seconds, 1e-9),
        },
        "evaluation": measured,
        "keep": keep,
        "warnings": warnings,
    }


def write_report(out: Path, report: dict[str, Any], log: list[dict[str, Any]], base: str, data: str) -> None:
    """Writes report.json, README.md and loss.svg."""
    (out / "loss.svg").write_text(loss_plot(log), encoding="utf-8")
    (out / "README.md").write_text(card(report, base, data), encoding="utf-8")
    partial = out / "report.json.partial"
    partial.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "report.json")


def card(report: dict[str, Any], base: str, data: str) -> str:
    """The model card, in Markdown."""
    plan, facts, training = report["plan"], report["data"], report["training"]
    kind = f"LoRA adapter, rank {plan['rank']}" if plan["method"] == "lora" else "all weights"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        *(["library_name: peft"] if plan["method"] == "lora" else []),
        "tags: [octavo]",
        "---",
        "",
        f"# {base}, fine-tuned on {data}",
        "",
        f"{kind}, {training['steps']} steps of {plan['batch_rows']} rows at a peak rate of {plan['rate']}, "
        f"{facts['rows']} rows of format {facts['format']}. Made by `octavo finetune`.",
        "",
        "![Loss over the steps](loss.svg)",
        "",
        "| skill | before | after | 95 % interval | perplexity before | after | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["evaluation"]["learned"] + report["evaluation"]["kept"]:
        was, now = row["before"], row["after"]
        shares = [f"{x['accuracy']['value']:.1%}" if x["accuracy"] else "" for x in (was, now)]
        ends = f"{now['accuracy']['low']:.1%} to {now['accuracy']['high']:.1%}" if now["accuracy"] else ""
        perplexity = f"{was['perplexity']['value']:.3f} | {now['perplexity']['value']:.3f}"
        lines.append(f"| {row['skill']} | {shares[0]} | {shares[1]} | {ends} | {perplexity} | {now['cases']} |")
    lines += ["", *report["warnings"], "", "## Plan", "", "| setting | value | why |", "|---|---|---|"]
    lines += [f"| {name} | {plan[name]} | {why} |" for name, why in plan["why"].items()]
    return "\n".join(lines) + "\n"
