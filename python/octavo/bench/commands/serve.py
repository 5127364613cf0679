"""`octavo bench serve`: load on any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer import Argument, Option

from octavo._core import build_info
from octavo.bench import Job, Lengths, Load, Outcome, Report, Target, random_jobs, read_jobs, run_load, summarise
from octavo.bench.client import Kind
from octavo.bench.commands.options import as_headers, as_object, command_line, show, write
from octavo.bench.own_server import own_server
from octavo.bench.plot import plot as draw
from octavo.bench.report import METRICS, parse_goodput
from octavo.errors import InvalidRequestError


def serve(
    folder: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Model to serve, where no --base-url is given.")
    ] = None,
    base_url: Annotated[
        str | None, Option(help="Server to measure.", show_default="a server started for the run")
    ] = None,
    backend: Annotated[str, Option(help="openai (completions) or openai-chat.")] = "openai",
    endpoint: Annotated[str | None, Option(help="Path of the endpoint.", show_default="the backend's")] = None,
    model: Annotated[
        str | None, Option("--model", "-m", help="Name of the model for the server.", show_default="the first it lists")
    ] = None,
    api_key: Annotated[str | None, Option(help="Key for the server.", envvar="OCTAVO_API_KEY")] = None,
    header: Annotated[list[str] | None, Option(help="Further header NAME=VALUE; may be repeated.")] = None,
    extra_body: Annotated[str | None, Option(help="JSON object of further fields of each request.")] = None,
    num_prompts: Annotated[int, Option(help="Requests to send.")] = 200,
    request_rate: Annotated[float, Option(help="Mean arrivals per second; inf: all at once.")] = math.inf,
    burstiness: Annotated[float, Option(help="1: Poisson; less: bursts; more: regular.")] = 1.0,
    max_concurrency: Annotated[int | None, Option(help="Requests that run at once.", show_default="any number")] = None,
    max_seconds: Annotated[float, Option(help="What has not ended by then is cut off.")] = 600.0,
    num_warmups: Annotated[int, Option(help="Requests before the measurement.", min=0, max=1000)] = 1,
    dataset_name: Annotated[str, Option(help="random or custom.")] = "random",
    dataset_path: Annotated[
        Path | None, Option(help='JSON lines: {"prompt" or "messages", "output_tokens"}; implies custom.')
    ] = None,
    custom_output_len: Annotated[
        int | None, Option(help="Output tokens for lines that name none.", show_default="the model's end")
    ] = None,
    disable_shuffle: Annotated[bool, Option("--disable-shuffle", help="Keep the order of the file.")] = False,
    random_input_len: Annotated[int, Option(help="Prompt tokens.")] = 256,
    random_output_len: Annotated[int, Option(help="Output tokens.")] = 128,
    random_range_ratio: Annotated[float, Option(help="Spread of both lengths around these.")] = 0.0,
    random_distribution: Annotated[str, Option(help="Of lengths: uniform or lognormal.")] = "uniform",
    random_prefix_len: Annotated[int, Option(help="Tokens that all prompts begin with.")] = 0,
    ignore_eos: Annotated[
        bool | None,
        Option("--ignore-eos/--no-ignore-eos", help="Outputs have their full length.", show_default="with random"),
    ] = None,
    temperature: Annotated[float | None, Option(help="0 is greedy.", show_default="the server's")] = None,
    top_p: Annotated[float | None, Option(show_default="the server's")] = None,
    top_k: Annotated[int | None, Option(show_default="the server's")] = None,
    goodput: Annotated[
        list[str] | None,
        Option(help="Objectives in ms, such as 'ttft:200 tpot:50' (also e2el); may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int, Option(help="Equal seeds give equal prompts and arrivals.")] = 0,
    plot: Annotated[Path | None, Option(help="Picture to write (.png, .svg); needs octavo[bench].")] = None,
    result_filename: Annotated[Path | None, Option(help="JSON file to write.")] = None,
    save_detailed: Annotated[bool, Option("--save-detailed", help="Each request in that file.")] = False,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Put load on an OpenAI-compatible server and measure times to tokens, throughput and goodput."""
    if folder is not None and base_url is not None:
        raise InvalidRequestError("MODEL is for a server started here: with --base-url name it with --model")
    if dataset_name not in ("random", "custom"):
        raise InvalidRequestError(f"--dataset-name is {dataset_name!r}: random or custom is expected")
    if dataset_name == "custom" and dataset_path is None:
        raise InvalidRequestError("--dataset-name custom needs --dataset-path")
    objectives = parse_goodput(goodput or ())
    load = Load(request_rate, burstiness, max_concurrency, max_seconds, seed)
    fields = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    fields["ignore_eos"] = (dataset_path is None) if ignore_eos is None else ignore_eos
    # A server may reject unknown fields: only given fields are sent.
    extra = {k: v for k, v in fields.items() if v is not None and v is not False} | as_object(
        "--extra-body", extra_body
    )
    headers = as_headers(header or ())
    jobs: list[Job] | None = None
    kind: Any = random_distribution
    lengths = Lengths(random_input_len, random_range_ratio, kind), Lengths(random_output_len, random_range_ratio, kind)
    if dataset_path is not None:
        jobs = read_jobs(dataset_path, num_prompts, custom_output_len, seed=seed, shuffle=not disable_shuffle)

    async def run(url: str, key: str | None) -> tuple[list[Outcome], Report, str]:
        target = Target(
            url, cast(Kind, backend), model=model, api_key=key, headers=headers, endpoint=endpoint, fields=extra
        )
        try:
            name = await target.find_model()
            work = jobs or await _random(target, num_prompts, lengths, random_prefix_len, seed)
            if num_warmups:
                warm = Load(max_concurrency=max_concurrency, max_seconds=max_seconds)
                await run_load(target, [work[i % len(work)] for i in range(num_warmups)], warm)
            with _progress(len(work)) as bar:
                outcomes, seconds = await run_load(target, work, load, tick=bar.update)
            return outcomes, summarise(outcomes, seconds, objectives), name
        finally:
            await target.close()

    if base_url is not None:
        outcomes, report, name = asyncio.run(run(base_url, api_key))
    else:
        with own_server([folder] if folder else []) as url:
            outcomes, report, name = asyncio.run(run(url, None))
    result = {
        "command": command_line(),
        "model": name,
        "backend": backend,
        "machine": build_info(),
        "request_rate": None if math.isinf(request_rate) else request_rate,
        "burstiness": burstiness,
        "max_concurrency": max_concurrency,
        "seed": seed,
        **report.as_dict(),
    }
    if result_filename is not None:
        detail = {"outcomes": [vars(o) for o in outcomes]} if save_detailed else {}
        write(result_filename, result | detail)
    if plot is not None:
        draw(plot, outcomes, report, f"{name}: {_load_text(load)}")
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _show(name, load, report)
    _complain(report)
    if report.completed < report.requests:
        raise typer.Exit(1)


