"""Measures calls under drift: `PluginHost`, a client with a frozen schema, and one that wants an exact version.

    python -m benches.plugin_drift                  # 10,000 seeds, writes benches/results/plugin_drift.json
    python -m benches.plugin_drift --seeds 500 --out -
    python -m benches.plugin_drift --seed 123       # what happened in one seed

The exit code is 1 if a gate fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from octavo.plugins import validation

from benches.plugin_drift.clients import ExactClient, FrozenClient
from benches.plugin_drift.episode import Episode, run
from benches.plugin_drift.oracle import Verdict
from benches.plugin_drift.ours import HostClient
from benches.plugin_drift.places import Placed, place, place_figures
from benches.plugin_drift.report import failed_gates, failed_place_gates, figures
from benches.plugin_drift.world import make_world

RESULT = Path(__file__).resolve().parents[1] / "results" / "plugin_drift.json"
Three = tuple[Episode, Episode, Episode]


def play(seed: int) -> Three:
    """A seed with each client: ours, frozen, exact."""
    world = make_world(seed)
    return run(world, HostClient), run(world, FrozenClient), run(world, ExactClient)


def trust_schemas() -> None:
    """Leaves out the check of each schema against JSON Schema's own: the simulation's are valid, and it takes most of
    the time. Values are still checked."""
    validation._check = lambda text: None  # type: ignore[assignment]


def play_all(seeds: Iterable[int], workers: int) -> list[Three]:
    if workers == 1:
        trust_schemas()
        return [play(seed) for seed in seeds]
    with ProcessPoolExecutor(workers, initializer=trust_schemas) as pool:
        return list(pool.map(play, seeds, chunksize=100))


def place_all(seeds: Iterable[int], workers: int) -> list[Placed]:
    """The calls of `places`."""
    with ProcessPoolExecutor(workers, initializer=trust_schemas) as pool:
        return list(pool.map(place, seeds, chunksize=100))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="show one seed")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=str(RESULT), help="the file to write; - for none")
    options = parser.parse_args()
    if options.seed is not None:
        print(make_world(options.seed))
        print(*play(options.seed), place(options.seed), sep="\n")
        return 0
    begin = time.perf_counter()
    seeds = range(options.first, options.first + options.seeds)
    played = play_all(seeds, options.workers)
    found = figures([p[0] for p in played], [p[1] for p in played], [p[2] for p in played])
    placed = place_all(seeds, options.workers)
    found["places"] = place_figures(placed)
    failed = failed_gates(found) + failed_place_gates(found["places"])
    print(json.dumps(found, indent=2))
    for episode, *_ in played:
        if not episode.undetectable and {episode.before, episode.met, episode.after} & {Verdict.WRONG, Verdict.UNTYPED}:
            print(f"seed {episode.seed}: {episode}")
    print(*(p for p in placed if p.verdict in (Verdict.WRONG, Verdict.UNTYPED)), sep="\n")
    print(f"{time.perf_counter() - begin:.1f} s, {options.workers} processes")
    if options.out != "-":
        Path(options.out).write_text(json.dumps({**found, "failed_gates": failed}, indent=2) + "\n", encoding="utf-8")
    print("\n".join(failed) or "all gates pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
