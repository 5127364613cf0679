"""Plots of a result file, as SVG, named after it: python -m benches.compare.plots RESULT FOLDER."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

from ..result_file import load
from .measures import FIGURES
from .places import all_engines
from .shapes import SHAPES

# Text stays text, and equal data give equal files.
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "octavo"}

_COLOURS = {
    "octavo": "#d1495b",
    "openvino": "#00798c",
    "llama-cpp": "#edae49",
    "ctranslate2": "#66a182",
    "transformers": "#8d96a3",
}
_RATES = [name for name, (_, unit, _) in FIGURES.items() if unit == "tok/s"]


def save(figure: plt.Figure, folder: Path, name: str) -> None:
    """An SVG without its date, with coordinates to a hundredth of a point."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = re.sub(r"\n *", "\n", re.sub(r"(\.\d\d)\d+", r"\1", drawn.getvalue()))
    (folder / f"{name}.svg").write_text(text, encoding="utf-8")
    plt.close(figure)


def speed(shape: str, summary: dict[str, Any], folder: Path, prefix: str) -> None:
    """Share of the machine's limit, a group of bars per figure; the bars bear tokens a second."""
    engines = summary["engines"]
    figure, axes = plt.subplots(figsize=(11, 4.2))
    width = 0.84 / len(engines)
    highest = 100.0
    for number, (engine, entry) in enumerate(engines.items()):
        places = np.arange(len(_RATES)) + (number - (len(engines) - 1) / 2) * width
        best = [entry["best"].get(name, {}) for name in _RATES]
        shares = [100 * b.get("share_of_limit", 0) for b in best]
        highest = max(highest, *shares)
        label = all_engines()[engine]["label"]
        bars = axes.bar(places, shares, width * 0.94, color=_COLOURS[engine], label=label)
        texts = [f"{b['median']:.0f}" if b else "" for b in best]
        axes.bar_label(bars, texts, fontsize=7, padding=1)
    axes.axhline(100, color="black", linewidth=1)
    axes.set_xticks(range(len(_RATES)), [f"{FIGURES[n][0]}\nlimit {summary['limits'][n]:.0f}" for n in _RATES])
    axes.set_ylabel("% of the machine's limit (bars: tokens/s)")
    axes.set_ylim(0, highest + 12)
    axes.set_title(f"{SHAPES[shape].label} shape, each engine at its best setting")
    axes.legend(ncols=len(engines), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, folder, f"{prefix}-{shape}")


def batching(poisson: dict[str, Any], folder: Path, prefix: str) -> None:
    """Shares of requests that are done within a time, of all rounds together."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    for axes, (name, title) in zip(
        panels, [("first_token_seconds", "First token"), ("latency_seconds", "Last token")], strict=True
    ):
        for way, colour in (("continuous", "#d1495b"), ("static", "#8d96a3")):
            values = np.sort([v for entry in poisson["rounds"] for v in entry[way][name]])
            axes.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), color=colour, label=f"{way} batching")
        axes.set_xscale("log")
        axes.set_xlabel(f"{title}, seconds after arrival")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of requests")
    panels[1].legend(frameon=False, loc="upper left")
    figure.suptitle(f"octavo under a Poisson load, {100 * poisson['load']:.0f} % of its capacity")
    save(figure, folder, f"{prefix}-poisson")


def main() -> None:
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    result = load(path)
    mpl.rcParams["svg.hashsalt"] = "octavo"
    for shape, summary in result["summary"].items():
        speed(shape, summary, folder, path.stem)
    if "poisson" in result:
        batching(result["poisson"], folder, path.stem)


if __name__ == "__main__":
    main()
