"""`octavo chat`: a conversation on the terminal, or one line of standard input after another."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from octavo import LLM, SamplingParams
from octavo.cli import options
from octavo.cli.generate import summary
from octavo.errors import ContextLengthError, OctavoError

_HELP = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def chat(
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="The system turn.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = "auto",
    threads: options.Threads = None,
) -> None:
    """Talk with a model."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    interactive = sys.stdin.isatty()
    quantize = None if quantization == "none" else quantization
    with LLM(model, dtype=dtype, quantization=quantize, threads=threads) as llm:
        if interactive:
            print(f"\033[2m{llm!r}\n{_HELP}\033[0m")
        _converse(llm, params, [{"role": "system", "content": system}] if system else [], interactive)


def _converse(llm: LLM, params: SamplingParams, opening: list[dict[str, str]], interactive: bool) -> None:
    messages = list(opening)
    while True:
        try:
            line = input("\033[1m> \033[0m" if interactive else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        answer = _answer(llm, messages, params, interactive)
        if answer is None:
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": answer})


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams, interactive: bool) -> str | None:
    """Streams one answer; None if it failed and the turn should not count."""
    text, metrics = "", None
    try:
        for delta in llm.stream_chat(messages, params):
            text += delta.text
            sys.stdout.write(delta.text)
            sys.stdout.flush()
            metrics = delta.metrics or metrics
    except KeyboardInterrupt:
        if not interactive:
            raise
    except ContextLengthError as error:
        print(f"octavo: {error}\nThe conversation is too long for this model: /reset starts over.", file=sys.stderr)
        if not interactive:
            raise
        return None
    except OctavoError as error:
        if not interactive:
            raise
        print(f"octavo: {error}", file=sys.stderr)
        return None
    print()
    if interactive and metrics is not None:
        print(f"\033[2m{summary(metrics)}\033[0m")
    return text
