"""POST /v1/embeddings"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo import _core
from octavo.errors import OctavoError, QueueFullError
from octavo.server.answer import Answer
from octavo.server.faults import bad_request, from_octavo
from octavo.server.generation import Generation, News
from octavo.server.http import Call, Reply, dumps
from octavo.server.requests import EmbeddingRequest
from octavo.server.sampling import cache_salt

if TYPE_CHECKING:
    from octavo.llm import LLM
    from octavo.server.service import Service

# Parameters of the engine under their names in the API.
_NAMES = {"prompt": "input"}


def embeddings(service: Service, call: Call) -> Answer:
    request = service.read(EmbeddingRequest, call)
    inputs = _inputs(request)
    most = service.config.limits.embedding_inputs
    if len(inputs) > most:
        raise bad_request(f"input has {len(inputs)} entries: at most {most} are taken", "input")
    fields = {
        "pooling": request.pooling or "mean",
        "normalize": request.normalize is not False,
        "dimensions": request.dimensions,
        "priority": request.priority or 0,
        "timeout": request.timeout,
        "cache_salt": cache_salt(call.salt, request.cache_salt),
    }
    service.check_texts(inputs, "input")
    llm = service.llm
    special = request.add_special_tokens is not False
    try:
        # All are tokenised and checked before the first one runs.
        prompts = [llm.tokenize(p, add_special_tokens=special) if isinstance(p, str) else p for p in inputs]
        for ids in prompts:
            llm._engine.check_embed(ids, fields)
        generation = EmbeddingGeneration(llm, prompts, fields, service.max_num_seqs)
    except OctavoError as error:
        raise from_octavo(error, _NAMES) from error
    return Embeddings(service, generation, prompts, base64_wanted=request.encoding_format == "base64")


def _inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    given: Any = request.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given or any(len(p) == 0 for p in given):
        raise bad_request("input is empty: give a text or token ids", "input")
    return list(given)


class EmbeddingGeneration(Generation):
    """Many prompts, of which only so many are in the engine at once: a call may bring more than the queue takes."""

    def __init__(self, llm: LLM, prompts: list[list[int]], fields: dict[str, Any], at_once: int) -> None:
        super().__init__(llm, [], only_end=True)
        self._fields = fields
        self._left = list(enumerate(prompts))[::-1]
        self._at_once = at_once
        self._wake: tuple[Callable[[], None], asyncio.AbstractEventLoop | None] | None = None
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        """Submits what has a place now.

        Raises:
            QueueFullError: nothing of this call is in the engine, and the queue is full of others'.
        """
        while self._left and len(self._open) < self._at_once:
            index, ids = self._left[-1]
            try:
                stream = self._llm._engine.embed(ids, self._fields)
            except QueueFullError:
                if not self._open:
                    raise
                return
            self._left.pop()
            self.streams.append(stream)
            self._open[index] = stream
            if self._wake is not None:
                self._llm._dispatcher.watch(stream, *self._wake, only_end=True)

    def _watch(self, wake: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        super()._watch(wake, loop)
        self._wake = wake, loop

    def _poll(self) -> News:
        news = super()._poll()
        if news:
            self.streams = list(self._open.values())
            try:
                self._fill()
            except OctavoError as error:
                raise from_octavo(error, _NAMES) from error
        return news


class Embeddings(Answer):
    """The answer: a vector per input, in their order."""

    def __init__(
        self,
        service: Service,
        generation: EmbeddingGeneration,
        prompts: list[list[int]],
        *,
        base64_wanted: bool,
    ) -> None:
        super().__init__(generation, stream=False)
        self._name = service.name
        self._base64 = base64_wanted
        self._tokens = sum(map(len, prompts))
        self._vectors: list[bytes] = [b""] * len(prompts)

    def feed(self, news: News) -> bytes:
        for index, delta in news:
            values = delta.embedding or b""
            # Encoded as they come: one large answer at the end would hold up the event loop.
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
