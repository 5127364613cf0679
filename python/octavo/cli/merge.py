"""`octavo merge`: a model with a PEFT adapter in its weights."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from typer import Argument, Option

from octavo.cli.sizes import size
from octavo.merge import merge_adapter


def merge(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or hub id.", show_default=False)],
    adapter: Annotated[str, Argument(metavar="ADAPTER", help="Folder of the PEFT adapter.", show_default=False)],
    output: Annotated[str, Argument(metavar="OUT", help="Folder to create.", show_default=False)],
    tokenizer: Annotated[
        str, Option(help="Whose tokenizer and chat template are copied: model, adapter, or auto.")
    ] = "auto",
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Merge a PEFT adapter into its model, and write the result to a new folder, which loads like any other."""
    made = merge_adapter(model, adapter, output, tokenizer=tokenizer, revision=revision)
    for text in made.warnings:
        print(f"octavo: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps(made.as_dict(), ensure_ascii=False, indent=2))
        return
    print(f"{made.folder}: {size(made.weight_bytes)} of weights, {len(made.merged)} tensors merged")
    if made.replaced:
        print(f"replaced as a whole: {', '.join(made.replaced)}")
