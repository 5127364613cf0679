"""Shared by the bench commands: tables on the screen, result files, and parsed options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.bench import Spread
from octavo.bench.workload import Tokenize
from octavo.errors import InvalidRequestError
from octavo.llm import LLM


def show(title: str, facts: Iterable[tuple[str, str]], spreads: Mapping[str, Spread | None]) -> None:
    """A table of facts, and one of spreads in milliseconds."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{title}[/bold]")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for row in facts:
        table.add_row(*row)
    console.print(table)
    found = {name: spread for name, spread in spreads.items() if spread is not None}
    if not found:
        return
    console.print()
    times = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    times.add_column("ms")
    for name in ("mean", "p50", "p90", "p99", "max"):
        times.add_column(name, justify="right")
    for name, s in found.items():
        times.add_row(name, *(milliseconds(x) for x in (s.mean, s.p50, s.p90, s.p99, s.max)))
    console.print(times)


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Keeps a result as a JSON file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}") from error


def as_object(option: str, text: str | None) -> dict[str, Any]:
    """The JSON object that an option holds."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{option}: a JSON object is expected")
    return found


def as_headers(given: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` or `NAME: VALUE` as headers."""
    headers = {}
    for text in given:
        mark = min((m for m in "=:" if m in text), key=text.index, default="")
        name, _, value = text.partition(mark) if mark else (text, "", "")
        if not mark or not name.strip():
            raise InvalidRequestError(f"--header is {text!r}: NAME=VALUE is expected")
        headers[name.strip()] = value.strip()
    return headers


def tokenizer(llm: LLM) -> Tokenize:
    """Tokens of words, and nothing else."""
    return lambda text: llm.tokenize(text, add_special_tokens=False)


def command_line() -> str:
    """The command as it was typed, but for keys."""
    words = sys.argv[1:]
    hidden = {i + 1 for i, word in enumerate(words) if word in ("--api-key", "--header")}
    shown = ["***" if i in hidden else word for i, word in enumerate(words)]
    return " ".join(["octavo", *("--api-key=***" if w.startswith("--api-key=") else w for w in shown)])
