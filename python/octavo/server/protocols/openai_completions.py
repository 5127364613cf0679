"""POST /v1/completions"""

from __future__ import annotations

from typing import Any

from octavo import _core
from octavo.request_handle import RequestHandle
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.fields.requests import CompletionRequest
from octavo.server.generation import Deltas, Generation
from octavo.server.http import Call, Chunks, Reply, event, json_reply
from octavo.server.logprobs import CompletionLogprobs, prompt_logprobs
from octavo.server.output_format import answer_format, field_of
from octavo.server.response import Response, new_id, now
from octavo.server.routes import Route
from octavo.server.sampling import candidates, sampling_params
from octavo.server.targets import Target

# Default of OpenAI's API.
_DEFAULT_MAX_TOKENS = 16
# JSON after the text of an unfinished choice.
_AFTER = b',"logprobs":null,"finish_reason":null,"stop_reason":null}'


def completions(context: Context, call: Call) -> Response:
    request, target = context.read_with_target(CompletionRequest, call)
    limits = context.config.limits
    if request.suffix:
        raise bad_request("suffix is not supported: the model continues a prompt and fills no gaps", "suffix")
    prompts = _prompts(request)
    if len(prompts) > limits.prompts:
        raise bad_request(f"prompt has {len(prompts)} entries: at most {limits.prompts} are taken", "prompt")
    n = request.n or 1
    drawn = max(request.best_of or 0, n)
    if request.best_of is not None and (request.best_of < n or request.best_of > limits.logprobs):
        raise bad_request(f"best_of is {request.best_of}: n ({n}) to {limits.logprobs} is expected", "best_of")
    if drawn > n and request.stream:
        raise bad_request("best_of above n cannot stream: the best are known at the end", "best_of")
    logprobs = None if request.logprobs is None else candidates("logprobs", request.logprobs, limits)
    # For the prompt alone the engine still samples one token, which is not returned.
    nothing = request.max_tokens == 0
    if nothing and not request.echo:
        raise bad_request("max_tokens is 0: at least 1 is expected, or 0 with echo", "max_tokens")
    more: dict[str, Any] = {
        "n": drawn,
        "max_tokens": _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens or 1,
        # Samples are ranked by their probability.
        "logprobs": 0 if logprobs is None and drawn > n else logprobs,
        "structured": answer_format(context, request),
        **target.sampling(),
    }
    if request.echo and logprobs is not None:
        wanted = candidates("prompt_logprobs", request.prompt_logprobs or 0, limits)
        more["prompt_logprobs"] = max(logprobs, wanted)
    params = sampling_params(request, limits, call.salt, **more)
    special = request.add_special_tokens is not False
    stream = bool(request.stream)
    names = {"structured": field_of(request)}
    prompts = [
        context.truncate(
            context.with_packs(p, target.packs, special=special),
            request.truncate_prompt_tokens,
            special=special,
            reserved=more["max_tokens"],
        )
        for p in prompts
    ]
    generation = context.generate([(p, special, params) for p in prompts], stream=stream, names=names)
    return Completions(context, request, target, generation, stream=stream, n=n, logprobs=logprobs, nothing=nothing)


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or any(not isinstance(p, int) and len(p) == 0 for p in prompt):
        raise bad_request("prompt is empty: give a text or token ids", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


class Completions(Response):
    """The response: choice `p * n + s` is sample s of prompt p."""

    def __init__(
        self,
        context: Context,
        request: CompletionRequest,
        target: Target,
        generation: Generation,
        *,
        stream: bool,
        n: int,
        logprobs: int | None,
        nothing: bool,
    ) -> None:
        super().__init__(generation, stream=stream, options=request.stream_options)
        self._n = n
        self._logprobs = logprobs
        self._nothing = nothing
        self._request = request
        self._llm = context.llm
        self._head = {"id": new_id("cmpl"), "object": "text_completion", "created": now(), "model": target.name}
        self._include_usage = bool(self.options.include_usage)
        self._chunks = Chunks(self._head, usage=self._include_usage)
        # The common case: a stream of text only.
        more = request.logprobs is not None or request.prompt_logprobs is not None or request.return_token_ids
        self._plain = stream and not more and not nothing and not self.options.continuous_usage_stats
        self._choices: dict[tuple[int, int], Choice] = {}

    def feed(self, deltas: Deltas) -> bytes:
        out = b""
        for index, delta in deltas:
            handle = self.generation.handles[index]
            self.usage.take(index, delta, handle)
            for sample in delta.outputs:
                choice = self._choices.get((index, sample.index))
                if self._plain and choice is not None and sample.finish_reason is None:
                    # The most frequent case.
                    text = sample.text
                    out += self._chunks.text(choice.before, text, _AFTER) if text else b""
                    continue
                first = choice is None
                if choice is None:
                    choice = self._begin(index, sample.index, handle, delta)
                if not self._nothing:
                    choice.add(sample)
                choice.finish(sample)
                if self.stream:
                    out += self._chunks.event(choice.take(self._request, first), self.usage_so_far())
        return out

    def _begin(self, index: int, sample: int, handle: RequestHandle[Any], delta: _core.Delta) -> Choice:
        request, logprobs = self._request, None
        if self._logprobs is not None:
            as_ids, skips = bool(request.return_tokens_as_token_ids), request.skip_special_tokens is not False
            logprobs = CompletionLogprobs(self._llm, self._logprobs, as_ids=as_ids, skip_special_tokens=skips)
        choice = self._choices[index, sample] = Choice(index * self._n + sample, logprobs)
        rows = delta.prompt_logprobs
        if request.echo:
            text = self._llm.detokenize(handle.prompt_token_ids, skip_special_tokens=False)
            choice.echo(text)
            if logprobs is not None and rows is not None:
                logprobs.echo(text, handle.prompt_token_ids, rows)
        if self._request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(rows)
        if self._request.return_token_ids:
            choice.prompt_token_ids = handle.prompt_token_ids
        return choice

    def end(self) -> bytes:
        last = b""
        if self._include_usage:
            last = event({**self._head, "choices": [], "usage": self.usage.as_dict()})
        return last + super().end()

    def reply(self) -> Reply:
        ranked = sorted(self._choices.items(), key=lambda item: (item[0][0], -item[1].score, item[0][1]))
        by_prompt: dict[int, list[Choice]] = {}
        for (prompt, _), choice in ranked:
            by_prompt.setdefault(prompt, []).append(choice)
        if all(len(found) == self._n for found in by_prompt.values()):
            chosen = sorted(self._choices.values(), key=lambda c: c.index)
        else:
            chosen = [c for found in by_prompt.values() for c in found[: self._n]]
        bodies = []
        for position, choice in enumerate(chosen):
            choice.index = position
            bodies.append(choice.take(self._request, True))
        if self._nothing:
            self.usage.completion = 0
        return json_reply({**self._head, "choices": bodies, "usage": self.usage.as_dict()})


class Choice:
    """Output of one choice since the last `take`."""

    def __init__(self, index: int, logprobs: CompletionLogprobs | None) -> None:
        self.index = index
        self.before = b'{"index":%d,"text":' % index
        self.prompt_logprobs: list[dict[str, Any] | None] | None = None
        self.prompt_token_ids: list[int] | None = None
        self._logprobs = logprobs
        self._score = 0.0
        self._count = 0
        self._text = ""
        self._length = 0
        self._token_ids: list[int] = []
        self._reason: str | None = None
        self._stop_reason: int | str | None = None

    @property
    def score(self) -> float:
        """Mean log-probability of the tokens."""
        return self._score / max(self._count, 1)

    def echo(self, prompt: str) -> None:
        """Begins with the text of the prompt."""
        self._text = prompt

    def add(self, sample: _core.SampleDelta) -> None:
        self._text += sample.text
        ids = sample.token_ids
        self._token_ids += ids
        self._count += len(ids)
        if sample.cumulative_logprob is not None:
            self._score = sample.cumulative_logprob
        if self._logprobs is not None:
            for row in sample.logprobs or []:
                self._logprobs.add(row)

    def finish(self, sample: _core.SampleDelta) -> None:
        if sample.finish_reason is not None:
            self._reason = sample.finish_reason
            self._stop_reason = sample.stop_reason

    def take(self, request: CompletionRequest, first: bool) -> dict[str, Any]:
        """The new output in the API's form."""
        body: dict[str, Any] = {
            "index": self.index,
            "text": self._text,
            "logprobs": None,
            "finish_reason": self._reason,
            "stop_reason": self._stop_reason,
        }
        self._length += len(self._text)
        if self._logprobs is not None:
            body["logprobs"] = self._logprobs.take(None if self._reason is None else self._length)
        if request.return_token_ids:
            body["token_ids"] = self._token_ids
            if first:
                body["prompt_token_ids"] = self.prompt_token_ids
        if request.prompt_logprobs is not None and first:
            body["prompt_logprobs"] = self.prompt_logprobs
        self._text = ""
        self._token_ids = []
        return body


ROUTES = [Route("POST", "/v1/completions", completions, "Continue prompts", CompletionRequest)]
