"""`octavo bench kernels`: speed of each kernel and its share of the limit of the machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

from typer import Argument, Option

from octavo import _core
from octavo.errors import InvalidRequestError

_COLUMNS = ("kernel", "dtype", "shape", "sizes", "microseconds", "GB/s", "GOPS", "of the limit", "bound by")
_LAYOUT = "{:<13} {:<5} {:<13} {:<36} {:>12} {:>8} {:>8} {:>13} {:<9}"


def kernels(
    words: Annotated[
        list[str] | None, Argument(help="Only rows that hold each of these: matmul, int8, llama-3.2-1b, m=1, ...")
    ] = None,
    isa: Annotated[str | None, Option(help="portable, avx2, avx512 or amx; the machine's best if not given.")] = None,
    threads: Annotated[int | None, Option(help="One for each core if not given.")] = None,
    seconds: Annotated[float, Option(help="How long each row is measured.")] = 0.3,
    as_json: Annotated[bool, Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Measure the kernels on the shapes of two models, and the machine's limits in the same run."""
    rows: list[dict[str, Any]] = []
    if not as_json:
        print(_LAYOUT.format(*_COLUMNS).rstrip())

    def take(row: dict[str, Any]) -> None:
        rows.append(row)
        if not as_json:
            print(line(row), flush=True)

    limits = _core.bench_kernels(take, words=words or [], isa=isa, threads=threads, seconds=seconds)
    if limits is None:
        raise InvalidRequestError(f"no row holds {' and '.join(words or [])}: see the table without words")
    if as_json:
        print(json.dumps({"limits": limits, "rows": rows}, indent=2))
    else:
        print(limits_line(limits))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    share, operations = row["share"], row["operations_per_second"]
    return _LAYOUT.format(
        row["kernel"],
        row["dtype"],
        row["shape"],
        row["sizes"],
        f"{row['seconds_p50'] * 1e6:.0f}",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{operations / 1e9:.1f}" if operations else "",
        "" if share is None else f"{share:.0%}",
        row["bound"],
    ).rstrip()


def limits_line(limits: dict[str, Any]) -> str:
    """The limits of the machine as one line."""
    parts = [f"reads {limits['read'] / 1e9:.1f} GB/s"]
    for name in ("int8", "bf16", "f32"):
        if (peak := limits[name]) is not None:
            parts.append(f"{name} {peak['rate'] / 1e9:.0f} GOPS ({peak['instruction']})")
    return f"limits with {limits['threads']} threads: {', '.join(parts)}; kernels for {limits['isa']}"
