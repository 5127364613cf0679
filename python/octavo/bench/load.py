"""Load: when requests start, and the run of all of them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from octavo.bench.client import Target, Trace
from octavo.bench.workload import Job
from octavo.errors import InvalidRequestError


@dataclass(frozen=True)
class Load:
    """How requests arrive.

    Attributes:
        request_rate: mean arrivals per second; infinite: all at once.
        burstiness: shape of the gamma distribution of the gaps. 1: a Poisson process; less: bursts; more: regular.
        max_concurrency: requests that run at once; a closed loop with an infinite rate.
        max_seconds: what has not ended by then is cut off.
        seed: equal seeds give equal arrivals.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    max_seconds: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.request_rate > 0:
            raise InvalidRequestError(f"--request-rate is {self.request_rate}: a number above 0, or inf, is expected")
        if not (math.isfinite(self.burstiness) and self.burstiness > 0):
            raise InvalidRequestError(f"--burstiness is {self.burstiness}: a number above 0 is expected")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise InvalidRequestError(f"--max-concurrency is {self.max_concurrency}: at least 1 is expected")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise InvalidRequestError(f"--max-seconds is {self.max_seconds}: a number above 0 is expected")

    def starts(self, count: int) -> Iterator[float]:
        """Seconds from the beginning at which requests arrive."""
        rng = random.Random(self.seed)
        at = 0.0
        for i in range(count):
            if i and math.isfinite(self.request_rate):
                at += rng.gammavariate(self.burstiness, 1 / (self.request_rate * self.burstiness))
            yield at


@dataclass(frozen=True)
class Outcome:
    """What became of a request; times in seconds.

    Attributes:
        start: when it was sent, after the beginning.
        delay: how much later than it arrived: it waited for its turn, or for this client.
        ttft: time to the first text. itl: times between pieces of text. latency: to the end.
        error: None for a complete answer.
    """

    start: float
    delay: float
    ttft: float
    itl: list[float]
    latency: float
    prompt_tokens: int
    output_tokens: int
    error: str | None

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; None for a single one."""
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


async def run_load(
    target: Target, jobs: list[Job], load: Load, *, tick: Callable[[], object] = lambda: None
) -> tuple[list[Outcome], float]:
    """Sends all jobs; outcomes in their order, and the seconds from the first start to the last end.

    Args:
        tick: called after each request.
    """
    bodies = [target.body(job) for job in jobs]
    turn = asyncio.Semaphore(load.max_concurrency or len(jobs))
    begin = time.perf_counter()

    async def one(at: float, body: bytes) -> Outcome:
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        async with turn:
            trace = await target.send(body)
        tick()
        return _outcome(trace, begin, at)

    tasks = [asyncio.create_task(one(at, body)) for at, body in zip(load.starts(len(jobs)), bodies, strict=True)]
    try:
        await asyncio.wait(tasks, timeout=load.max_seconds)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    cut = f"not ended within {load.max_seconds:g} s"
    outcomes = []
    for result in results:
        if isinstance(result, Outcome):
            outcomes.append(result)
        elif isinstance(result, asyncio.CancelledError):
            outcomes.append(Outcome(0.0, 0.0, 0.0, [], 0.0, 0, 0, cut))
        else:
            raise result
    ends = [o.start + o.latency for o in outcomes if o.latency]
    starts = [o.start for o in outcomes if o.latency]
    return outcomes, (max(ends) - min(starts) if ends else time.perf_counter() - begin)


def _outcome(trace: Trace, begin: float, at: float) -> Outcome:
    gaps = [b - a for a, b in zip(trace.pieces, trace.pieces[1:], strict=False)]
    error = trace.error or (None if trace.pieces else "the answer is empty")
    return Outcome(
        start=trace.begin - begin,
        delay=max(0.0, trace.begin - begin - at),
        ttft=trace.pieces[0] - trace.begin if trace.pieces else 0.0,
        itl=gaps,
        latency=trace.end - trace.begin,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        error=error,
    )
