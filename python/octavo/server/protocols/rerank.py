"""POST /v1/rerank and /v1/score: how close texts are, by the cosine of their embeddings.

A decoder is no cross-encoder: query and document are embedded apart, as by /v1/embeddings. The other paths are those of
vLLM, Jina and Cohere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from octavo.server.context import Context
from octavo.server.errors import ApiError, bad_request
from octavo.server.fields.foreign import REFUSED_BY_EMBEDDINGS, Refusal
from octavo.server.fields.requests import EmbeddingRequest, Strict, read
from octavo.server.generation import Deltas
from octavo.server.http import Call, Reply, json_reply
from octavo.server.protocols.embeddings import EmbeddingGeneration, begin
from octavo.server.response import Response, new_id, now
from octavo.server.routes import Route
from octavo.server.targets import Target
from pydantic import Field

_SHORTER = Refusal("use truncate_prompt_tokens")
_REFUSED = {
    **REFUSED_BY_EMBEDDINGS,
    "max_chunks_per_doc": _SHORTER,
    "max_tokens_per_doc": _SHORTER,
    "max_tokens_per_query": _SHORTER,
    "rank_fields": Refusal("send the text to compare as the document"),
}
# Fields with the same name and meaning in a request for embeddings.
_SAME = (
    "pooling",
    "dimensions",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "priority",
    "cache_salt",
    "timeout",
)


class ComparisonRequest(Strict):
    """What requests that compare texts share: options of their embeddings."""

    refused: ClassVar[Mapping[str, Refusal]] = _REFUSED
    model: str | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    timeout: float | None = None


class RerankRequest(ComparisonRequest):
    """POST /v1/rerank. A document is a text, or an object with the key `text`."""

    query: str
    documents: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    return_documents: bool | None = None


class ScoreRequest(ComparisonRequest):
    """POST /v1/score. One text is compared with each of many, or texts in pairs."""

    text_1: str | list[str]
    text_2: str | list[str]


def rerank(context: Context, call: Call) -> Response:
    request = context.read(RerankRequest, call)
    documents = [_document(given, f"documents[{i}]") for i, given in enumerate(request.documents)]
    begun = _begin(context, request, call, [request.query], documents, ("query", "documents"))
    return Rerank(request, documents, *begun)


def score(context: Context, call: Call) -> Response:
    request = context.read(ScoreRequest, call)
    first, second = ([t] if isinstance(t, str) else t for t in (request.text_1, request.text_2))
    if not first or not second or len(first) not in (1, len(second)):
        counts = f"text_1 has {len(first)} texts and text_2 has {len(second)}"
        raise bad_request(f"{counts}: one and at least one, or equally many are expected", "text_1")
    return Score(len(first), *_begin(context, request, call, first, second, ("text_1", "text_2")))


def _begin(
    context: Context,
    request: ComparisonRequest,
    call: Call,
    first: list[str],
    second: list[str],
    names: tuple[str, str],
) -> tuple[Target, EmbeddingGeneration, list[list[int]]]:
    for name, texts in zip(names, (first, second), strict=True):
        if not all(texts):
            raise bad_request(f"{name}: a text is empty", name)
    options = {name: getattr(request, name) for name in _SAME}
    try:
        target = context.targets.of(request)
        generation, prompts = begin(context, read(EmbeddingRequest, {"input": first + second, **options}), call, target)
        return target, generation, prompts
    except ApiError as error:
        if error.param is not None and error.param.startswith("input"):
            # The query is the first input.
            error.param = names[1]
            error.message = error.message.replace("input has", f"{names[0]} and {names[1]} have", 1)
        raise


def _document(given: str | dict[str, Any], where: str) -> str:
    if isinstance(given, str):
        return given
    text = given.get("text")
    if isinstance(text, str):
        return text
    parts = given.get("content")
    if isinstance(parts, list) and parts and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        return "\n".join(part["text"] for part in parts)
    raise bad_request(f"{where}: a text, or an object with the key 'text', is expected", where)


class Comparison(Response):
    """A response from the embeddings of texts."""

    def __init__(self, target: Target, generation: EmbeddingGeneration, prompts: list[list[int]]) -> None:
        super().__init__(generation, stream=False)
        self._model = target.name
        tokens = sum(map(len, prompts))
        self._tokens = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._vectors: list[bytes] = [b""] * len(prompts)

    def feed(self, deltas: Deltas) -> bytes:
        for index, delta in deltas:
            self._vectors[index] = delta.embedding or b""
        return b""

    def _scores(self, count: int) -> list[float]:
        """Cosines of the first `count` texts with the others: vectors have length 1."""
        vectors = np.stack([np.frombuffer(vector, dtype="<f4") for vector in self._vectors])
        first, second = vectors[:count], vectors[count:]
        cosines = (first * second).sum(axis=1, dtype=np.float64)
        return [float(value) for value in np.clip(cosines, -1.0, 1.0)]


class Rerank(Comparison):
    """Documents by how close they are to the query."""

    def __init__(
        self,
        request: RerankRequest,
        documents: Sequence[str],
        target: Target,
        generation: EmbeddingGeneration,
        prompts: list[list[int]],
    ) -> None:
        super().__init__(target, generation, prompts)
        self._request = request
        self._documents = documents

    def reply(self) -> Reply:
        scores = self._scores(1)
        # The order of equal scores is the one of the documents.
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: self._request.top_n or None]
        texts = self._request.return_documents is not False
        results = [
            {
                "index": i,
                "relevance_score": scores[i],
                **({"document": {"text": self._documents[i]}} if texts else {}),
            }
            for i in order
        ]
        head = {"id": new_id("rerank"), "model": self._model}
        return json_reply({**head, "usage": self._tokens, "results": results})


class Score(Comparison):
    """A score for each pair."""

    def __init__(self, count: int, target: Target, generation: EmbeddingGeneration, prompts: list[list[int]]) -> None:
        super().__init__(target, generation, prompts)
        self._count = count

    def reply(self) -> Reply:
        rows = [{"index": i, "object": "score", "score": s} for i, s in enumerate(self._scores(self._count))]
        head = {"id": new_id("score"), "object": "list", "created": now(), "model": self._model}
        return json_reply({**head, "data": rows, "usage": self._tokens})


# The first path of each is in the OpenAPI document.
ROUTES = [
    *(
        Route("POST", path, rerank, "Order texts by their closeness to a query", RerankRequest, documented=i == 0)
        for i, path in enumerate(("/v1/rerank", "/rerank", "/v2/rerank"))
    ),
    *(
        Route("POST", path, score, "Closeness of texts", ScoreRequest, documented=i == 0)
        for i, path in enumerate(("/v1/score", "/score"))
    ),
]
