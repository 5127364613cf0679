"""`octavo quantize`: an int8 copy of a model that loads by memory mapping."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from typer import Argument, Option

from octavo.cli.sizes import size
from octavo.quantize import quantize_folder


def quantize(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or hub id.", show_default=False)],
    output: Annotated[str, Argument(metavar="OUTPUT", help="Folder to create.", show_default=False)],
    quantization: Annotated[
        str, Option(help="auto (int8, except projections with a large quantisation error) or int8.")
    ] = "auto",
    threads: Annotated[int | None, Option(help="CPU threads.", show_default="one per core")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Write an int8 copy of a model to a new folder. Its weights are memory-mapped, which makes loading fast."""
    made = quantize_folder(model, output, quantization=quantization, threads=threads, revision=revision)
    for text in made.warnings:
        print(f"octavo: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps(made.as_dict(), ensure_ascii=False, indent=2))
        return
    print(f"{made.folder}: {size(made.weight_bytes)} of weights, {', '.join(made.files) or 'no other files'}")
    for text in made.kept_in_bf16:
        print(text)
