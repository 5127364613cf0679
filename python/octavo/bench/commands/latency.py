"""`octavo bench latency`: time of one batch in this process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from octavo._core import build_info
from octavo.bench import Lengths, Spread, random_jobs
from octavo.bench.commands.options import command_line, show, tokenizer, write
from octavo.cli.options import EngineOptions, with_model
from octavo.llm import LLM
from octavo.params import SamplingParams


def latency(
    engine: EngineOptions,
    folder: Annotated[str | None, Argument(metavar="[MODEL]", help="As --model.", show_default=False)] = None,
    input_len: Annotated[int, Option(help="Prompt tokens.")] = 32,
    output_len: Annotated[int, Option(help="Output tokens.", min=1)] = 128,
    batch_size: Annotated[int, Option(help="Prompts at once.")] = 8,
    n: Annotated[int, Option("--n", help="Samples of each prompt.")] = 1,
    num_iters_warmup: Annotated[int, Option(help="Batches before the measurement.", min=0, max=1000)] = 3,
    num_iters: Annotated[int, Option(help="Batches measured.", min=1, max=10_000)] = 15,
    max_seconds: Annotated[float, Option(help="No batch begins after that.", min=0)] = 300.0,
    seed: Annotated[int, Option(help="Equal seeds give equal prompts.")] = 0,
    output_json: Annotated[Path | None, Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Time one batch of requests, over and over: the latency of a fixed load without a server."""
    params = SamplingParams(n=n, max_tokens=output_len, temperature=1.0, seed=seed, ignore_eos=True)
    with with_model(engine, folder).load() as llm:
        # Each batch is new: a repeated batch would hit the prefix cache.
        count = batch_size * (num_iters_warmup + num_iters)
        jobs = random_jobs(count, Lengths(input_len), Lengths(output_len), seed=seed, tokenize=tokenizer(llm))
        prompts = [j.prompt for j in jobs]
        batches = [prompts[i : i + batch_size] for i in range(0, count, batch_size)]
        seconds = _time_batches(llm, batches, num_iters_warmup, params, max_seconds)
        name = repr(llm)
    spread = Spread.of(seconds)
    assert spread is not None
    tokens = batch_size * n * output_len
    result = {
        "command": command_line(),
        "model": name,
        "machine": build_info(),
        "input_len": input_len,
        "output_len": output_len,
        "batch_size": batch_size,
        "n": n,
        "iterations": len(seconds),
        "latency_ms": vars(spread),
        "output_tokens_per_second": tokens / (spread.mean / 1e3),
    }
    if output_json is not None:
        write(output_json, result | {"latencies_seconds": seconds})
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return
    facts = [
        ("batch", f"{batch_size} x {input_len} + {output_len} tokens"),
        ("batches", str(len(seconds))),
        ("output tokens/s", f"{result['output_tokens_per_second']:,.0f}"),
    ]
    show(name, facts, {"one batch": spread})


def _time_batches(
    llm: LLM, batches: list[list[Any]], warmups: int, sampling: SamplingParams, max_seconds: float
) -> list[float]:
    """Seconds of each batch after the warm-up; no batch begins after `max_seconds`."""
    seconds: list[float] = []
    deadline = time.perf_counter() + max_seconds
    for i, batch in enumerate(batches):
        if seconds and time.perf_counter() > deadline:
            print(f"octavo: {len(seconds)} of {len(batches) - warmups} batches in {max_seconds:g} s", file=sys.stderr)
            break
        begin = time.perf_counter()
        outputs = llm.generate(batch, sampling, use_tqdm=False)
        taken = time.perf_counter() - begin
        for output in outputs:
            if output.error is not None:
                raise output.error
        if i >= warmups:
            seconds.append(taken)
    return seconds
