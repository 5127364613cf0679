"""`octavo info`: the model, the kernels and the memory plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer import Argument, Option

from octavo.cli.adapter_facts import adapter_facts
from octavo.cli.options import EngineOptions, with_model
from octavo.cli.pack import is_pack, show_pack
from octavo.cli.sizes import size
from octavo.gpu import device


def info(
    engine: EngineOptions,
    folder: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Same as --model; or the folder of a pack.", show_default=False)
    ] = None,
    lora: Annotated[str | None, Option("--lora", help="Folder of an adapter to describe, too.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object, including the complete model spec.")] = False,
) -> None:
    """Show the model, the machine, the kernels in use, the memory plan and the defaults. Exit code 1 if an adapter does
    not fit the model."""
    if folder is not None and is_pack(folder):
        show_pack(folder, as_json)
        return
    with with_model(engine, folder).load() as llm:
        facts = llm.info()
        if lora is not None:
            facts["adapter"] = adapter_facts(llm, lora)
    found = device.state()
    facts["machine"]["gpu"] = found["name"] if found["usable"] else found["problem"]
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _show(facts)
    if lora is not None and not facts["adapter"]["fits"]:
        raise typer.Exit(1)


def _show(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Emphasis only: without a terminal this is plain text.
    console = Console(highlight=False)

    def section(title: str, rows: list[tuple[str, ...]]) -> None:
        console.print(f"[bold]{title}[/bold]")
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row("", *row)
        console.print(table)

    model = {**facts["model"], "load_seconds": f"{facts['model']['load_seconds']:.2f}"}
    if (origin := model["quantized_file"]) is not None:
        model["quantized_file"] = f"mapped; made from {origin['source']} by {origin['made_by']}"
    section("Model", _rows(model))
    if "adapter" in facts:
        section("Adapter", _rows(facts["adapter"]))
    section("Machine", _rows(facts["machine"]))
    section("Kernels", _rows(facts["kernels"]))
    parts = [(p["name"], size(p["bytes"]), p["reason"]) for p in facts["memory"]]
    section("Memory", [*parts, ("total", size(sum(p["bytes"] for p in facts["memory"])), "")])
    section("Limits", _rows(facts["limits"]))
    defaults = {**facts["defaults"], **facts["defaults"].get("sampling", {})}
    defaults.pop("sampling", None)
    section("Defaults", _rows(defaults))


def _rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(name, _text(name, value)) for name, value in values.items()]


def _text(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        # Stored in single precision: 0.7, not 0.699999988.
        return f"{value:.6g}"
    if isinstance(value, list):
        return ("\n" if name == "kept_in_bf16" else ", ").join(map(str, value)) or "none"
    return "none" if value is None else str(value)
