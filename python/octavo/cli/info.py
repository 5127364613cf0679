"""`octavo info`: what a model is, what it will take, and what runs it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from octavo import LLM
from octavo.cli import options


def info(
    model: Annotated[
        str | None, typer.Argument(help="Local folder or hub id; default: the model that ships with octavo.")
    ] = None,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = "auto",
    kv_cache_memory: options.KvCacheMemory = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    json_output: options.Json = False,
) -> None:
    """Show the model, the machine and kernels in use, the plan of memory, and the resolved defaults."""
    with LLM(
        model,
        dtype=dtype,
        quantization=None if quantization == "none" else quantization,
        kv_cache_memory=options.kv_cache_memory(kv_cache_memory),
        max_model_len=max_model_len,
        threads=threads,
    ) as llm:
        facts = llm.info()
    if json_output:
        json.dump(facts, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def pairs(title: str, items: dict[str, Any]) -> None:
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in items.items():
            table.add_row(key, _text(value))
        console.print(table)
        console.print()

    pairs("Model", facts["model"])
    pairs("Machine", facts["machine"])
    pairs("Kernels in use", facts["kernels"])
    pairs("Limits", facts["limits"])
    defaults = facts["defaults"]
    pairs("Defaults", {**defaults["sampling"], "max_new_tokens": defaults["max_new_tokens"], "eos": defaults["eos"]})
    table = Table(title="Plan of memory", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column("why")
    for part in facts["memory"]:
        table.add_row(part["name"], f"{part['bytes']:,}", part["reason"])
    total = sum(part["bytes"] for part in facts["memory"])
    table.add_row("total", f"{total:,}", "at most")
    console.print(table)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)
