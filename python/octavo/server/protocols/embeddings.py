"""POST /v1/embeddings"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

from octavo import _core
from octavo.errors import OctavoError, QueueFullError
from octavo.llm import LLM
from octavo.params import EmbeddingOptions
from octavo.server.context import Context
from octavo.server.errors import bad_request, from_octavo
from octavo.server.fields.requests import EmbeddingRequest
from octavo.server.generation import Deltas, Generation
from octavo.server.http import Call, Reply, dumps
from octavo.server.response import Response
from octavo.server.routes import Route
from octavo.server.sampling import cache_salt
from octavo.server.targets import Target

# Names of `LLM.submit_embedding`'s arguments -> names in the API.
_NAMES = {"prompt": "input"}


def embeddings(context: Context, call: Call) -> Response:
    request, target = context.read_with_target(EmbeddingRequest, call)
    generation, prompts = begin(context, request, call, target)
    return Embeddings(target, generation, prompts, base64_wanted=request.encoding_format == "base64")


def begin(
    context: Context, request: EmbeddingRequest, call: Call, target: Target
) -> tuple[EmbeddingGeneration, list[list[int]]]:
    """Starts to embed the inputs of `request` with `target`. Also returns their tokens.

    Raises:
        ApiError: the request is invalid.
    """
    inputs = _inputs(request)
    limit = context.config.limits.embedding_inputs
    if len(inputs) > limit:
        raise bad_request(f"input has {len(inputs)} entries: at most {limit} are taken", "input")
    options: EmbeddingOptions = {
        "pooling": request.pooling or "mean",
        "normalize": request.normalize is not False,
        "dimensions": request.dimensions,
        "priority": request.priority or 0,
        "timeout": request.timeout,
        "cache_salt": cache_salt(call.salt, request.cache_salt),
    }
    if target.adapter is not None:
        options["lora"] = target.adapter
    if target.packs:
        raise bad_request("model names a pack, which embeddings do not take: write its text into the input", "model")
    context.check_texts(inputs, "input")
    llm = context.llm
    special = request.add_special_tokens is not False
    try:
        # All are tokenised and checked before the first one runs.
        cut = [context.truncate(p, request.truncate_prompt_tokens, special=special, param="input") for p in inputs]
        prompts = [llm.tokenize(p, add_special_tokens=special) if isinstance(p, str) else p for p in cut]
        for ids in prompts:
            llm.check_embedding(ids, **options)
        return EmbeddingGeneration(llm, prompts, options, context.max_num_seqs), prompts
    except OctavoError as error:
        raise from_octavo(error, _NAMES) from error


def _inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    given: Any = request.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given or any(len(p) == 0 for p in given):
        raise bad_request("input is empty: give a text or token ids", "input")
    return list(given)


class EmbeddingGeneration(Generation):
    """Many prompts, of which at most `at_once` are in the engine: a call may have more prompts than the queue holds."""

    def __init__(self, llm: LLM, prompts: list[list[int]], options: EmbeddingOptions, at_once: int) -> None:
        super().__init__([], only_end=True)
        self._llm = llm
        self._options = options
        self._left = list(enumerate(prompts))[::-1]
        self._at_once = at_once
        self._wake: tuple[Callable[[], None], asyncio.AbstractEventLoop | None] | None = None
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        """Submits prompts up to the limit.

        Raises:
            QueueFullError: the queue is full, and no prompt of this call is in the engine.
        """
        while self._left and len(self._open) < self._at_once:
            index, ids = self._left[-1]
            try:
                handle = self._llm.submit_embedding(ids, **self._options)
            except QueueFullError:
                if not self._open:
                    raise
                return
            self._left.pop()
            self.handles.append(handle)
            self._open[index] = handle
            if self._wake is not None:
                handle.watch(*self._wake, only_end=True)

    def _watch(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        super()._watch(wake, loop)
        self._wake = wake, loop

    def _poll(self) -> Deltas:
        deltas = super()._poll()
        if deltas:
            self.handles = list(self._open.values())
            try:
                self._fill()
            except OctavoError as error:
                raise from_octavo(error, _NAMES) from error
        return deltas


class Embeddings(Response):
    """The response: a vector per input, in order."""

    def __init__(
        self,
        target: Target,
        generation: EmbeddingGeneration,
        prompts: list[list[int]],
        *,
        base64_wanted: bool,
    ) -> None:
        super().__init__(generation, stream=False)
        self._name = target.name
        self._base64 = base64_wanted
        self._tokens = sum(map(len, prompts))
        self._vectors: list[bytes] = [b""] * len(prompts)

    def feed(self, deltas: Deltas) -> bytes:
        for index, delta in deltas:
            values = delta.embedding or b""
            # Encoded one by one: encoding all at the end would block the event loop.
            if self._base64:
                self._vectors[index] = b'"' + base64.b64encode(values) + b'"'
            else:
                self._vectors[index] = _core.floats_json(values)
        return b""

    def reply(self) -> Reply:
        rows = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
            for index, vector in enumerate(self._vectors)
        )
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        body = b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (rows, dumps(self._name), dumps(usage))
        return Reply(body=body)


ROUTES = [Route("POST", "/v1/embeddings", embeddings, "Embed texts", EmbeddingRequest)]
