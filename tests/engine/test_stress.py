"""Everything at once on a KV cache much too small: prefixes, samples, salts, priorities, cancels, timeouts.

What completes must be what the request gives alone; what is abandoned must leave nothing behind.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from octavo import LLM, SamplingParams
from octavo.errors import QueueFullError, RequestTimeoutError

THREADS = 10
BLOCKS = 12
REQUESTS = 90


@dataclass(frozen=True)
class Job:
    """A request, and after how many pieces its reader walks away (None: it stays)."""

    prompt: list[int]
    params: SamplingParams
    leaves_after: int | None


def jobs_of(seed: int) -> list[Job]:
    draw = random.Random(seed)
    stems = [[draw.randrange(3, 1500) for _ in range(draw.choice((31, 32, 33, 64, 70)))] for _ in range(4)]
    out = []
    for i in range(REQUESTS):
        stem = draw.choice(stems)
        tail = [draw.randrange(3, 1500) for _ in range(draw.randrange(0, 12))]
        params = SamplingParams(
            max_tokens=draw.choice((1, 9, 33, 60, 60)),
            n=draw.choice((1, 1, 1, 2, 3)),
            temperature=draw.choice((0.0, 0.8, 1.2)),
            top_k=draw.choice((None, 30)),
            repetition_penalty=draw.choice((None, 1.3)),
            logprobs=draw.choice((None, 0, 2)),
            prompt_logprobs=draw.choice((None, None, None, 1)),
            ignore_eos=True,
            seed=i,
            priority=draw.randrange(3),
            cache_salt=draw.choice((None, None, "a", "b")),
            timeout=draw.choice((None, None, None, 0.01)),
        )
        out.append(Job(stem[: draw.choice((5, len(stem)))] + tail, params, draw.choice((None, None, None, 0, 1, 5))))
    return out


def run_job(llm: LLM, job: Job) -> Any:
    """The outputs of a job that ran to its end, None for one that was left or timed out."""
    while True:
        try:
            stream = llm.stream(job.prompt, job.params)
            break
        except QueueFullError:
            continue
    samples: dict[int, list[Any]] = {}
    prompt_logprobs = None
    try:
        for count, delta in enumerate(stream):
            if job.leaves_after is not None and count >= job.leaves_after:
                stream.close()  # type: ignore[attr-defined]
                return None
            prompt_logprobs = delta.prompt_logprobs or prompt_logprobs
            for o in delta.outputs:
                seen = samples.setdefault(o.index, ["", [], []])
                seen[0] += o.text
                seen[1] += o.token_ids
                seen[2] += o.logprobs or []
    except RequestTimeoutError:
        return None
    return samples, prompt_logprobs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
def test_crowd(seed: int, prefix_caching: bool, llm: LLM) -> None:
    jobs = jobs_of(seed)
    block_bytes = (
        next(p["bytes"] for p in llm.info()["memory"] if p["name"] == "kv_cache")
        // (llm.info()["limits"]["num_blocks"])
    )
    results: list[Any] = [None] * len(jobs)
    faults: list[BaseException] = []
    with LLM(
        kv_cache_memory=BLOCKS * block_bytes,
        max_model_len=160,
        max_num_seqs=10,
        max_num_batched_tokens=40,
        max_queue=8,
        enable_prefix_caching=prefix_caching,
    ) as small:

        def work(start: int) -> None:
            try:
                for i in range(start, len(jobs), THREADS):
                    results[i] = run_job(small, jobs[i])
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), f"seed {seed}: a request hangs; {small.stats()}"
        assert not faults, f"seed {seed}: {faults}"
        # One more request, so that the engine has taken the last cancels.
        small.generate([5], SamplingParams(max_tokens=1))
        stats = small.stats()
    assert stats["blocks"]["live"] == 0, f"seed {seed}: {stats}"
    assert stats["blocks"]["free"] + stats["blocks"]["cached"] == BLOCKS, f"seed {seed}: {stats}"
    assert stats["preemptions"] > 0, (
        f"seed {seed}: nothing was preempted, the cache is too large for this test: {stats}"
    )
    completed = [i for i, r in enumerate(results) if r is not None]
    assert len(completed) > REQUESTS // 5, f"seed {seed}: only {len(completed)} completed"
    for i in completed:
        alone = Job(jobs[i].prompt, SamplingParams(**{**jobs[i].params.as_dict(), "timeout": None}), None)
        assert results[i] == run_job(llm, alone), f"seed {seed}: request {i} changed: {jobs[i]}"
