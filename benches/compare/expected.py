"""What static and continuous batching would reach if steps took what the comparison measured, and nothing else time.

    python -m benches.compare.expected [benches/results/compare.json]

The time of a step of n sequences lies on a line between those of 1, 8 and 32 sequences, prompts take a token what
a prefill of 512 tokens takes, and all requests wait from the start. The requests are drawn as `poisson` draws them.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

from ..result_file import load
from .engines.protocol import random_lengths
from .measures import SEQUENCES

_SHAPE = "qwen2.5-0.5b"
_REQUESTS = 96
_DRAWS = 20


def step_seconds(rates: dict[int, float], sequences: int) -> float:
    """The time of a step of so many sequences, from tokens/s at some numbers of them."""
    for (few, few_rate), (many, many_rate) in pairwise(sorted(rates.items())):
        if few <= sequences <= many:
            start, end = few / few_rate, many / many_rate
            return start + (end - start) * (sequences - few) / (many - few)
    raise ValueError(f"{sequences} sequences are outside of what was measured: {sorted(rates)}")


def seconds(rates: dict[int, float], batches: list[list[int]]) -> float:
    """The time of batches of requests, given the tokens that each makes; places are filled from a batch's own rest."""
    total = 0.0
    for batch in batches:
        running, waiting = batch[:SEQUENCES], batch[SEQUENCES:]
        while running:
            total += step_seconds(rates, len(running))
            running = [left - 1 for left in running if left > 1]
            while waiting and len(running) < SEQUENCES:
                running.append(waiting.pop(0))
    return total


def expected(rates: dict[int, float], prefill: float) -> tuple[float, float]:
    """Tokens/s of continuous and of static batching."""
    made = continuous = static = 0.0
    for seed in range(_DRAWS):
        draw = random.Random(seed)
        jobs = [random_lengths(draw) for _ in range(_REQUESTS)]
        prompts = sum(prompt for prompt, _ in jobs) / prefill
        new = [new for _, new in jobs]
        made += sum(new)
        continuous += prompts + seconds(rates, [new])
        static += prompts + seconds(rates, [new[i : i + SEQUENCES] for i in range(0, len(new), SEQUENCES)])
    return made / continuous, made / static


def main() -> None:
    """Prints both, and their ratio."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "benches/results/compare.json")
    best = load(path)["summary"][_SHAPE]["engines"]["octavo"]["best"]
    rates = {n: best[name]["median"] for n, name in ((1, "decode_128"), (8, "batch_8"), (32, "batch_32"))}
    continuous, static = expected(rates, best["prefill_512"]["median"])
    print(f"continuous {continuous:.0f}, static {static:.0f} tokens/s: {continuous / static:.2f}x")


if __name__ == "__main__":
    main()
