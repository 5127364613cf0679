"""The official client against a real server process."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from octavo import LLM, SamplingParams
from servers import KEY, Process

MODEL = "octavo-embedded"
TURN = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"temperature": 0, "max_tokens": 24}


def turn(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def answer(llm: LLM) -> str:
    """What the engine itself says to TURN."""
    return llm.chat(TURN, SamplingParams(**GREEDY), use_tqdm=False)[0].text


@pytest.fixture(scope="module")
def continuation(llm: LLM) -> str:
    return llm.generate("Once upon a time", SamplingParams(**GREEDY), use_tqdm=False)[0].text


def test_chat(client: openai.OpenAI, answer: str) -> None:
    done = client.chat.completions.create(model=MODEL, messages=TURN, **GREEDY)
    (choice,) = done.choices
    assert choice.message.content == answer
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.model == MODEL
    assert done._request_id


def test_chat_stream(client: openai.OpenAI, answer: str) -> None:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=TURN, stream=True, stream_options=options, **GREEDY)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == answer
    assert [c.choices[0].finish_reason for c in chunks[:-1]].count(None) == len(chunks) - 2, "one terminal chunk"
    assert chunks[-2].choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_chat_async(server: Process, answer: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            whole = client.chat.completions.create(model=MODEL, messages=TURN, **GREEDY)

            async def streamed() -> str:
                stream = await client.chat.completions.create(model=MODEL, messages=TURN, stream=True, **GREEDY)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            done, *texts = await asyncio.gather(whole, *(streamed() for _ in range(8)))
            assert done.choices[0].message.content == answer
            assert texts == [answer] * 8

    asyncio.run(run())


def test_chat_samples_and_logprobs(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "logprobs": True, "top_logprobs": 2, "temperature": 1}
    done = client.chat.completions.create(model=MODEL, messages=TURN, max_tokens=9, **options)
    assert [c.index for c in done.choices] == [0, 1, 2]
    for choice in done.choices:
        rows = choice.logprobs.content
        assert "".join(r.token for r in rows).startswith(choice.message.content)
        assert all(len(r.top_logprobs) == 2 and r.logprob <= 0 for r in rows)
        assert all(bytes(r.bytes) == r.token.encode() for r in rows)
    stream = client.chat.completions.create(model=MODEL, messages=TURN, max_tokens=9, stream=True, **options)
    texts, tokens = ["", "", ""], [[], [], []]
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [c.message.content for c in done.choices]
    assert [[t.token for t in row] for row in tokens] == [[t.token for t in c.logprobs.content] for c in done.choices]


def test_completions(client: openai.OpenAI, continuation: str, llm: LLM) -> None:
    done = client.completions.create(model=MODEL, prompt="Once upon a time", **GREEDY)
    assert done.choices[0].text == continuation
    ids = llm.tokenize("Once upon a time")
    many = client.completions.create(model=MODEL, prompt=[ids, ids], n=2, **GREEDY)
    assert [c.text for c in many.choices] == [continuation] * 4
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    assert many.usage.prompt_tokens == 2 * len(ids)
    texts = client.completions.create(model=MODEL, prompt=["Once upon a time", "One day"], **GREEDY)
    assert texts.choices[0].text == continuation
    assert texts.choices[1].text != continuation


def test_completions_stream(client: openai.OpenAI, continuation: str) -> None:
    stream = client.completions.create(model=MODEL, prompt=["Once upon a time"] * 3, stream=True, **GREEDY)
    texts, ends = ["", "", ""], 0
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends += chunk.choices[0].finish_reason is not None
    assert (texts, ends) == ([continuation] * 3, 3)


def test_echo_and_logprobs(client: openai.OpenAI, llm: LLM) -> None:
    prompt = "Once upon a time"
    done = client.completions.create(model=MODEL, prompt=prompt, echo=True, logprobs=3, max_tokens=4, temperature=0)
    (choice,) = done.choices
    found = choice.logprobs
    assert choice.text.startswith(prompt)
    assert "".join(found.tokens) == choice.text
    assert [choice.text[o:].startswith(t) for o, t in zip(found.text_offset, found.tokens, strict=True)] == [True] * 8
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=3, prompt_logprobs=3)
    want = llm.generate(prompt, params, use_tqdm=False)[0]
    rows = [next(iter(r.values())) for r in [*want.prompt_logprobs[1:], *want.outputs[0].logprobs]]
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx([r.logprob for r in rows], abs=1e-6)
    assert all(3 <= len(top) <= 4 for top in found.top_logprobs[1:])
    # The prompt alone, as harnesses score it.
    alone = client.completions.create(model=MODEL, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    assert alone.choices[0].text == prompt
    assert alone.choices[0].logprobs.token_logprobs == found.token_logprobs[:4]
    assert alone.usage.completion_tokens == 0


def test_best_of(client: openai.OpenAI) -> None:
    """The best of many has the highest mean log-probability of them all."""
    common: dict[str, Any] = {"model": MODEL, "prompt": "One day", "max_tokens": 6, "seed": 3, "temperature": 1}
    every = client.completions.create(n=6, logprobs=0, **common)
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in every.choices]
    ranked = sorted(zip(means, [c.text for c in every.choices], strict=True), reverse=True)
    assert len({text for _, text in ranked}) > 2
    best = client.completions.create(n=2, best_of=6, **common)
    assert [c.text for c in best.choices] == [text for _, text in ranked[:2]]


def test_stop_and_vllm_fields(client: openai.OpenAI, llm: LLM, continuation: str) -> None:
    stop = " " + continuation.split()[3]
    done = client.completions.create(
        model=MODEL, prompt="Once upon a time", stop=[stop], extra_body={"return_token_ids": True}, **GREEDY
    )
    (choice,) = done.choices
    assert choice.text == continuation.split(stop)[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert choice.prompt_token_ids == llm.tokenize("Once upon a time")
    first = llm.tokenize(continuation)[0]
    done = client.completions.create(
        model=MODEL, prompt="Once upon a time", extra_body={"stop_token_ids": [first], "top_k": 5}, **GREEDY
    )
    assert (done.choices[0].text, done.choices[0].stop_reason) == ("", first)
    long = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=60, extra_body={"ignore_eos": True, "min_tokens": 60}
    )
    assert long.usage.completion_tokens == 60


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("change", "error", "param", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "temperature", None),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens", None),
        ({"n": 1000}, openai.BadRequestError, "n", None),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", None),
        ({"logit_bias": {"70000": 1}}, openai.BadRequestError, "logit_bias", None),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop", None),
        ({"messages": turn("word " * 6000)}, openai.BadRequestError, "messages", "context_length_exceeded"),
        ({"messages": turn([{"type": "image_url"}])}, openai.BadRequestError, "messages[0].content[0]", None),
    ],
)  # fmt: skip
def test_errors(
    client: openai.OpenAI, change: dict[str, Any], error: type[openai.APIStatusError], param: str, code: str | None
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": TURN, "max_tokens": 4, **change})
    body: Any = caught.value.body
    assert (body["param"], body["code"]) == (param, code), body
    assert caught.value.request_id


def test_a_bad_key_is_an_authentication_error(server: Process) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_content_parts_and_developer_role(client: openai.OpenAI, answer: str) -> None:
    parts = [{"type": "text", "text": "Who are you?"}]
    done = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}], **GREEDY)
    assert done.choices[0].message.content == answer
    messages = [{"role": "developer", "content": "Be kind."}, *TURN]
    assert client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3).choices
