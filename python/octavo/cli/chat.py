"""`octavo chat`: a conversation in the terminal, or one line of a pipe after the other."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated

from typer import Option

from octavo.cli.generate import dim, speed
from octavo.cli.options import EngineOptions, SamplingOptions
from octavo.errors import ContextLengthError, InvalidRequestError, OctavoError
from octavo.llm import LLM
from octavo.params import SamplingParams

Turn = dict[str, str]

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; Ctrl-C stops an answer."


def chat(
    engine: EngineOptions,
    sampling: SamplingOptions,
    system: Annotated[str | None, Option("--system", "-s", help="System message.", show_default=False)] = None,
    as_json: Annotated[bool, Option("--json", help="Write each answer as a JSON object.")] = False,
) -> None:
    """Talk to the model. Reads lines from a pipe too, and answers each."""
    start: list[Turn] = [{"role": "system", "content": system}] if system else []
    params = sampling.params()
    with engine.load() as llm:
        if not llm.info()["model"]["chat_template"]:
            raise InvalidRequestError("this model has no chat template; use `octavo generate`")
        terminal = sys.stdin.isatty() and not as_json
        if terminal:
            print(dim(f"{llm!r}\n{_HELP}"))
        history = list(start)
        for text in _typed() if terminal else _piped():
            if text in ("/exit", "/quit"):
                return
            if text == "/help":
                print(_HELP)
            elif text == "/reset":
                history = list(start)
            elif text.strip():
                history.append({"role": "user", "content": text})
                try:
                    answer = _answer(llm, history, params, as_json)
                except OctavoError as error:
                    if not terminal:
                        raise
                    # The turn does not count; the conversation goes on.
                    history.pop()
                    hint = " /reset starts a new conversation." if isinstance(error, ContextLengthError) else ""
                    print(f"octavo: {error}.{hint}", file=sys.stderr)
                    continue
                history.append({"role": "assistant", "content": answer})


def _typed() -> Iterator[str]:
    """Lines from the keyboard, with editing and history where the platform has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


def _answer(llm: LLM, history: list[Turn], params: SamplingParams, as_json: bool) -> str:
    """Streams the answer; returns its text. Ctrl-C in a terminal keeps what was said so far."""
    text = ""
    reason, metrics = None, None
    stream = llm.stream_chat(history, params)
    try:
        for delta in stream:
            text += delta.text
            metrics = delta.metrics or metrics
            reason = delta.outputs[0].finish_reason if delta.outputs else reason
            if not as_json:
                print(delta.text, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if as_json:
        print(
            json.dumps({"role": "assistant", "content": text, "finish_reason": reason}, ensure_ascii=False), flush=True
        )
    else:
        print(flush=True)
        if sys.stdin.isatty() and metrics is not None:
            print(dim(speed(metrics)))
    return text
