"""`octavo eval`: accuracy and perplexity of a model by skill, with confidence intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from octavo.cli.attached import LoraOptions
from octavo.cli.options import EngineOptions, with_model
from octavo.evaluation import Estimate, Report, evaluate, first_of_each, held_out_cases, read_cases


def eval_(
    engine: EngineOptions,
    attached: LoraOptions,
    folder: Annotated[str | None, Argument(metavar="[MODEL]", help="Same as --model.", show_default=False)] = None,
    data: Annotated[
        Path | None,
        Option(
            help='File of JSON lines. A question: {"skill", "prompt" or "messages", "answer", "match"}. '
            'A text for the perplexity: {"skill", "text"}.',
            show_default="the cases of the embedded model",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        Option(help="Maximum number of cases per skill; the first ones are used.", min=1, show_default="all"),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Evaluate a model on held-out cases: accuracy and perplexity by skill."""
    cases = held_out_cases() if data is None else read_cases(data)
    if limit is not None:
        cases = first_of_each(cases, limit)
    with with_model(engine, folder).load() as llm:
        report = evaluate(llm, cases, adapter=attached.load_into(llm), progress=sys.stderr.isatty())
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        _show(report)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("skill")
    for title in ("right", "95 % interval", "perplexity", "95 % interval", "cases"):
        table.add_column(title, justify="right")
    for name, skill in report.skills.items():
        right = ("", "") if skill.accuracy is None else (f"{skill.accuracy.value:.1%}", _ends(skill.accuracy, ".1%"))
        perplexity = f"{skill.perplexity.value:.3f}", _ends(skill.perplexity, ".3f")
        table.add_row(name, *right, *perplexity, f"{skill.cases:,}")
    Console(highlight=False).print(table)


def _ends(estimate: Estimate, form: str) -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"
