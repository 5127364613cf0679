"""`report`: tables in Markdown on standard output, plots beside the result file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from ..result_file import load
from .measures import FIGURES
from .places import PLOTS, ROOT, TOOLS, Places, all_engines
from .shapes import SHAPES

_RATES = [name for name, (_, unit, _) in FIGURES.items() if unit == "tok/s"]
_OTHERS = [name for name in FIGURES if name not in _RATES]


def report(places: Places, path: Path) -> None:
    """Prints the tables; plots are drawn by the tools' environment, which has matplotlib."""
    result = load(path)
    print("\n".join(tables(result)))
    sys.stdout.flush()
    folder = PLOTS if path.parent == PLOTS.parent else path.parent / "plots"
    command = [str(places.python(TOOLS)), "-m", "benches.compare.plots", str(path), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def tables(result: dict[str, Any]) -> list[str]:
    """The whole report as lines."""
    machine = result.get("machine", {})
    lines = [f"{machine.get('cpu', '?')}, {machine.get('threads', '?')} threads, {result.get('date', '?')}", ""]
    for shape, summary in result["summary"].items():
        rates = summary["machine"]
        lines += [
            f"### {SHAPES[shape].label} shape",
            "",
            f"Limits: {rates['read'] / 1e9:.1f} GB/s, {rates['int8'] / 1e12:.2f} TOPS int8, "
            f"{rates['bf16'] / 1e12:.2f} TFLOPS bfloat16.",
            "",
            *rate_table(summary),
            "",
            *other_table(summary, result.get("environments", {})),
            "",
        ]
        odd = [name for name, same in summary["agree"].items() if not same]
        if odd:
            lines += [f"No other engine begins the check prompt's completion like: {', '.join(odd)}.", ""]
    if "poisson" in result:
        lines += poisson_table(result["poisson"])
    return lines


def rate_table(summary: dict[str, Any]) -> list[str]:
    """Tokens a second, the share of the limit, and octavo's ratio to the best peer."""
    lines = [row(["tok/s", *(FIGURES[name][0] for name in _RATES)]), row(["---"] * (len(_RATES) + 1))]
    lines.append(row(["limit", *(f"{summary['limits'][name]:.0f}" for name in _RATES)]))
    for engine, entry in summary["engines"].items():
        cells = []
        for name in _RATES:
            best = entry["best"].get(name)
            cells.append(f"{best['median']:.0f} ({100 * best['share_of_limit']:.0f} %)" if best else "")
        lines.append(row([all_engines()[engine]["label"], *cells]))
    return [*lines, row(["octavo / best peer", *(ratio(summary, name) for name in _RATES)])]


def ratio(summary: dict[str, Any], name: str) -> str:
    """octavo's figure over that of the best peer."""
    values = {
        engine: entry["best"][name]["median"] for engine, entry in summary["engines"].items() if name in entry["best"]
    }
    peers = [value for engine, value in values.items() if engine != "octavo"]
    return f"{values['octavo'] / max(peers):.2f}x" if peers and "octavo" in values else ""


def other_table(summary: dict[str, Any], environments: dict[str, Any]) -> list[str]:
    """Seconds and megabytes."""
    heads = [f"{FIGURES[name][0]}, {FIGURES[name][1]}" for name in _OTHERS]
    lines = [row(["", *heads, "Installation, MB"]), row(["---"] * (len(_OTHERS) + 2))]
    for engine, entry in summary["engines"].items():
        cells = []
        for name in _OTHERS:
            best = entry["best"].get(name)
            cells.append("" if not best else f"{best['median']:.{0 if name == 'peak_rss' else 2}f}")
        size = environments.get(engine, {}).get("installed_bytes")
        lines.append(row([all_engines()[engine]["label"], *cells, f"{size / 1e6:.0f}" if size else ""]))
    return lines


def poisson_table(poisson: dict[str, Any]) -> list[str]:
    """Continuous against static batching."""
    ways = poisson["summary"]
    lines = [
        f"### Poisson load at {100 * poisson['load']:.0f} % of capacity",
        "",
        f"{SHAPES[poisson['shape']].label} shape, {len(poisson['rounds'])} rounds of {poisson['requests']} requests, "
        f"at most {poisson['batch']} sequences at once.",
        "",
        row(["", *ways]),
        row(["---"] * (len(ways) + 1)),
    ]
    names = {
        "saturated_tokens_per_second": "output tok/s when requests always wait",
        "tokens_per_second": "output tok/s under the load",
        "first_token_seconds": "first token, s",
        "latency_seconds": "latency, s",
    }
    for figure in ways["continuous"]:
        base, _, percentile = figure.partition("_p")
        base, percentile = (base, f" p{percentile}") if percentile in ("50", "90", "99") else (figure, "")
        lines.append(row([names[base] + percentile, *(f"{way[figure]:.2f}" for way in ways.values())]))
    return lines


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
