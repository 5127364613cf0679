"""One batch with no adapter and with several numbers of adapters, interleaved: each round measures every arm once."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from octavo.bench.random_adapters import write_random_adapters
from octavo.bench.report import Spread
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.params import SamplingParams

__all__ = ["Arm", "measure", "parse_counts", "with_random_adapters"]


@dataclass
class Arm:
    """Times of one batch.

    Attributes:
        distinct: how many adapters its rows use; 0: none.
        seconds: of each batch.
        first: of each batch, until every request had its first token.
        cpu: processor time of each batch, of all threads. Other programs disturb it less, above all with one thread.
    """

    distinct: int
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def decode(self) -> list[float]:
        """Of each batch, the time after the first tokens."""
        return [whole - first for whole, first in zip(self.seconds, self.first, strict=True)]

    def against(self, base: Arm) -> dict[str, float]:
        """Medians of the ratios of batches of one round. Batches that end with their first tokens have no decode."""

        def ratio(mine: list[float], others: list[float]) -> float:
            return statistics.median(m / o for m, o in zip(mine, others, strict=True))

        found = {"batch": ratio(self.seconds, base.seconds), "first_token": ratio(self.first, base.first)}
        if min(base.decode) > 0.02 * min(base.seconds):
            found["decode"] = ratio(self.decode, base.decode)
        if self.cpu:
            found["cpu"] = ratio(self.cpu, base.cpu)
        return found

    def as_dict(self, base: Arm) -> dict[str, Any]:
        """For JSON."""
        whole = Spread.of(self.seconds)
        assert whole is not None
        return {
            "distinct": self.distinct,
            "latency_ms": vars(whole),
            "first_token_ms": 1e3 * statistics.median(self.first),
            "decode_ms": 1e3 * statistics.median(self.decode),
            "against_none": self.against(base),
        }


def parse_counts(option: str, text: str, rows: int) -> list[int]:
    """Numbers of adapters, separated by commas, each at most `rows`."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError(f"{option} is {text!r}: numbers separated by commas are expected") from error
    if bad := [c for c in counts if not 1 <= c <= rows]:
        raise InvalidRequestError(f"{option} names {bad[0]}, and a batch has {rows} rows: 1 to {rows} are possible")
    return sorted(set(counts))


@contextmanager
def with_random_adapters(llm: LLM, model: Path, rank: int, count: int) -> Iterator[list[str]]:
    """Loads random adapters for a while; yields their names."""
    with tempfile.TemporaryDirectory(prefix="octavo-adapters-") as folder:
        names = []
        for made in write_random_adapters(model, Path(folder), rank, count):
            llm.load_adapter(made.name, made)
            names.append(made.name)
        try:
            yield names
        finally:
            for name in names:
                llm.unload_adapter(name)


def measure(
    llm: LLM,
    batches: Sequence[Sequence[Any]],
    names: Sequence[str],
    counts: Sequence[int],
    sampling: SamplingParams,
    warmups: int,
    max_seconds: float,
) -> list[Arm]:
    """Runs the batches in rounds of one for each arm; the first has no adapter. Each round begins at another arm."""
    arms = [Arm(0), *map(Arm, counts)]
    deadline = time.perf_counter() + max_seconds
    rounds = len(batches) // len(arms)
    for i in range(rounds):
        done = len(arms[0].seconds)
        if done and time.perf_counter() > deadline:
            print(f"octavo: {done} of {rounds - warmups} rounds in {max_seconds:g} s", file=sys.stderr)
            break
        for j in range(len(arms)):
            arm = arms[(i + j) % len(arms)]
            before = time.process_time()
            whole, first = _run(llm, batches[i * len(arms) + j], names[: arm.distinct], sampling)
            if i >= warmups:
                arm.seconds.append(whole)
                arm.first.append(first)
                arm.cpu.append(time.process_time() - before)
    return arms


def _run(llm: LLM, batch: Sequence[Any], names: Sequence[str], sampling: SamplingParams) -> tuple[float, float]:
    """Seconds of a batch, and until the last of its requests had a token."""
    params = [replace(sampling, lora=names[i % len(names)] if names else None) for i in range(len(batch))]
    begin = time.perf_counter()
    outputs = llm.generate(list(batch), params, use_tqdm=False)
    taken = time.perf_counter() - begin
    for output in outputs:
        if output.error is not None:
            raise output.error
    return taken, max(o.metrics.ttft_seconds for o in outputs if o.metrics is not None)
