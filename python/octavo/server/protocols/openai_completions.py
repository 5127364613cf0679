"""POST /v1/completions"""

from __future__ import annotations

from typing import Any

from octavo import _core
from octavo.request_handle import RequestHandle
from octavo.server.context import Context
from octavo.server.errors import bad_request
from octavo.server.generation import Deltas, Generation
from octavo.server.http import Call, Chunks, Reply, event, json_reply
from octavo.server.output_format import answer_format, field_of
from octavo.server.requests import CompletionRequest
from octavo.server.response import Response, finite, new_id, now, prompt_logprobs
from octavo.server.routes import Route
from octavo.server.sampling import candidates, sampling_params

# Default of OpenAI's API.
_DEFAULT_MAX_TOKENS = 16
# JSON after the text of an unfinished choice.
_AFTER = b',"logprobs":null,"finish_reason":null,"stop_reason":null}'


def completions(context: Context, call: Call) -> Response:
    request = context.read(CompletionRequest, call)
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
        "structured": answer_format(request),
    }
    if request.echo and logprobs is not None:
        more["prompt_logprobs"] = max(logprobs, request.prompt_logprobs or 0)
    params = sampling_params(request, limits, call.salt, **more)
    special = request.add_special_tokens is not False
    stream = bool(request.stream)
    names = {"structured": field_of(request)}
    generation = context.generate([(p, special, params) for p in prompts], stream=stream, names=names)
    return Completions(context, request, generation, stream=stream, n=n, logprobs=logprobs, nothing=nothing)


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
        generation: Generation,
        *,
        stream: bool,
        n: int,
        logprobs: int | None,
        nothing: bool,
    ) -> None:
        super().__init__(generation, stream=stream)
        self._n = n
        self._logprobs = logprobs
        self._nothing = nothing
        self._request = request
        self._detokenize = context.llm.detokenize
        self._head = {"id": new_id("cmpl"), "object": "text_completion", "created": now(), "model": context.name}
        self._include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._chunks = Chunks(self._head, usage=self._include_usage)
        # The common case: a stream of text only.
        more = request.logprobs is not None or request.prompt_logprobs is not None or request.return_token_ids
        self._plain = stream and not more and not nothing
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
                    choice.add(sample, self._logprobs)
                choice.finish(sample)
                if self.stream:
                    out += self._chunks.event(choice.take(self._request, first))
        return out

    def _begin(self, index: int, sample: int, handle: RequestHandle[Any], delta: _core.Delta) -> Choice:
        choice = self._choices[index, sample] = Choice(index * self._n + sample)
        rows = delta.prompt_logprobs
        if self._request.echo:
            text = self._detokenize(handle.prompt_token_ids, skip_special_tokens=False)
            choice.echo(text, rows, self._logprobs)
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

    def __init__(self, index: int) -> None:
        self.index = index
        self.before = b'{"index":%d,"text":' % index
        self.prompt_logprobs: list[dict[str, Any] | None] | None = None
        self.prompt_token_ids: list[int] | None = None
        self._score = 0.0
        self._count = 0
        self._offset = 0
        self._text = ""
        self._token_ids: list[int] = []
        self._reason: str | None = None
        self._stop_reason: int | str | None = None
        self._clear_logprobs()

    def _clear_logprobs(self) -> None:
        self._tokens: list[str] = []
        self._token_logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    @property
    def score(self) -> float:
        """Mean log-probability of the tokens."""
        return self._score / max(self._count, 1)

    def echo(self, text: str, rows: list[list[_core.Logprob] | None] | None, logprobs: int | None) -> None:
        self._text = text
        if logprobs is None or rows is None:
            return
        # The first token has no prediction, so the engine has no row for it.
        for row in rows:
            if row is not None:
                self._row(row, logprobs)
        first = len(text) - sum(len(t) for t in self._tokens)
        self._offsets = [o + max(first, 0) for o in self._offsets]
        self._tokens.insert(0, text[: max(first, 0)])
        self._token_logprobs.insert(0, None)
        self._top.insert(0, None)
        self._offsets.insert(0, 0)
        self._offset = len(text)

    def add(self, sample: _core.SampleDelta, logprobs: int | None) -> None:
        self._text += sample.text
        ids = sample.token_ids
        self._token_ids += ids
        self._count += len(ids)
        if sample.cumulative_logprob is not None:
            self._score = sample.cumulative_logprob
        if logprobs is not None:
            for row in sample.logprobs or []:
                self._row(row, logprobs)

    def _row(self, row: list[_core.Logprob], logprobs: int) -> None:
        chosen = row[0]
        self._tokens.append(chosen.token)
        self._token_logprobs.append(finite(chosen.logprob))
        top: dict[str, float] = {}
        for c in [*row[1 : logprobs + 1], chosen]:
            top.setdefault(c.token, finite(c.logprob))
        self._top.append(top)
        self._offsets.append(self._offset)
        self._offset += len(chosen.token)

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
        if request.logprobs is not None:
            body["logprobs"] = {
                "tokens": self._tokens,
                "token_logprobs": self._token_logprobs,
                "top_logprobs": self._top,
                "text_offset": self._offsets,
            }
        if request.return_token_ids:
            body["token_ids"] = self._token_ids
            if first:
                body["prompt_token_ids"] = self.prompt_token_ids
        if request.prompt_logprobs is not None and first:
            body["prompt_logprobs"] = self.prompt_logprobs
        self._text = ""
        self._token_ids = []
        self._clear_logprobs()
        return body


ROUTES = [Route("POST", "/v1/completions", completions, "Continue prompts", CompletionRequest)]
