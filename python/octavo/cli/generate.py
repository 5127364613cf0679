"""`octavo generate`: completes one prompt, or every line of a file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer import Argument, Option

from octavo.cli.attached import AttachedOptions
from octavo.cli.options import EngineOptions, SamplingOptions
from octavo.errors import InvalidRequestError
from octavo.llm import LLM
from octavo.outputs import RequestMetrics, RequestOutput
from octavo.params import SamplingParams

Conversation = list[dict[str, Any]]


def generate(
    engine: EngineOptions,
    sampling: SamplingOptions,
    attached: AttachedOptions,
    prompt: Annotated[
        str | None,
        Argument(help="The prompt; '-' (or no prompt, with a pipe): read standard input.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        str | None,
        Option(
            help='File of JSON lines: "text", {"prompt": "text"} or {"messages": [...]}; \'-\': standard input. '
            "Writes a JSON line per prompt, in the same order.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="File to write.", show_default="standard output")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Apply the model's chat template to the prompts.")] = False,
    samples: Annotated[int, Option(help="Number of outputs per prompt.")] = 1,
    logprobs: Annotated[
        int | None, Option(help="Number of candidates per token, with --json.", show_default=False)
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Complete a prompt as a stream, or a file of prompts as a batch."""
    if prompt is not None and prompts_file is not None:
        raise InvalidRequestError("PROMPT and --prompts-file exclude each other: give one")
    params = sampling.params(n=samples, logprobs=logprobs)
    if prompts_file is not None:
        rows = list(_read_rows(prompts_file))
    elif prompt is None and sys.stdin.isatty():
        raise InvalidRequestError("a prompt is missing: give it as an argument, by a pipe, or with --prompts-file")
    else:
        # The last newline of a pipe is not part of the prompt.
        rows = [sys.stdin.read().removesuffix("\n") if prompt in (None, "-") else str(prompt)]
    if chat:
        rows = [[{"role": "user", "content": r}] if isinstance(r, str) else r for r in rows]
    with _open(output) as sink, engine.load() as llm:
        params = attached.attach(llm, params)
        if prompts_file is None and not as_json and samples == 1:
            _empty(sink)
            _stream(llm, rows[0], params, sink)
            return
        outputs = _run(llm, rows, params)
        _empty(sink)
        if prompts_file is None and not as_json:
            for sample in outputs[0].outputs:
                print(f"[{sample.index}] {sample.text}", file=sink)
            return
        for row, result in zip(rows, outputs, strict=True):
            print(json.dumps(_as_json(row, result), ensure_ascii=False), file=sink)
    if any(o.error is not None for o in outputs):
        raise typer.Exit(1)


def _read_rows(name: str) -> Iterator[str | Conversation]:
    """The prompts of a JSON-lines file: texts, or lists of messages. Empty lines are skipped."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--prompts-file {name}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidRequestError(f"{name}, line {number}: not JSON: {error}") from error
        prompt = row.get("prompt") if isinstance(row, dict) else row
        messages = row.get("messages") if isinstance(row, dict) else None
        if isinstance(prompt, str):
            yield prompt
        elif isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
            yield messages
        else:
            raise InvalidRequestError(
                f'{name}, line {number}: a JSON text, {{"prompt": "text"}} or {{"messages": [...]}} is expected'
            )


def _empty(sink: TextIO) -> None:
    """Removes the old content of the output file before the first write."""
    if sink is not sys.stdout:
        sink.truncate(0)


@contextlib.contextmanager
def _open(output: Path | None) -> Iterator[TextIO]:
    """The output file with its old content, or standard output, which is not closed."""
    if output is None:
        yield sys.stdout
        return
    try:
        file = output.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"--output {output}: {error.strerror}") from error
    with file:
        yield file


def _stream(llm: LLM, row: str | Conversation, params: SamplingParams, sink: TextIO) -> None:
    """Writes text while it is generated; on a terminal after the dimmed prompt, with a last line on the speed."""
    terminal = sink.isatty()
    if isinstance(row, str):
        pieces = llm.stream(row, params)
        if terminal:
            print(dim(row), end="", file=sink)
    else:
        pieces = llm.stream_chat(row, params)
    text, metrics = "", None
    for delta in pieces:
        text = delta.text or text
        metrics = delta.metrics or metrics
        print(delta.text, end="", file=sink, flush=True)
    if not text.endswith("\n"):
        print(file=sink, flush=True)
    if terminal and metrics is not None:
        print(dim(speed(metrics)), file=sys.stderr)


def dim(text: str) -> str:
    """`text` with the terminal's faint style."""
    return f"\033[2m{text}\033[0m"


def speed(metrics: RequestMetrics) -> str:
    """One line on the speed of a request."""
    rate = f", {1 / metrics.tpot_seconds:.0f} tokens/s" if metrics.tpot_seconds > 0 else ""
    return f"[{metrics.generated_tokens} tokens{rate}, first after {1000 * metrics.ttft_seconds:.1f} ms]"


def _run(llm: LLM, rows: list[str | Conversation], params: SamplingParams) -> list[RequestOutput]:
    """All rows in one batch. The chat template writes the special tokens of conversations itself."""
    if params.pack:
        return _run_with_packs(llm, rows, params)
    prompts = [
        llm.tokenize(row) if isinstance(row, str) else llm.tokenize(llm.render_chat(row), add_special_tokens=False)
        for row in rows
    ]
    return llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())


def _run_with_packs(llm: LLM, rows: list[str | Conversation], params: SamplingParams) -> list[RequestOutput]:
    """A pack is for texts, or for conversations."""
    texts = [row for row in rows if isinstance(row, str)]
    chats = [row for row in rows if not isinstance(row, str)]
    if texts and chats:
        raise InvalidRequestError("--pack: there are prompts and conversations, and a pack is for one of them")
    show = sys.stderr.isatty()
    return llm.generate(texts, params, use_tqdm=show) if texts else llm.chat(chats, params, use_tqdm=show)


def _as_json(row: str | Conversation, result: RequestOutput) -> dict[str, Any]:
    out: dict[str, Any] = {"prompt": row} if isinstance(row, str) else {"messages": row}
    if result.error is not None:
        out["error"] = {"type": type(result.error).__name__, "message": str(result.error)}
    out["text"] = result.text
    out["outputs"] = []
    for sample in result.outputs:
        fields = asdict(sample)
        if sample.logprobs is None:
            del fields["logprobs"], fields["cumulative_logprob"]
        else:
            # As OpenAI's API writes them.
            for candidate in (c for position in fields["logprobs"] for c in position.values()):
                candidate["bytes"] = list(candidate["bytes"])
        out["outputs"].append(fields)
    out["metrics"] = None if result.metrics is None else asdict(result.metrics)
    return out
