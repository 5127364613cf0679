"""`octavo chat`: a conversation in the terminal, or with the lines of a pipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Protocol

from typer import Option

from octavo.cli.attached import AttachedOptions
from octavo.cli.generate import dim, speed
from octavo.cli.options import EngineOptions, SamplingOptions
from octavo.cli.plugin_options import PluginOptions, ask, describe
from octavo.cli.remote import Remote
from octavo.errors import ContextLengthError, InvalidRequestError, OctavoError
from octavo.llm import LLM
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams

if TYPE_CHECKING:
    from octavo.plugins.host.host import PluginHost

Turn = dict[str, str]

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; Ctrl-C stops an answer."


def chat(
    engine: EngineOptions,
    sampling: SamplingOptions,
    attached: AttachedOptions,
    with_plugins: PluginOptions,
    system: Annotated[str | None, Option("--system", "-s", help="System message.", show_default=False)] = None,
    url: Annotated[
        str | None, Option(help="URL of a running server to use; --model is the name of its model.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, Option(help="API key of that server.", envvar="OCTAVO_API_KEY", show_default=False)
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Write each answer as a JSON object.")] = False,
) -> None:
    """Chat with a model, or with a server. Each line of standard input is a message."""
    start: list[Turn] = [{"role": "system", "content": system}] if system else []
    if url is not None:
        _refuse_engine_options(engine)
        attached.refuse("is for a model in this process: name what the server has with --model, such as sql+law")
        with_plugins.refuse("is for a model in this process: the server at --url has its own")
        _converse(Remote(url, sampling, model=engine.model, api_key=api_key), start, as_json)
        return
    params = sampling.params()
    with with_plugins.host() as plugins, engine.load() as llm:
        _converse(Local(llm, attached.attach(llm, params), plugins), start, as_json)


class Partner(Protocol):
    """The source of answers. `reason` and `speed` describe the last answer."""

    reason: str | None
    speed: str

    def answer(self, history: list[Turn]) -> Iterator[str]:
        """Pieces of the answer, while it is generated."""


class Local:
    """A model in this process."""

    def __init__(self, llm: LLM, params: SamplingParams, plugins: PluginHost | None = None) -> None:
        if not llm.info()["model"]["chat_template"]:
            raise InvalidRequestError("this model has no chat template; use `octavo generate`")
        self._llm = llm
        self._params = params
        self._plugins = plugins
        self.reason: str | None = None
        self.speed = ""

    def __repr__(self) -> str:
        return repr(self._llm)

    def _outputs(self, history: list[Turn]) -> Iterator[RequestOutput]:
        if self._plugins is None:
            return self._llm.stream_chat(history, self._params)
        return self._llm.stream_chat(history, self._params, plugins=self._plugins, approve=ask)

    def answer(self, history: list[Turn]) -> Iterator[str]:
        self.reason, self.speed = None, ""
        for delta in self._outputs(history):
            for outcome in delta.tool_trace:
                # Beside the answer, which may go into a pipe.
                line = describe(outcome)
                print(dim(line) if sys.stderr.isatty() else line, file=sys.stderr)
            if delta.metrics is not None:
                self.speed = speed(delta.metrics)
            self.reason = delta.outputs[0].finish_reason if delta.outputs else self.reason
            yield delta.text


def _refuse_engine_options(engine: EngineOptions) -> None:
    for name in engine.changed():
        if name != "model":
            option = name.replace("_", "-")
            raise InvalidRequestError(f"--{option} is for a model in this process: the server at --url has its own")


def _converse(partner: Partner, start: list[Turn], as_json: bool) -> None:
    terminal = sys.stdin.isatty() and not as_json
    if terminal:
        print(dim(f"{partner!r}\n{_HELP}"))
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
                answer = _answer(partner, history, as_json)
            except OctavoError as error:
                if not terminal:
                    raise
                # The message is dropped; the conversation continues.
                history.pop()
                hint = " /reset starts a new conversation." if isinstance(error, ContextLengthError) else ""
                print(f"octavo: {error}.{hint}", file=sys.stderr)
                continue
            history.append({"role": "assistant", "content": answer})


def _typed() -> Iterator[str]:
    """Lines from the keyboard, with editing and history if the platform supports them."""
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


def _answer(partner: Partner, history: list[Turn], as_json: bool) -> str:
    """Streams the answer; returns its text. Ctrl-C in a terminal stops it and keeps the text so far."""
    text = ""
    pieces = partner.answer(history)
    try:
        for piece in pieces:
            text += piece
            if not as_json:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if as_json:
        row = {"role": "assistant", "content": text, "finish_reason": partner.reason}
        print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
        if sys.stdin.isatty() and partner.speed:
            print(dim(partner.speed))
    return text
