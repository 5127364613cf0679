"""octavo under a Poisson load: continuous batching, and static batching of the same engine. Prints one JSON object.

Static batching collects what waits, up to `batch` requests, runs it to the end of its longest, and only then looks at
the queue again. It is treated kindly: a request counts as done when its own last token comes, and nothing is computed
for sequences that have ended.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

from protocol import random_lengths, random_prompts


@dataclass
class Job:
    """A request, when it arrives (seconds after the start), and what became of it."""

    prompt: list[int]
    new: int
    arrival: float = 0.0
    first: float = 0.0
    done: float = 0.0


def jobs_of(spec: dict[str, Any]) -> list[Job]:
    """The requests of a run, from its seed."""
    draw = random.Random(spec["seed"])
    jobs = []
    for number in range(spec["requests"]):
        length, new = random_lengths(draw)
        prompt = random_prompts(1, length, spec["vocabulary"], spec["seed"] * 100_003 + number)[0]
        jobs.append(Job(prompt, new))
    return jobs


class Load:
    """Runs jobs on one LLM, with a clock that starts at 0 for each run."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from octavo import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            spec["model"],
            threads=spec["threads"],
            max_model_len=1024,
            max_num_seqs=spec["batch"],
            kv_cache_memory=spec["kv_bytes"],
            # What one way of batching has computed must not help the other.
            enable_prefix_caching=False,
        )
        self._batch = spec["batch"]
        self._begin = 0.0

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    async def _complete(self, job: Job) -> None:
        params = self._params(max_tokens=job.new, temperature=0, ignore_eos=True)
        start = self._now()
        output = await self._llm.agenerate(job.prompt, params)
        job.first, job.done = start + output.metrics.ttft_seconds, start + output.metrics.total_seconds

    async def continuous(self, jobs: list[Job]) -> None:
        """Every request goes to the engine when it arrives."""
        self._begin = time.perf_counter()

        async def arrive(job: Job) -> None:
            await asyncio.sleep(job.arrival - self._now())
            await self._complete(job)

        await asyncio.gather(*map(arrive, jobs))

    async def static(self, jobs: list[Job]) -> None:
        """One batch after another."""
        self._begin = time.perf_counter()
        todo = sorted(jobs, key=lambda job: job.arrival)
        while todo:
            await asyncio.sleep(todo[0].arrival - self._now())
            now = self._now()
            batch = [job for job in todo[: self._batch] if job.arrival <= now]
            del todo[: len(batch)]
            await asyncio.gather(*map(self._complete, batch))


def capacity(jobs: list[Job]) -> float:
    """Requests a second of the engine when it never lacks work: while some of the jobs, all there at 0, still wait."""
    end = max(job.first for job in jobs)
    made = sum(min(1.0, (end - job.first) / max(job.done - job.first, 1e-9)) * job.new for job in jobs)
    return made / end / (sum(job.new for job in jobs) / len(jobs))


def outcome(jobs: list[Job]) -> dict[str, Any]:
    """Times of a run, from the arrival of each request."""
    span = max(job.done for job in jobs) - min(job.arrival for job in jobs)
    return {
        "tokens_per_second": sum(job.new for job in jobs) / span,
        "first_token_seconds": [round(job.first - job.arrival, 4) for job in jobs],
        "latency_seconds": [round(job.done - job.arrival, 4) for job in jobs],
    }


def main() -> None:
    spec = json.loads(sys.argv[1])
    load = Load(spec)
    jobs = jobs_of(spec)
    asyncio.run(load.continuous([Job(job.prompt, 8) for job in jobs[:8]]))
    asyncio.run(load.continuous(jobs))
    rate = capacity(jobs)
    mean = sum(job.new for job in jobs) / len(jobs)
    saturated = {"continuous": rate * mean}
    asyncio.run(load.static(jobs))
    saturated["static"] = outcome(jobs)["tokens_per_second"]
    draw = random.Random(spec["seed"] + 1)
    clock = 0.0
    arrivals = []
    for _ in jobs:
        clock += draw.expovariate(spec["load"] * rate)
        arrivals.append(clock)
    result: dict[str, Any] = {"capacity_requests_per_second": rate, "requests_per_second": spec["load"] * rate}
    for name in spec["order"]:
        run = [Job(job.prompt, job.new, arrival) for job, arrival in zip(jobs, arrivals, strict=True)]
        asyncio.run(getattr(load, name)(run))
        result[name] = {"saturated_tokens_per_second": saturated[name], **outcome(run)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
