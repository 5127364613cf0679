"""`octavo bench attention`: time, bytes and error of attention over selected blocks, beside dense attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from octavo import _core
from octavo.bench.commands.options import command_line, write
from octavo.errors import InvalidRequestError, MissingDependencyError

_COLUMNS = (
    "head_dim",
    "context",
    "heads look",
    "way",
    "us",
    "of int8",
    "of bf16",
    "bytes read",
    "error",
    "bound on mass",
)
_LAYOUT = "{:>8} {:>8} {:<11} {:<17} {:>9} {:>8} {:>8} {:>10} {:>9} {:>13}"


def attention(
    context: Annotated[
        list[int] | None, Option(help="Tokens; may be repeated.", show_default="2048, 8192, 32768, 131072")
    ] = None,
    isa: Annotated[str | None, Option(help="portable, avx2, avx512 or amx; the machine's best if not given.")] = None,
    threads: Annotated[int | None, Option(help="One for each core if not given.")] = None,
    seconds: Annotated[float, Option(help="How long the ways of each context and kind of head are measured.")] = 1.0,
    plot: Annotated[Path | None, Option(help="Picture to write (.png, .svg); needs octavo[bench].")] = None,
    result_filename: Annotated[Path | None, Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Measure one new token's attention in one layer, dense and dynamic, on made-up heads."""
    rows: list[dict[str, Any]] = []
    dense: dict[str, float] = {}
    if not as_json:
        print(_LAYOUT.format(*_COLUMNS).rstrip())

    def take(row: dict[str, Any]) -> None:
        rows.append(row)
        # The dense rows come before the rows that are compared with them, int8 first.
        if row["way"] == "int8 dense":
            dense.clear()
        if row["way"].endswith("dense"):
            dense[row["way"]] = row["seconds_p50"]
            dense[row["way"] + " bytes"] = row["bytes"]
        if not as_json:
            print(_line(row, dense), flush=True)

    _core.bench_attention(take, context or [2048, 8192, 32768, 131072], isa=isa, threads=threads, seconds=seconds)
    result: dict[str, Any] = {"command": command_line(), "machine": _core.build_info(), "rows": rows}
    if threads is not None:
        result["threads"] = threads
    if result_filename is not None:
        write(result_filename, result)
    if plot is not None:
        _draw(plot, rows)
    if as_json:
        print(json.dumps(result, indent=2))


def _line(row: dict[str, Any], dense: dict[str, float]) -> str:
    seconds = row["seconds_p50"]
    over = [f"{dense[way] / seconds:.2f}x" if way in dense else "" for way in ("int8 dense", "bf16 dense")]
    read = row["bytes"] / dense["int8 dense bytes"] if "int8 dense bytes" in dense else None
    mass = row["max_omitted_mass"]
    return _LAYOUT.format(
        row["head_dim"],
        row["context"],
        row["looks"],
        row["way"],
        f"{seconds * 1e6:.0f}",
        *over,
        "" if read is None else f"{read:.2f}",
        f"{row['relative_error']:.1e}",
        "" if mass is None else f"{mass:.1e}",
    ).rstrip()


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Speed over dense int8, for each shape and kind of head."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError("--plot needs the extra: pip install 'octavo[bench]'") from error
    sizes = sorted({row["head_dim"] for row in rows})
    looks = list(dict.fromkeys(row["looks"] for row in rows))
    figure = Figure(figsize=(4 * len(looks), 3.4 * len(sizes)), layout="constrained")
    grid: Any = figure.subplots(len(sizes), len(looks), squeeze=False, sharex=True, sharey=True)
    for axes, size in zip(grid, sizes, strict=True):
        for axis, look in zip(axes, looks, strict=True):
            here = [row for row in rows if row["head_dim"] == size and row["looks"] == look]
            base = {row["context"]: row["seconds_p50"] for row in here if row["way"] == "int8 dense"}
            for way in dict.fromkeys(row["way"] for row in here):
                line = [
                    (row["context"], base[row["context"]] / row["seconds_p50"]) for row in here if row["way"] == way
                ]
                axis.plot(*zip(*line, strict=True), marker="o", label=way)
            axis.set(title=f"heads of {size} that look: {look}", xscale="log", xlabel="tokens", ylabel="x dense int8")
            axis.grid(alpha=0.3)
    grid[0][0].legend(fontsize=7)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"--plot {path}: {error}") from error
