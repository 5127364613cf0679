"""Many clients, of whom some leave in the middle: nothing is lost, doubled or kept."""

from __future__ import annotations

import asyncio
import json
import os
import random

import httpx
from octavo import LLM
from octavo.server import create_app
from servers import memory_bytes, uvicorn_in_thread, wait_until

CLIENTS, REQUESTS = 64, 20
GROWTH_BYTES = 64 << 20


async def one(client: httpx.AsyncClient, url: str, draw: random.Random, counts: dict[str, int]) -> None:
    """One request: read to its end, or left after some lines, or before any."""
    stream, leave = draw.random() < 0.7, draw.random() < 0.3
    n = draw.choice([1, 1, 1, 3])
    if draw.random() < 0.1:
        await embed(client, url, draw, leave, counts)
        return
    chat = draw.random() < 0.5
    body = {"max_tokens": draw.randint(1, 60), "stream": stream, "n": n, "ignore_eos": True, "seed": draw.randint(0, 9)}
    body |= {"messages": [{"role": "user", "content": "Hello " * draw.randint(1, 60)}]} if chat else {"prompt": "Once"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    if leave:
        counts["left"] += 1
        try:
            async with asyncio.timeout(draw.random() * 0.3):
                async with client.stream("POST", url + path, json=body) as answer:
                    async for _ in answer.aiter_lines():
                        if draw.random() < 0.1:
                            return
        except (TimeoutError, httpx.HTTPError):
            pass
        return
    async with client.stream("POST", url + path, json=body) as answer:
        if answer.status_code == 429:
            counts["full"] += 1
            await answer.aread()
            return
        assert answer.status_code == 200, await answer.aread()
        if not stream:
            whole = json.loads(await answer.aread())
            assert [c["finish_reason"] for c in whole["choices"]] == ["length"] * n
            assert whole["usage"]["completion_tokens"] == n * body["max_tokens"]
        else:
            # Comments say that a stream lives; a busy machine makes it need them.
            lines = [line async for line in answer.aiter_lines() if line and not line.startswith(":")]
            assert lines.count("data: [DONE]") == 1
            assert lines[-1] == "data: [DONE]"
            choices = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
            ends = sorted(c["index"] for c in choices if c["finish_reason"] is not None)
            assert ends == list(range(n)), "one terminal event per sample"
    counts["done"] += 1


async def embed(client: httpx.AsyncClient, url: str, draw: random.Random, leave: bool, counts: dict[str, int]) -> None:
    """Embeddings of more inputs than run at once; the client leaves, or reads the answer."""
    inputs = ["Hello " * draw.randint(1, 60) for _ in range(draw.randint(1, 90))]
    counts["left" if leave else "done"] += 1
    counts["inputs"] += len(inputs)
    try:
        async with asyncio.timeout(draw.random() * 0.1 if leave else 120):
            answer = await client.post(f"{url}/v1/embeddings", json={"input": inputs})
    except TimeoutError:
        assert leave
        return
    assert answer.status_code in (200, 429), answer.text
    if answer.status_code == 200:
        assert [row["index"] for row in answer.json()["data"]] == list(range(len(inputs)))


def all_free(llm: LLM) -> None:
    def free() -> bool:
        stats = llm.stats()
        blocks, requests = stats["blocks"], stats["requests"]
        return requests["running"] == requests["waiting"] == blocks["live"] == 0

    wait_until(free, "all blocks are free")
    blocks = llm.stats()["blocks"]
    assert blocks["free"] + blocks["cached"] == blocks["total"]


def test_a_crowd_with_random_disconnects() -> None:
    # A cache that the first requests fill: memory is taken from the system as blocks are first written.
    with LLM(kv_cache_memory="24MiB") as llm:
        visit(llm)


def visit(llm: LLM) -> None:
    """Many clients, twice; the second time must not take more memory."""
    seed = 20240611
    counts = {"done": 0, "left": 0, "full": 0, "inputs": 0}

    async def crowd(url: str, requests: int) -> None:
        async def client_of(number: int) -> None:
            draw = random.Random(seed * 1000 + number)
            async with httpx.AsyncClient(timeout=120) as client:
                for _ in range(requests):
                    await one(client, url, draw, counts)

        await asyncio.gather(*(client_of(i) for i in range(CLIENTS)))

    with uvicorn_in_thread(create_app(llm)) as url:
        asyncio.run(crowd(url, 4))
        all_free(llm)
        before = memory_bytes(os.getpid())
        started = llm.stats()["requests"]["finished"]
        asyncio.run(crowd(url, REQUESTS))
        all_free(llm)
        growth = memory_bytes(os.getpid()) - before
        assert growth < GROWTH_BYTES, f"{growth >> 20} MiB more (seed {seed})"
    assert counts["done"] > CLIENTS * REQUESTS / 2
    assert counts["left"] > CLIENTS
    # Every request that was begun has ended exactly once.
    finished = llm.stats()["requests"]["finished"] - started
    assert finished <= CLIENTS * REQUESTS + counts["inputs"]
