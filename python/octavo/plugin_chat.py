"""Chats of `LLM` whose model calls plugins: the rounds of one conversation, for threads and for event loops.

The rounds run through the server's stages of a chat: the same prompts, grammars and parsers, without a server.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from octavo.batch import Progress
from octavo.errors import ContextLengthError, InvalidRequestError, OctavoError
from octavo.llm import LLM
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.params import SamplingParams
from octavo.plugins.host.host import PluginHost
from octavo.plugins.host.outcome import Outcome
from octavo.plugins.loop import WAITING, Loop, Offer, PluginCall
from octavo.request_handle import RequestHandle
from octavo.server.calls.toolbox import Toolbox
from octavo.server.config import Limits, ServerConfig
from octavo.server.context import Context
from octavo.server.continuation import continues
from octavo.server.errors import ApiError
from octavo.server.fields.requests import ChatRequest, read
from octavo.server.messages import prompt_of
from octavo.server.output_format import output_format
from octavo.server.parsing import Content
from octavo.server.plugins import is_usable
from octavo.server.rounds import Ran, RoundReader, Rounds
from octavo.structured import Grammar, JsonSchema, Regex

# Conversations that run at once.
_AT_ONCE = 32
_GAP = "\n\n"

# For event loops it may return an awaitable of a bool.
Approve = Callable[[Outcome], object]


@dataclass(frozen=True)
class Asked:
    """What `LLM.chat` was asked beside its messages.

    Attributes:
        approve: decides about a call that waits for an approval: True, False, or for event loops an awaitable of one.
            None: the answer ends with it.
        template: variables of the chat template.
    """

    plugins: PluginHost
    max_rounds: int
    approve: Approve | None
    template: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not all(callable(getattr(self.plugins, name, None)) for name in ("tools", "call", "acall")):
            kind = type(self.plugins).__name__
            raise InvalidRequestError(f"plugins is a {kind}: a PluginHost is expected, of octavo.plugins")
        if isinstance(self.max_rounds, bool) or not isinstance(self.max_rounds, int) or self.max_rounds < 1:
            raise InvalidRequestError(f"max_rounds is {self.max_rounds!r}: an integer from 1 is expected")
        if self.approve is not None and not callable(self.approve):
            raise InvalidRequestError(
                "approve is no function: one that takes an Outcome and returns a bool is expected"
            )
        if self.template.get("tools"):
            message = "tools and plugins are both given: make the tools a plugin, or leave one of the two out"
            raise InvalidRequestError(message)


class PluginChat:
    """The rounds of one conversation. Making one asks the plugins for their operations."""

    def __init__(self, llm: LLM, messages: Sequence[Mapping[str, Any]], params: SamplingParams, asked: Asked) -> None:
        if params.n != 1:
            raise InvalidRequestError(f"n is {params.n} and plugins are given: an answer with plugins is one sample")
        self._llm = llm
        self._params = params
        self._approve = asked.approve
        # The limits are a server's, against its clients.
        limits = Limits(tools=1 << 20, tools_bytes=1 << 30)
        self._context = Context(llm, ServerConfig(limits=limits, plugins=asked.plugins))
        tools = asked.plugins.tools()
        loop = Loop(
            asked.plugins,
            [Offer(tool) for tool in tools if is_usable(self._context, tool)],
            max_rounds=asked.max_rounds,
            deadline=params.timeout,
            missing=[Outcome("", n, "", {}, "unavailable", text=p.detail, error=p) for n, p in tools.missing.items()],
        )
        reader = RoundReader(loop.names, gap=_GAP)
        try:
            self._rounds = Rounds(self._context, _request(messages, params, asked.template), loop, reader)
        except ApiError as error:
            raise _own(error) from error
        self._handle: RequestHandle[RequestOutput] | None = None
        self._first: RequestHandle[RequestOutput] | None = None
        self._metrics: RequestMetrics | None = None
        self._closed = False

    def close(self) -> None:
        """Cancels what runs, and begins no further round."""
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()

    def outputs(self) -> Iterator[RequestOutput]:
        """What is new, as it comes. Leaving the iteration cancels the round."""
        yield from self._missing()
        while not self._closed:
            try:
                for output in self._submit():
                    yield self._read(output)
            except OctavoError as error:
                yield self._failed(error)
                return
            calls = self._rounds.calls()
            if not calls:
                return
            outcomes = self._rounds.loop.run(calls)
            said = {i: self._approve(outcomes[i]) for i in self._undecided(outcomes)} if self._approve else {}
            decided = _decided(calls, said)
            ran = self._rounds.take(calls, _merged(outcomes, self._rounds.loop.run(list(decided.values())), decided))
            yield self._ran(ran)
            if ran.reason is not None:
                return

    async def aoutputs(self) -> AsyncIterator[RequestOutput]:
        """`outputs` for an event loop."""
        for output in self._missing():
            yield output
        while not self._closed:
            try:
                handle = await asyncio.to_thread(self._submit)
                async with aclosing(aiter(handle)) as outputs:
                    async for output in outputs:
                        yield self._read(output)
            except OctavoError as error:
                yield self._failed(error)
                return
            calls = self._rounds.calls()
            if not calls:
                return
            outcomes = await self._rounds.loop.arun(calls)
            decided = _decided(calls, {i: await self._asked(outcomes[i]) for i in self._undecided(outcomes)})
            later = await self._rounds.loop.arun(list(decided.values()))
            ran = self._rounds.take(calls, _merged(outcomes, later, decided))
            yield self._ran(ran)
            if ran.reason is not None:
                return

    def result(self) -> RequestOutput:
        """The complete output."""
        whole: RequestOutput | None = None
        for output in self.outputs():
            whole = output if whole is None else _joined(whole, output)
        assert whole is not None
        return whole

    async def aresult(self) -> RequestOutput:
        """`result` for an event loop."""
        whole: RequestOutput | None = None
        async with aclosing(self.aoutputs()) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                whole = output if whole is None else _joined(whole, output)
        assert whole is not None
        return whole

    def _submit(self) -> RequestHandle[RequestOutput]:
        """Starts the next round."""
        context, params = self._context, self._params
        try:
            request = self._rounds.request
            toolbox = Toolbox(context, request)
            packs = [params.pack] if isinstance(params.pack, str) else params.pack or ()
            prompt = prompt_of(context, request, toolbox, packs)
            form = output_format(context, request, toolbox, prompt)
        except ApiError as error:
            raise _own(error) from error
        self._rounds.begin(form.reader())
        more: dict[str, Any] = {"structured": form.structured, "max_tokens": request.max_completion_tokens}
        if params.timeout is not None:
            more["timeout"] = request.timeout
        if toolbox.needs_special_tokens:
            more["skip_special_tokens"] = False
        if self._first is not None:
            more["prompt_logprobs"] = None
        # The template writes the special tokens itself.
        handle = self._llm.submit(prompt, replace(params, **more), add_special_tokens=False)
        self._handle, self._first = handle, self._first or handle
        self._rounds.prompt_tokens = handle.num_prompt_tokens
        if self._closed:
            handle.cancel()
        return handle

    def _read(self, output: RequestOutput) -> RequestOutput:
        """The output of a round as news of the answer: its text is what is for the user."""
        reader, reason = self._rounds.reader, None
        samples: list[CompletionOutput] = []
        for sample in output.outputs:
            text = "".join(piece.text for piece in reader.read(sample) if isinstance(piece, Content))
            reason = None if reader.reason(sample) is None else sample.finish_reason
            samples.append(replace(sample, text=text, finish_reason=reason))
        if output.metrics is not None:
            self._metrics = _sum(self._metrics, output.metrics)
        news = self._news(finished=output.finished and (reason is not None or output.error is not None))
        news.outputs, news.prompt_logprobs, news.error = samples, output.prompt_logprobs, output.error
        return news

    def _ran(self, ran: Ran) -> RequestOutput:
        news = self._news(finished=ran.reason is not None)
        news.tool_trace = list(ran.outcomes)
        if ran.reason is not None:
            news.outputs = [CompletionOutput(0, finish_reason="length" if ran.reason == "length" else "stop")]
        return news

    def _failed(self, error: OctavoError) -> RequestOutput:
        """The end of an answer that cannot go on. What its calls did must reach the caller.

        Raises:
            OctavoError: `error`, if no call has run.
        """
        if not self._rounds.loop.rounds:
            raise error
        news = self._news(finished=True)
        reason: Any = "length" if isinstance(error, ContextLengthError) else "error"
        news.outputs, news.error = [CompletionOutput(0, finish_reason=reason)], error
        return news

    def _missing(self) -> Iterator[RequestOutput]:
        missing = self._rounds.loop.missing
        if missing:
            yield RequestOutput(0, None, [], tool_trace=list(missing))

    def _news(self, *, finished: bool) -> RequestOutput:
        assert self._first is not None
        first = self._first
        metrics = self._metrics if finished else None
        return RequestOutput(first.request_id, first.prompt, first.prompt_token_ids, finished=finished, metrics=metrics)

    def _undecided(self, outcomes: Sequence[Outcome]) -> list[int]:
        """Places of the calls that `approve` must decide about."""
        if self._approve is None:
            return []
        return [i for i, outcome in enumerate(outcomes) if outcome.status == WAITING]

    async def _asked(self, outcome: Outcome) -> object:
        """What `approve` says: a function runs on a thread, since a person may take long."""
        assert self._approve is not None
        said: object = await asyncio.to_thread(self._approve, outcome)
        return await said if inspect.isawaitable(said) else said


def _decided(calls: Sequence[PluginCall], said: Mapping[int, object]) -> dict[int, PluginCall]:
    """The calls that a person has decided now, by their place.

    Raises:
        InvalidRequestError: `approve` returned something else than True or False. None of the calls has run.
    """
    for answer in said.values():
        if not isinstance(answer, bool):
            if inspect.iscoroutine(answer):
                answer.close()
            kind = type(answer).__name__
            raise InvalidRequestError(f"approve returned a {kind}: True or False is expected; nothing was approved")
    return {i: replace(calls[i], approved=answer is True) for i, answer in said.items()}


def run_chats(chats: Sequence[PluginChat], *, progress: bool) -> list[RequestOutput]:
    """Runs conversations, many at once. The outputs keep their order.

    Raises:
        OctavoError: the only conversation failed. With several, the failed one's output carries `error`.
    """
    if len(chats) == 1:
        return [chats[0].result()]

    def one(chat: PluginChat) -> RequestOutput:
        try:
            found = chat.result()
        except OctavoError as error:
            found = RequestOutput(0, None, [], [CompletionOutput(0, finish_reason="error")], finished=True, error=error)
        bar.finished()
        return found

    with Progress(len(chats), progress) as bar, ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="octavo-chat") as pool:
        try:
            return list(pool.map(one, chats))
        except BaseException:
            for chat in chats:
                chat.close()
            raise


def _request(messages: Sequence[Mapping[str, Any]], params: SamplingParams, template: Mapping[str, Any]) -> ChatRequest:
    """A chat request with the fields that the stages of a chat read."""
    variables = {k: v for k, v in template.items() if k not in ("tools", "add_generation_prompt")}
    variables = {**(variables.pop("chat_template_kwargs", None) or {}), **variables}
    body: dict[str, Any] = {
        "messages": [dict(message) for message in messages],
        "chat_template_kwargs": variables or None,
        "add_generation_prompt": template.get("add_generation_prompt"),
        "max_completion_tokens": params.max_tokens,
        "timeout": params.timeout,
    }
    held = params.structured
    if isinstance(held, JsonSchema):
        kind, text = held.as_pair()
        body["structured_outputs"] = {"json": text, "disable_additional_properties": kind == "json_schema"}
    elif isinstance(held, Regex):
        body["structured_outputs"] = {"regex": held.pattern}
    elif isinstance(held, Grammar):
        body["structured_outputs"] = {"grammar": held.lark}
    elif held is not None:
        raise InvalidRequestError(
            f"structured is a {type(held).__name__}: JsonSchema, Regex or Grammar goes with plugins"
        )
    request = read(ChatRequest, body)
    if continues(request):
        raise InvalidRequestError("a message cannot be continued with plugins: leave one of the two out")
    return request


def _own(error: ApiError) -> OctavoError:
    """The error of a stage as octavo's own."""
    cause = error.__cause__
    return cause if isinstance(cause, OctavoError) else InvalidRequestError(error.message)


