"""POST /v1/embeddings, by the official client and by hand."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import openai
import pytest
from octavo import LLM
from octavo.server import Limits, ServerConfig, create_app, create_wsgi_app
from servers import KEY, Process, uvicorn_in_thread, wait_until
from starlette.testclient import TestClient

MODEL = "octavo-embedded"
TEXTS = ["Once upon a time", "One day", "a"]


def near(found: list[float], want: list[float]) -> bool:
    return found == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_the_official_client(client: openai.OpenAI, llm: LLM, encoding: Any) -> None:
    want = [o.embedding for o in llm.embed(TEXTS, use_tqdm=False)]
    options = {} if encoding is None else {"encoding_format": encoding}
    done = client.embeddings.create(model=MODEL, input=TEXTS, **options)
    assert done.object == "list"
    assert done.model == MODEL
    assert [d.index for d in done.data] == [0, 1, 2]
    assert done.usage.prompt_tokens == done.usage.total_tokens == sum(len(llm.tokenize(t)) for t in TEXTS)
    for row, vector in zip(done.data, want, strict=True):
        found: Any = row.embedding
        if encoding == "base64":
            # Asked for by name, the client hands it on as it is.
            raw = base64.b64decode(found)
            found = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        assert near(found, vector)


def test_every_kind_of_input(client: openai.OpenAI, llm: LLM) -> None:
    ids = llm.tokenize(TEXTS[0])
    (want,) = (o.embedding for o in llm.embed(TEXTS[0]))
    inputs: list[Any] = [TEXTS[0], [TEXTS[0]], ids, [ids]]
    for given in inputs:
        (row,) = client.embeddings.create(model=MODEL, input=given).data
        assert near(row.embedding, want), given
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=16).data[0].embedding
    assert near(short, llm.embed(TEXTS[0], dimensions=16)[0].embedding)
    more = {"pooling": "last", "normalize": False}
    last = client.embeddings.create(model=MODEL, input=TEXTS[0], extra_body=more).data[0].embedding
    assert last == pytest.approx(llm.embed(TEXTS[0], **more)[0].embedding, rel=1e-6)


def test_async_client(server: Process, llm: LLM) -> None:
    import asyncio

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            calls = (client.embeddings.create(model=MODEL, input=f"Text {i}") for i in range(8))
            found = [done.data[0].embedding for done in await asyncio.gather(*calls)]
        want = [o.embedding for o in llm.embed([f"Text {i}" for i in range(8)], use_tqdm=False)]
        assert all(near(a, b) for a, b in zip(found, want, strict=True))

    asyncio.run(run())


def test_floats_are_written_so_that_each_comes_back(client: openai.OpenAI, server: Process, llm: LLM) -> None:
    body = {"input": TEXTS[0], "encoding_format": "float"}
    text = httpx.post(f"{server.url}/v1/embeddings", json=body, headers={"Authorization": f"Bearer {KEY}"}).text
    found = json.loads(text)["data"][0]["embedding"]
    as_float32 = [struct.unpack("f", struct.pack("f", x))[0] for x in found]
    assert as_float32 == llm.embed(TEXTS[0])[0].embedding


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": [""]}, "input", None),
        ({"input": [[]]}, "input", None),
        ({"input": ["a", 3]}, "input[1]", None),
        ({"input": [10**9]}, "input", None),
        ({"input": ["a"] * 2049}, "input", None),
        ({"input": "word " * 6000}, "input", "context_length_exceeded"),
        ({"input": [[5] * 5000]}, "input", "context_length_exceeded"),
        ({"input": None}, "input", None),
        ({"dimensions": 0}, "dimensions", None),
        ({"dimensions": 100_000}, "dimensions", None),
        ({"encoding_format": "hex"}, "encoding_format", None),
        ({"pooling": "max"}, "pooling", None),
        ({"model": "other"}, "model", "model_not_found"),
    ],
)
def test_errors(llm: LLM, change: dict[str, Any], param: str, code: str | None) -> None:
    found = TestClient(create_app(llm)).post("/v1/embeddings", json={"input": "a", **change})
    assert found.status_code == (404 if code == "model_not_found" else 400), found.text
    error = found.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error


def test_both_coats_give_the_same(llm: LLM) -> None:
    from werkzeug.test import Client

    body = {"input": TEXTS, "encoding_format": "base64"}
    asgi = TestClient(create_app(llm)).post("/v1/embeddings", json=body)
    wsgi = Client(create_wsgi_app(llm)).post("/v1/embeddings", json=body)
    assert asgi.status_code == wsgi.status_code == 200
    assert asgi.json() == wsgi.json


def test_more_inputs_than_the_queue_takes() -> None:
    # More run at once than may wait: the queue is full before the batch is.
    with LLM(max_num_seqs=8, max_queue=2) as llm:
        client = TestClient(create_app(llm, ServerConfig(limits=Limits(embedding_inputs=60))))
        found = client.post("/v1/embeddings", json={"input": [f"Text {i}" for i in range(60)]})
        assert found.status_code == 200, found.text
        want = llm.embed([f"Text {i}" for i in range(60)], use_tqdm=False)
        for row, output in zip(found.json()["data"], want, strict=True):
            assert near(row["embedding"], output.embedding)
        assert client.post("/v1/embeddings", json={"input": ["a"] * 61}).status_code == 400


def test_a_client_that_leaves_ends_its_batch() -> None:
    with LLM(max_num_seqs=1) as llm, uvicorn_in_thread(create_app(llm)) as url:
        before = llm.stats()["requests"]["finished"]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/embeddings", json={"input": [[i % 200] * 2500 for i in range(300)]}, timeout=0.5)
        wait_until(lambda: llm.stats()["requests"]["running"] == 0, "it is cancelled")
        assert llm.stats()["requests"]["finished"] - before < 300, "the rest was never begun"
        assert llm.stats()["blocks"]["live"] == 0


def test_keys_do_not_share_hits(llm: LLM) -> None:
    client = TestClient(create_app(llm, ServerConfig(api_keys=("one", "two"))))
    ids = [11] * 100

    def hits(key: str) -> int:
        before = llm.stats()["cached_prompt_tokens"]
        body = {"input": ids, "pooling": "last"}
        assert client.post("/v1/embeddings", json=body, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        return int(llm.stats()["cached_prompt_tokens"] - before)

    assert (hits("one"), hits("one") > 0, hits("two")) == (0, True, 0)
