"""`octavo compress`: a smaller model of the same family, with a report of what it keeps."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from octavo.compress import Report

# Exit code for a model that keeps less than --keep.
TOO_LITTLE_KEPT = 3


def compress(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or hub id.", show_default=False)],
    output: Annotated[str, Option("--output", "-o", metavar="OUT", help="Folder to create.", show_default=False)],
    vocab: Annotated[str | None, Option(metavar="FILE", help="Text file: tokens that it does not need go.")] = None,
    rows: Annotated[
        int | None, Option(help="With --vocab: tokens to keep.", show_default="what the file needs")
    ] = None,
    experts: Annotated[float | None, Option(metavar="PART", help="Part of the routed experts to keep.")] = None,
    ratio: Annotated[
        float | None, Option(metavar="PART", help="Part of the parameters to keep, by pruning and distillation.")
    ] = None,
    data: Annotated[
        str | None, Option(metavar="FILE", help="JSON lines (messages, prompt/completion, instruction/output, text).")
    ] = None,
    method: Annotated[str, Option(help="With --ratio: width, depth or auto.")] = "auto",
    passes: Annotated[int, Option(help="With --ratio: how often each example is seen.", min=1)] = 1,
    cases: Annotated[
        str | None, Option(metavar="FILE", help="Skills for the report, as `octavo eval --data` reads them.")
    ] = None,
    keep: Annotated[
        float | None, Option(metavar="PART", help="Exit code 3 if the skills keep less than this on average.")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None,
    seed: Annotated[int, Option(help="Seed of the order of the examples.")] = 0,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Make a model smaller: fewer tokens, fewer experts, or less width with distillation."""
    from octavo.compress import compress as run

    made = run(
        model, output, vocab=vocab, rows=rows, experts=experts, ratio=ratio, data=data, method=method, passes=passes,
        cases=cases, keep=keep, revision=revision, seed=seed,
    )  # fmt: skip
    report = made.report
    if as_json:
        print(json.dumps({"folder": str(made.folder), **report.as_dict()}, ensure_ascii=False, indent=2))
    else:
        _show(str(made.folder), report)
    if made.enough is False:
        print(f"octavo: {report.kept:.1%} of the skills are kept, and --keep asks for {keep:.1%}", file=sys.stderr)
        raise typer.Exit(TOO_LITTLE_KEPT)


def _show(folder: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("before", "after", "change", "95 % interval", "p (McNemar)"):
        table.add_column(title, justify="right")
    (many, few), (large, small), (slow, fast) = report.parameters, report.bytes, report.tokens_per_second
    table.add_row("parameters", f"{many:,}", f"{few:,}", f"{few / many:.3f}x", "", "")
    table.add_row(
        "weight files, MiB", f"{large / 2**20:,.1f}", f"{small / 2**20:,.1f}", f"{small / large:.3f}x", "", ""
    )
    table.add_row("tokens/s", f"{slow:,.0f}", f"{fast:,.0f}", f"{fast / slow:.2f}x", "", "")
    for name, skill in report.skills.items():
        if skill.before is None or skill.after is None or skill.difference is None:
            change = skill.nats_after - skill.nats_before
            table.add_row(
                f"{name}, nats a token", f"{skill.nats_before:.3f}", f"{skill.nats_after:.3f}", f"{change:+.3f}", "", ""
            )
            continue
        d = skill.difference
        ends = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        p = "not measured" if skill.p_value is None else f"{skill.p_value:.2g}"
        table.add_row(name, f"{skill.before:.1%}", f"{skill.after:.1%}", f"{100 * d.value:+.1f} points", ends, p)
    kept = "not measured" if report.kept is None else f"{report.kept:.1%}"
    table.add_row("mean kept", "", kept, "", "", "")
    Console(highlight=False).print(table)
    print(f"tokens/s: {report.speed}")
    print(f"{folder}: an ordinary model folder; the numbers are in compress.json")
