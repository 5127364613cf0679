"""`octavo bench throughput`: tokens per second of all requests at once, in this process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer import Argument, Option

from octavo._core import build_info
from octavo.bench import Job, Lengths, Spread, random_jobs, read_jobs
from octavo.bench.commands.options import command_line, show, tokenizer, write
from octavo.cli.options import EngineOptions, with_model
from octavo.llm import LLM
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams


def throughput(
    engine: EngineOptions,
    folder: Annotated[str | None, Argument(metavar="[MODEL]", help="As --model.", show_default=False)] = None,
    num_prompts: Annotated[int, Option(help="Requests.")] = 200,
    dataset_path: Annotated[
        Path | None, Option(help='JSON lines: {"prompt" or "messages", "output_tokens"}.', show_default="random words")
    ] = None,
    input_len: Annotated[int, Option(help="Prompt tokens.")] = 256,
    output_len: Annotated[int | None, Option(help="Output tokens.", show_default="128; with a dataset its own")] = None,
    random_range_ratio: Annotated[float, Option(help="Spread of both lengths around these.")] = 0.0,
    random_prefix_len: Annotated[int, Option(help="Tokens that all prompts begin with.")] = 0,
    n: Annotated[int, Option("--n", help="Samples of each prompt.")] = 1,
    max_seconds: Annotated[float, Option(help="What has not ended by then fails.")] = 600.0,
    seed: Annotated[int, Option(help="Equal seeds give equal prompts.")] = 0,
    output_json: Annotated[Path | None, Option(help="JSON file to write.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Run many requests as one batch: the most that the engine brings, without a server."""
    with with_model(engine, folder).load() as llm:
        if dataset_path is not None:
            jobs = read_jobs(dataset_path, num_prompts, output_len, seed=seed)
        else:
            inputs, outputs = Lengths(input_len, random_range_ratio), Lengths(output_len or 128, random_range_ratio)
            jobs = random_jobs(
                num_prompts, inputs, outputs, prefix_tokens=random_prefix_len, seed=seed, tokenize=tokenizer(llm)
            )
        sampling = [
            SamplingParams(
                n=n,
                max_tokens=job.output_tokens or 256,
                temperature=1.0,
                seed=seed + i,
                ignore_eos=dataset_path is None,
                timeout=max_seconds,
            )
            for i, job in enumerate(jobs)
        ]
        results, seconds, cached = _timed(llm, [_prompt(llm, job) for job in jobs], sampling)
        name = repr(llm)
    result = _result(name, results, seconds, cached)
    if output_json is not None:
        write(output_json, result)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _show(result, results)
    if failed := [r for r in results if r.error is not None or r.metrics is None]:
        faults = {str(r.error) for r in results if r.error is not None}
        print(f"octavo: {len(failed)} requests failed: {'; '.join(sorted(faults)[:3])}", file=sys.stderr)
        raise typer.Exit(1)


def _timed(
    llm: LLM, prompts: list[str | list[int]], sampling: list[SamplingParams]
) -> tuple[list[RequestOutput], float, int]:
    """Outputs, seconds, and prompt tokens from the prefix cache."""
    llm.generate(prompts[0], SamplingParams(max_tokens=4), use_tqdm=False)
    before = llm.stats()["cached_prompt_tokens"]
    begin = time.perf_counter()
    results = llm.generate(prompts, sampling, use_tqdm=sys.stderr.isatty())
    seconds = time.perf_counter() - begin
    return results, seconds, llm.stats()["cached_prompt_tokens"] - before


def _result(name: str, results: list[RequestOutput], seconds: float, cached: int) -> dict[str, Any]:
    good = [r for r in results if r.error is None and r.metrics is not None]
    prompt_tokens = sum(len(r.prompt_token_ids) for r in good)
    output_tokens = sum(len(o.token_ids) for r in good for o in r.outputs)
    return {
        "command": command_line(),
        "model": name,
        "machine": build_info(),
        "requests": len(results),
        "completed": len(good),
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "cached_prompt_tokens": cached,
        "output_tokens": output_tokens,
        "requests_per_second": len(good) / seconds,
        "output_tokens_per_second": output_tokens / seconds,
        "total_tokens_per_second": (prompt_tokens + output_tokens) / seconds,
    }


def _show(result: dict[str, Any], results: list[RequestOutput]) -> None:
    facts = [
        ("requests", f"{result['completed']:,} of {result['requests']:,}"),
        ("duration", f"{result['seconds']:.2f} s"),
        ("prompt tokens, output tokens", f"{result['prompt_tokens']:,}, {result['output_tokens']:,}"),
        ("prompt tokens from the prefix cache", f"{result['cached_prompt_tokens']:,}"),
        ("requests/s", f"{result['requests_per_second']:.2f}"),
        ("output tokens/s", f"{result['output_tokens_per_second']:,.0f}"),
        ("all tokens/s", f"{result['total_tokens_per_second']:,.0f}"),
    ]
    times = [r.metrics.total_seconds for r in results if r.error is None and r.metrics is not None]
    show(result["model"], facts, {"end to end": Spread.of(times)})


def _prompt(llm: LLM, job: Job) -> str | list[int]:
    if isinstance(job.prompt, list) and job.prompt and isinstance(job.prompt[0], dict):
        # The template writes the special tokens itself.
        return llm.tokenize(llm.render_chat(job.prompt), add_special_tokens=False)
    return cast("str | list[int]", job.prompt)
