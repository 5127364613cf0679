"""A picture of a run: how times are distributed, and what happened when."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.bench.load import Outcome
from octavo.bench.report import METRICS, Report
from octavo.errors import InvalidRequestError, MissingDependencyError


def plot(path: Path, outcomes: Sequence[Outcome], report: Report, title: str) -> None:
    """Writes a picture; its form follows the name's ending (.png, .svg, .pdf).

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidRequestError: the file cannot be written, or its ending names no form.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError("--plot needs the extra: pip install 'octavo[bench]'") from error
    good = [o for o in outcomes if o.error is None]
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    axes: Any = figure.subplots(2, 3)
    seconds = {
        "ttft": [o.ttft for o in good],
        "tpot": [o.tpot for o in good if o.tpot is not None],
        "itl": [gap for o in good for gap in o.itl],
        "e2el": [o.latency for o in good],
    }
    for axis, (name, values) in zip(axes.flat, seconds.items(), strict=False):
        ms = sorted(x * 1e3 for x in values)
        axis.set(title=METRICS[name], xlabel="ms", ylim=(0, 1.01))
        axis.grid(alpha=0.3)
        if ms:
            axis.step(ms, [(i + 1) / len(ms) for i in range(len(ms))], where="post")
        if name in report.objectives_ms:
            axis.axvline(report.objectives_ms[name], color="tab:red", label="objective")
            axis.legend(loc="lower right")
    axes[0, 0].set_ylabel("share of requests")
    axes[1, 0].set_ylabel("share of requests")
    _timeline(axes[1, 1], good)
    axes[1, 2].scatter([o.start for o in good], [o.ttft * 1e3 for o in good], s=8, alpha=0.6)
    axes[1, 2].set(title="time to first token over the run", xlabel="s after the beginning", ylabel="ms")
    axes[1, 2].grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"--plot {path}: {error}") from error


def _timeline(axis: Any, good: Sequence[Outcome]) -> None:
    """How many requests run at each moment."""
    edges = sorted([(o.start, 1) for o in good] + [(o.start + o.latency, -1) for o in good])
    axis.step([t for t, _ in edges], list(itertools.accumulate(step for _, step in edges)), where="post")
    axis.set(title="requests running", xlabel="s after the beginning")
    axis.grid(alpha=0.3)
