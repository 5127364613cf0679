"""`octavo generate`: one prompt, a file of prompts, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo import LLM, SamplingParams
from octavo.cli import options
from octavo.errors import InvalidRequestError
from octavo.outputs import RequestMetrics, RequestOutput


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - or nothing: standard input.")] = None,
    model: options.Model = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")] = False,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help='JSONL: each line a string, {"prompt": ...} or {"messages": [...]}; all run as one batch.'),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL results here.")] = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = "auto",
    kv_cache_memory: options.KvCacheMemory = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    json_output: options.Json = False,
) -> None:
    """Continue a prompt, or complete a file of prompts in one batch."""
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or None,
    )
    if prompts_file is not None and prompt is not None:
        raise InvalidRequestError("give a prompt or --prompts-file, not both")
    # Read before the model loads: a fault in the input should not cost that time.
    jobs = list(read_prompts(prompts_file)) if prompts_file else [_single(prompt, chat)]
    with LLM(
        model,
        dtype=dtype,
        quantization=None if quantization == "none" else quantization,
        kv_cache_memory=options.kv_cache_memory(kv_cache_memory),
        max_model_len=max_model_len,
        threads=threads,
    ) as llm:
        if prompts_file or json_output or output:
            _batch(llm, jobs, params, output)
        else:
            _stream(llm, jobs[0], params)


def _single(prompt: str | None, chat: bool) -> str | list[Any]:
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise InvalidRequestError('nothing to continue: octavo generate "Once upon a time", or pipe a text in')
        prompt = sys.stdin.read()
        if prompt.endswith("\n"):
            prompt = prompt[:-1]
    return [{"role": "user", "content": prompt}] if chat else prompt


def read_prompts(path: Path) -> Iterator[str | list[Any]]:
    """The prompts of a JSONL file: texts, or lists of messages.

    Raises:
        InvalidRequestError: names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"{path}, line {number}: not JSON: {error}") from error
        if isinstance(item, dict):
            item = item.get("messages", item.get("prompt"))
        if not isinstance(item, (str, list)) or not item:
            raise InvalidRequestError(
                f'{path}, line {number}: a string, {{"prompt": "..."}} or {{"messages": [...]}} is expected'
            )
        yield item


def _batch(llm: LLM, jobs: list[str | list[Any]], params: SamplingParams, path: Path | None) -> None:
    # Chats become prompts here, so that all run in one batch; their template has written the special tokens.
    prompts = [
        job if isinstance(job, str) else llm.tokenize(llm.render_chat(job), add_special_tokens=False) for job in jobs
    ]
    results = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
    lines = "".join(json.dumps(_record(r), ensure_ascii=False) + "\n" for r in results)
    if path is None:
        sys.stdout.write(lines)
    else:
        path.write_text(lines, encoding="utf-8")


def _record(result: RequestOutput) -> dict[str, Any]:
    first = result.outputs[0] if result.outputs else None
    return {
        "prompt": result.prompt,
        "text": result.text,
        "token_ids": first.token_ids if first else [],
        "finish_reason": first.finish_reason if first else "error",
        "error": str(result.error) if result.error else None,
        "metrics": asdict(result.metrics) if result.metrics else None,
    }


def _stream(llm: LLM, job: str | list[Any], params: SamplingParams) -> None:
    on_terminal = sys.stdout.isatty()
    if isinstance(job, str):
        deltas = llm.stream(job, params)
        if on_terminal:
            # The prompt, dimmed, so that the text reads on from it.
            sys.stdout.write(f"\033[2m{job}\033[0m")
    else:
        deltas = llm.stream_chat(job, params)
    metrics = show(deltas)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if on_terminal and metrics is not None:
        print(f"\033[2m{summary(metrics)}\033[0m", file=sys.stderr)


def show(deltas: Iterator[RequestOutput]) -> RequestMetrics | None:
    """Writes a stream's text to standard output as it comes; returns its metrics."""
    metrics = None
    for delta in deltas:
        sys.stdout.write(delta.text)
        sys.stdout.flush()
        metrics = delta.metrics or metrics
    return metrics


def summary(metrics: RequestMetrics) -> str:
    """One line about a request's speed."""
    speed = f", {1 / metrics.tpot_seconds:.0f} tokens/s" if metrics.tpot_seconds > 0 else ""
    return f"[{metrics.generated_tokens} tokens{speed}, first after {1000 * metrics.ttft_seconds:.1f} ms]"
