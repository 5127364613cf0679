"""`poisson`: latency and throughput of octavo under load, with continuous batching and with static batching.

Arrivals come at a share of the capacity that the engine showed just before, with the same arrivals and requests for
both ways. Each round has its own process, requests and order.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
from typing import Any

from ..result_file import load
from .environments import say
from .measures import SEQUENCES
from .places import HERE, ROOT, Places
from .rounds import write
from .shapes import SHAPES

_SHAPE = "qwen2.5-0.5b"
_KV_TOKENS = SEQUENCES * (256 + 512)
_WAYS = ("continuous", "static")


def poisson(places: Places, arguments: argparse.Namespace) -> None:
    """Measures and adds the outcome to the result file."""
    rounds = [one_round(places, arguments, number) for number in range(arguments.rounds)]
    result = load(arguments.output) if arguments.output.exists() else {}
    result["poisson"] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "shape": _SHAPE,
        "load": arguments.load,
        "requests": arguments.requests,
        "batch": SEQUENCES,
        "rounds": rounds,
        "summary": {way: summary([entry[way] for entry in rounds]) for way in _WAYS},
    }
    write(arguments.output, result)
    for way in _WAYS:
        say(f"{way}: {result['poisson']['summary'][way]}")


def one_round(places: Places, arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """Both ways, in an order that changes from round to round."""
    shape = SHAPES[_SHAPE]
    spec = {
        "model": str(places.loadable(_SHAPE, "octavo")),
        "threads": arguments.threads,
        "vocabulary": shape.vocab_size,
        "requests": arguments.requests,
        "load": arguments.load,
        "batch": SEQUENCES,
        "kv_bytes": _KV_TOKENS * shape.kv_values_per_token * 2,
        "seed": number + 1,
        "order": _WAYS if number % 2 == 0 else _WAYS[::-1],
    }
    runner = HERE / "engines" / "load_octavo.py"
    command = [*arguments.prefix, str(places.python("octavo")), str(runner), json.dumps(spec)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    say(f"round {number}: capacity {answer['capacity_requests_per_second']:.2f} requests/s")
    return answer


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds of throughput and of the percentiles of the times."""
    rates = ("saturated_tokens_per_second", "tokens_per_second")
    figures = {name: statistics.median(run[name] for run in runs) for name in rates}
    for name in ("first_token_seconds", "latency_seconds"):
        for percent in (50, 90, 99):
            values = [statistics.quantiles(run[name], n=100, method="inclusive")[percent - 1] for run in runs]
            figures[f"{name}_p{percent}"] = statistics.median(values)
    return {name: round(value, 4) for name, value in figures.items()}
