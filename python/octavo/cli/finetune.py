"""`octavo finetune`: a model and a file of JSON lines to an adapter, with no setting that has to be given."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

from typer import Argument, Exit, Option


def finetune(
    data: Annotated[str, Argument(metavar="DATA", help="File of JSON lines.", show_default=False)],
    model: Annotated[
        str | None, Option("--model", "-m", help="Folder or hub id.", show_default="the embedded model")
    ] = None,
    output: Annotated[
        str | None, Option("--output", "-o", help="Folder of the result.", show_default="DATA-adapter")
    ] = None,
    method: Annotated[str, Option(help="auto, lora, qlora or full.")] = "auto",
    evaluation: Annotated[
        str | None, Option("--eval", help="Cases as octavo eval takes them.", show_default="rows of the data")
    ] = None,
    keep: Annotated[
        float | None,
        Option(
            help="Share of the old right answers to keep; below it, exit code 3.", show_default="a warning below 0.95"
        ),
    ] = None,
    replay: Annotated[float, Option(help="Share of each batch that repeats the base model's own answers.")] = 0.25,
    rate: Annotated[float | None, Option(help="Peak learning rate.", show_default="planned")] = None,
    steps: Annotated[int | None, Option(help="Steps.", show_default="planned")] = None,
    processes: Annotated[int | None, Option(help="Processes, one a device.", show_default="one a GPU")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda.", show_default="the GPU if there is one")] = None,
    seed: Annotated[int, Option(help="Seed of the order of rows and of new weights.")] = 7,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None,
    serve: Annotated[
        str | None, Option(help="Running server that loads the adapter; its key is $OCTAVO_ADMIN_API_KEY.")
    ] = None,
    name: Annotated[str | None, Option(help="Name of the adapter there.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the plan, and train nothing.")] = False,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Fine-tune a model on your rows. Stop it at any time: the same command goes on."""
    # Other commands do not wait for it.
    from octavo.finetune.finetune import finetune as run
    from octavo.finetune.finetune import plan_run
    from octavo.finetune.prepare import KEEP, Options
    from octavo.finetune.serve import check_address

    options = Options(
        method=method,
        replay=replay,
        keep=KEEP if keep is None else keep,
        rate=rate,
        steps=steps,
        processes=processes,
        device=device,
        seed=seed,
        evaluation=evaluation,
    )
    if dry_run:
        show_plan(plan_run(data, model, output, options, revision=revision, note=_note).plan.as_dict(), as_json)
        return
    if serve is not None:
        check_address(serve, name, method)
    report = run(data, model, output, options, revision=revision, note=_note)
    _show(report, as_json)
    if serve is not None and name is not None:
        _load(serve, name, data, output)
    _warn(report["warnings"], fails=keep is not None)


def _warn(texts: list[str], *, fails: bool) -> None:
    """Shows what the run forgot; exit code 3 if the user asked for it."""
    for text in texts:
        _note(text)
    if texts and fails:
        raise Exit(3)


def _load(url: str, name: str, data: str, output: str | None) -> None:
    from octavo.finetune.finetune import output_folder
    from octavo.finetune.serve import load_into_server

    _note(load_into_server(url, name, output_folder(data, output), os.environ.get("OCTAVO_ADMIN_API_KEY")))


def show_plan(plan: dict[str, Any], as_json: bool) -> None:
    """The settings with a reason each."""
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    for name, why in plan["why"].items():
        print(f"{name:14} {plan[name]!s:12} {why}")
    for line in plan["memory"]:
        print(f"{'memory':14} {line['bytes']:<12,} {line['what']}: {line['why']}")


def _note(text: str) -> None:
    print(f"octavo: {text}", file=sys.stderr)


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return
    training, measured = report["training"], report["evaluation"]
    print(
        f"{training['steps']} steps in {training['seconds']:.0f} s, loss {training['first_loss']:.3f} to "
        f"{training['last_loss']:.3f}"
    )
    for row in measured["learned"] + measured["kept"]:
        was, now = row["before"], row["after"]
        right = (
            "" if was["accuracy"] is None else f"{was['accuracy']['value']:.1%} to {now['accuracy']['value']:.1%} right"
        )
        print(
            f"{row['skill']}: {right} perplexity {was['perplexity']['value']:.3f} to {now['perplexity']['value']:.3f}"
        )
    if measured["kept_share"] is not None:
        low, high = measured["kept_interval"]
        print(
            f"old right answers kept: {measured['kept_share']:.1%} of {measured['old_right']} "
            f"(95 % interval {low:.1%} to {high:.1%})"
        )