async def _random(target: Target, count: int, lengths: tuple[Lengths, Lengths], prefix: int, seed: int) -> list[Job]:
    """Prompts of exact lengths when the server can tokenise, else of approximate lengths."""
    pool = await target.tokenize(" ".join(str(j.prompt) for j in random_jobs(1, Lengths(64), Lengths(1), seed=seed)))
    if pool is None:
        return random_jobs(count, *lengths, prefix_tokens=prefix, seed=seed)
    texts: dict[str, list[int]] = {}
    # The same draws twice: first to collect the texts, then with their tokens.
    random_jobs(count, *lengths, prefix_tokens=prefix, seed=seed, tokenize=lambda text: texts.setdefault(text, []))
    limit = asyncio.Semaphore(8)

    async def one(text: str) -> None:
        async with limit:
            texts[text] = await target.tokenize(text) or []

    await asyncio.gather(*(one(text) for text in texts))
    jobs = random_jobs(count, *lengths, prefix_tokens=prefix, seed=seed, tokenize=texts.__getitem__)
    if target.kind == "openai":
        return jobs
    return [Job(await target.detokenize(cast("list[int]", j.prompt)), j.output_tokens) for j in jobs]


def _progress(count: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=count, unit="request", disable=not sys.stderr.isatty(), leave=False)


def _load_text(load: Load) -> str:
    rate = "all at once" if math.isinf(load.request_rate) else f"{load.request_rate:g} requests/s"
    if load.max_concurrency is None:
        return rate
    return f"{load.max_concurrency} at once" + ("" if math.isinf(load.request_rate) else f", {rate}")


def _show(name: str, load: Load, report: Report) -> None:
    failed = report.requests - report.completed
    facts = [
        ("requests", f"{report.completed:,}" + (f" ({failed:,} failed)" if failed else "")),
        ("duration", f"{report.seconds:.2f} s"),
        ("prompt tokens, output tokens", f"{report.prompt_tokens:,}, {report.output_tokens:,}"),
        ("requests/s", f"{report.requests_per_second:.2f}"),
        ("output tokens/s", f"{report.output_tokens_per_second:,.0f}"),
        ("all tokens/s", f"{report.total_tokens_per_second:,.0f}"),
    ]
    if report.goodput is not None:
        bounds = " ".join(f"{n}:{x:g}" for n, x in report.objectives_ms.items())
        facts.append((f"goodput, requests/s ({bounds})", f"{report.goodput:.2f}"))
    spreads = {METRICS[n]: getattr(report, n) for n in METRICS}
    if math.isfinite(load.request_rate):
        # A closed loop has no arrivals that a request could wait after.
        spreads["sent after arrival"] = report.delay
    show(f"{name}, {_load_text(load)}", facts, spreads)


def _complain(report: Report) -> None:
    for message, count in report.errors.items():
        print(f"octavo: {count} x {' '.join(str(message).split())}", file=sys.stderr)
