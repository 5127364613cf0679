"""vLLM's fields: allowed_token_ids, truncate_prompt_tokens, continuous_usage_stats, return_tokens_as_token_ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from octavo import LLM, Grammar, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.server import create_app
from starlette.testclient import TestClient

MODEL = "octavo-embedded"
TEXT = "Once upon a time there was a small owl who lived in the old mill by the river."
TURN: Any = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def http(llm: LLM) -> Iterator[TestClient]:
    with TestClient(create_app(llm)) as client:
        yield client


def chunks(http: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


# --- allowed_token_ids


def test_only_allowed_tokens_come(llm: LLM) -> None:
    ids = sorted(set(llm.tokenize(TEXT)))
    free = llm.generate(TEXT, SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].token_ids
    assert not set(free) <= set(ids)
    held = SamplingParams(allowed_token_ids=ids, n=4, temperature=5.0, seed=1, max_tokens=12)
    outputs = llm.generate([TEXT, "x"], held, use_tqdm=False)
    for sample in (s for output in outputs for s in output.outputs):
        assert set(sample.token_ids) <= set(ids)
        assert (len(sample.token_ids), sample.finish_reason) == (12, "length")
    one = SamplingParams(allowed_token_ids=[ids[0]], temperature=0, max_tokens=3)
    assert llm.generate("x", one)[0].outputs[0].token_ids == [ids[0]] * 3


def test_allowed_tokens_change_nothing_for_others(llm: LLM) -> None:
    plain = SamplingParams(temperature=0, max_tokens=12)
    held = SamplingParams(allowed_token_ids=llm.tokenize(TEXT), temperature=0, max_tokens=12)
    alone = [llm.generate(TEXT, params)[0].outputs[0].token_ids for params in (plain, held)]
    together = llm.generate([TEXT] * 4, [plain, held] * 2, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in together] == alone * 2


def test_allowed_tokens_and_other_rules(llm: LLM) -> None:
    a, b = llm.tokenize("ab", add_special_tokens=False)[:1], llm.tokenize("b", add_special_tokens=False)
    both = SamplingParams(allowed_token_ids=a + b, logit_bias={b[0]: 100.0}, temperature=0, max_tokens=2)
    assert llm.generate("x", both)[0].outputs[0].token_ids == b * 2
    # A structure is met with allowed tokens, or the request fails.
    digits = [i for c in "0123456789" for i in llm.tokenize(c, add_special_tokens=False)]
    grammar = Grammar("start: /[0-9a-z]{6}/")
    held = SamplingParams(structured=grammar, allowed_token_ids=digits, temperature=3.0, seed=2)
    assert llm.generate("x", held)[0].text.isdecimal()
    with pytest.raises(InvalidRequestError, match="allowed_token_ids leaves no token"):
        llm.generate("x", SamplingParams(structured=Grammar('start: "?"'), allowed_token_ids=digits))


@pytest.mark.parametrize("wrong", [[], [10**6], ["a"], [-1], 3])
def test_wrong_allowed_tokens(llm: LLM, http: TestClient, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="allowed_token_ids"):
        llm.generate("x", SamplingParams(allowed_token_ids=wrong, max_tokens=2))
    answer = http.post("/v1/completions", json={"prompt": "x", "allowed_token_ids": wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("allowed_token_ids")


def test_allowed_tokens_with_the_official_client(llm: LLM, client: openai.OpenAI) -> None:
    ids = llm.tokenize(" owl", add_special_tokens=False)
    body = {"allowed_token_ids": ids, "return_token_ids": True}
    chat = client.chat.completions.create(model=MODEL, messages=TURN, max_tokens=5, extra_body=body)
    assert set(chat.choices[0].token_ids) <= set(ids)  # type: ignore[attr-defined]
    done = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=5, extra_body=body)
    assert set(done.choices[0].token_ids) <= set(ids)  # type: ignore[attr-defined]


# --- truncate_prompt_tokens


def test_the_last_tokens_of_a_prompt_stay(llm: LLM, http: TestClient) -> None:
    ids = llm.tokenize(TEXT)
    ask = {"max_tokens": 1, "return_token_ids": True, "truncate_prompt_tokens": 5}
    for prompt in (TEXT, ids):
        answer = http.post("/v1/completions", json={"prompt": prompt, "echo": True, **ask}).json()
        assert answer["choices"][0]["prompt_token_ids"] == ids[-5:]
        assert answer["usage"]["prompt_tokens"] == 5
        assert answer["choices"][0]["text"].startswith(llm.detokenize(ids[-5:]))
    chat = http.post("/v1/chat/completions", json={"messages": TURN, **ask}).json()
    whole = http.post("/v1/chat/completions", json={"messages": TURN, "max_tokens": 1, "return_token_ids": True}).json()
    assert chat["prompt_token_ids"] == whole["prompt_token_ids"][-5:]
    short = http.post("/v1/completions", json={"prompt": "x", **ask}).json()
    assert short["choices"][0]["prompt_token_ids"] == llm.tokenize("x")


def test_minus_one_leaves_room_for_the_answer(llm: LLM, http: TestClient) -> None:
    context = llm.info()["limits"]["max_model_len"]
    ids = llm.tokenize("a b " * context)
    ask = {"prompt": ids, "max_tokens": 7, "ignore_eos": True, "return_token_ids": True}
    assert http.post("/v1/completions", json=ask).status_code == 400
    answer = http.post("/v1/completions", json={**ask, "truncate_prompt_tokens": -1}).json()
    assert answer["choices"][0]["prompt_token_ids"] == ids[-(context - 7) :]
    assert answer["usage"]["completion_tokens"] == 7


def test_embeddings_of_the_last_tokens(llm: LLM, http: TestClient, client: openai.OpenAI) -> None:
    ids = llm.tokenize(TEXT)
    cut = http.post("/v1/embeddings", json={"input": [TEXT, "x"], "truncate_prompt_tokens": 5}).json()
    same = http.post("/v1/embeddings", json={"input": [ids[-5:], llm.tokenize("x")]}).json()
    assert cut["data"] == same["data"]
    assert cut["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]
    long = "a b " * llm.info()["limits"]["max_model_len"]
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input=long)
    done = client.embeddings.create(model=MODEL, input=long, extra_body={"truncate_prompt_tokens": -1})
    assert done.usage.prompt_tokens == llm.info()["limits"]["max_model_len"]


@pytest.mark.parametrize("wrong", [0, -2, 10**6, "a", 1.5])
@pytest.mark.parametrize(
    ("path", "body"),
    [("completions", {"prompt": "x"}), ("chat/completions", {"messages": TURN}), ("embeddings", {"input": "x"})],
)
def test_wrong_truncations(http: TestClient, path: str, body: dict[str, Any], wrong: Any) -> None:
    answer = http.post(f"/v1/{path}", json={**body, "truncate_prompt_tokens": wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "truncate_prompt_tokens"


# --- stream_options.continuous_usage_stats


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": TEXT}), ("/v1/chat/completions", {"messages": TURN})],
)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("more", [{}, {"n": 2}, {"return_token_ids": True}])
def test_every_chunk_has_the_usage(
    http: TestClient, path: str, body: dict[str, Any], include: bool, more: dict[str, Any]
) -> None:
    options = {"continuous_usage_stats": True, "include_usage": include}
    ask = {**body, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **more}
    found = chunks(http, path, **ask, stream_options=options)
    whole = http.post(path, json=ask).json()["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts == sorted(counts)
    assert all(c["usage"]["prompt_tokens"] == whole["prompt_tokens"] for c in found)
    assert all(c["usage"]["total_tokens"] == whole["prompt_tokens"] + n for c, n in zip(found, counts, strict=True))
    assert counts[-1] == whole["completion_tokens"]
    assert [c["choices"] == [] for c in found] == [False] * (len(found) - 1) + [include]


# --- return_tokens_as_token_ids


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_named_by_id(http: TestClient, stream: bool) -> None:
    ask = {"max_tokens": 4, "temperature": 0, "return_tokens_as_token_ids": True, "return_token_ids": True}
    body = {"prompt": TEXT, "echo": True, "logprobs": 2, **ask}
    if stream:
        choices = [c["choices"][0] for c in chunks(http, "/v1/completions", **body)]
    else:
        choices = [http.post("/v1/completions", json=body).json()["choices"][0]]
    ids = choices[0]["prompt_token_ids"] + [i for c in choices for i in c["token_ids"]]
    assert [t for c in choices for t in c["logprobs"]["tokens"]] == [f"token_id:{i}" for i in ids]
    top = [t for c in choices for t in c["logprobs"]["top_logprobs"]]
    assert all(f"token_id:{i}" in row for i, row in zip(ids[1:], top[1:], strict=True))
    assert top[0] is None
    chat = {"messages": TURN, "logprobs": True, "top_logprobs": 2, **ask}
    if stream:
        found = [c["choices"][0] for c in chunks(http, "/v1/chat/completions", **chat)]
    else:
        found = [http.post("/v1/chat/completions", json=chat).json()["choices"][0]]
    rows = [row for c in found for row in (c["logprobs"] or {"content": []})["content"]]
    assert [row["token"] for row in rows] == [f"token_id:{i}" for c in found for i in c["token_ids"]]
    assert all(top["token"].startswith("token_id:") for row in rows for top in row["top_logprobs"])
