"""`octavo bench latency`: time of one batch in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from octavo._core import build_info
from octavo.bench import Lengths, Spread, random_jobs
from octavo.bench.arms import Arm, measure, parse_counts, with_random_adapters
from octavo.bench.commands.options import command_line, show, tokenizer, write
from octavo.cli.options import EngineOptions, with_model
from octavo.hub import resolve_model
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
    lora_rank: Annotated[int, Option(help="Also with random adapters of this rank on all projections.", min=0)] = 0,
    distinct: Annotated[str, Option(help="How many adapters the rows of a batch use, such as 1,2,4.")] = "1",
    seed: Annotated[int, Option(help="Equal seeds give equal prompts.")] = 0,
    output_json: Annotated[Path | None, Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Time one batch of requests, over and over: the latency of a fixed load without a server."""
    params = SamplingParams(n=n, max_tokens=output_len, temperature=1.0, seed=seed, ignore_eos=True)
    counts = parse_counts("--distinct", distinct, batch_size) if lora_rank else []
    options = with_model(engine, folder)
    more = {"max_loras": max(counts)} if counts else {}
    with options.load(**more) as llm, ExitStack() as stack:
        names = []
        if counts:
            model = resolve_model(options.model, vars(options).get("revision"))
            names = stack.enter_context(with_random_adapters(llm, model, lora_rank, max(counts)))
        # Each batch is new: a repeated batch would hit the prefix cache.
        count = batch_size * (num_iters_warmup + num_iters) * (1 + len(counts))
        jobs = random_jobs(count, Lengths(input_len), Lengths(output_len), seed=seed, tokenize=tokenizer(llm))
        prompts = [j.prompt for j in jobs]
        batches = [prompts[i : i + batch_size] for i in range(0, count, batch_size)]
        arms = measure(llm, batches, names, counts, params, num_iters_warmup, max_seconds)
        name = repr(llm)
    seconds = arms[0].seconds
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
    if counts:
        result |= {"lora_rank": lora_rank, "adapters": [arm.as_dict(arms[0]) for arm in arms[1:]]}
    if output_json is not None:
        write(output_json, result | {"latencies_seconds": seconds})
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return
    facts = [
        ("batch", f"{batch_size} x {input_len} + {output_len} tokens"),
        ("batches", str(len(seconds))),
        ("output tokens/s", f"{result['output_tokens_per_second']:,.0f}"),
        *(fact for arm in arms[1:] for fact in _against(arm, arms[0])),
    ]
    show(name, facts, {"one batch": spread} | {_named(a.distinct): Spread.of(a.seconds) for a in arms[1:]})


def _against(arm: Arm, base: Arm) -> Iterator[tuple[str, str]]:
    for what, ratio in arm.against(base).items():
        yield f"{_named(arm.distinct)}: {what.replace('_', ' ')} against none", f"{ratio:.3f}"


def _named(distinct: int) -> str:
    return f"{distinct} adapter{'s' if distinct > 1 else ''}"