def _merged(outcomes: Sequence[Outcome], later: Sequence[Outcome], decided: Mapping[int, PluginCall]) -> list[Outcome]:
    found = dict(zip(decided, later, strict=True))
    return [found.get(i, outcome) for i, outcome in enumerate(outcomes)]


def _joined(whole: RequestOutput, news: RequestOutput) -> RequestOutput:
    """`whole` with what came since."""
    for sample in news.outputs:
        if not whole.outputs:
            whole.outputs.append(CompletionOutput(sample.index))
        output = whole.outputs[0]
        output.text += sample.text
        output.token_ids += sample.token_ids
        if sample.logprobs is not None:
            output.logprobs = (output.logprobs or []) + sample.logprobs
        if sample.finish_reason is not None:
            output.finish_reason, output.stop_reason = sample.finish_reason, sample.stop_reason
    whole.request_id, whole.prompt, whole.prompt_token_ids = news.request_id, news.prompt, news.prompt_token_ids
    whole.prompt_logprobs = whole.prompt_logprobs or news.prompt_logprobs
    whole.tool_trace += news.tool_trace
    whole.finished, whole.metrics, whole.error = news.finished, news.metrics, news.error
    if whole.outputs and whole.outputs[0].logprobs is not None:
        output = whole.outputs[0]
        chosen = (next(iter(row.values())).logprob for row in output.logprobs or ())
        output.cumulative_logprob = sum(chosen)
    return whole


def _sum(before: RequestMetrics | None, now: RequestMetrics) -> RequestMetrics:
    """Counts and times of two rounds together; the first token is the first round's."""
    if before is None:
        return now
    return RequestMetrics(
        queue_seconds=before.queue_seconds + now.queue_seconds,
        ttft_seconds=before.ttft_seconds,
        tpot_seconds=now.tpot_seconds,
        total_seconds=before.total_seconds + now.total_seconds,
        prompt_tokens=before.prompt_tokens + now.prompt_tokens,
        cached_prompt_tokens=before.cached_prompt_tokens + now.cached_prompt_tokens,
        generated_tokens=before.generated_tokens + now.generated_tokens,
        attention=now.attention,
    )
