"""/v1/rerank and /v1/score: the cosines of what /v1/embeddings gives."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from octavo import LLM
from octavo.server import ServerConfig, create_app
from octavo.server.config import Limits
from servers import KEY, Process
from starlette.testclient import TestClient

QUERY = "A cat."
DOCUMENTS = ["The sea is wide.", "A cat sleeps.", "A cat.", "Numbers"]


@pytest.fixture
def client(llm: LLM) -> TestClient:
    return TestClient(create_app(llm))


def cosines(client: TestClient, first: list[str], second: list[str], **options: Any) -> list[float]:
    found = client.post("/v1/embeddings", json={"input": first + second, **options}).json()["data"]
    vectors = np.array([row["embedding"] for row in found])
    return list((vectors[: len(first)] * vectors[len(first) :]).sum(axis=1))


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_are_ordered_by_their_cosine(client: TestClient, path: str) -> None:
    found = client.post(path, json={"query": QUERY, "documents": DOCUMENTS}).json()
    wanted = cosines(client, [QUERY], DOCUMENTS)
    scores = {row["index"]: row["relevance_score"] for row in found["results"]}
    assert [scores[i] for i in range(4)] == pytest.approx(wanted, abs=1e-5)
    ordered = [row["relevance_score"] for row in found["results"]]
    assert ordered == sorted(ordered, reverse=True)
    assert found["results"][0]["index"] == 2, "the same text is the closest"
    assert all(row["document"]["text"] == DOCUMENTS[row["index"]] for row in found["results"])
    assert found["model"] == "octavo-embedded"
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0


def test_options_of_a_rerank(client: TestClient) -> None:
    given: list[Any] = [{"text": "A cat."}, {"content": [{"type": "text", "text": "The sea"}]}, "A dog."]
    body = {"query": QUERY, "documents": given, "top_n": 2, "return_documents": False, "pooling": "last"}
    found = client.post("/v1/rerank", json=body).json()["results"]
    assert len(found) == 2
    assert not any("document" in row for row in found)
    texts = ["A cat.", "The sea", "A dog."]
    wanted = sorted(cosines(client, [QUERY], texts, pooling="last"), reverse=True)[:2]
    assert [row["relevance_score"] for row in found] == pytest.approx(wanted, abs=1e-5)
    assert len(client.post("/v1/rerank", json={"query": "a", "documents": ["b"], "top_n": 9}).json()["results"]) == 1
    assert len(client.post("/v1/rerank", json={"query": "a", "documents": ["b"], "top_n": 0}).json()["results"]) == 1


def test_texts_are_truncated_on_request(client: TestClient) -> None:
    long = "A cat sleeps. " * 2000
    body = {"query": QUERY, "documents": [long], "truncate_prompt_tokens": 8}
    found = client.post("/v1/rerank", json=body).json()
    assert found["usage"]["prompt_tokens"] <= 16
    wanted = cosines(client, [QUERY], [long], truncate_prompt_tokens=8)
    assert [row["relevance_score"] for row in found["results"]] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A cat.", "A dog."),
        ("A cat.", ["A dog.", "The sea"]),
        (["A", "cat"], ["A dog.", "The sea"]),
        (["A"], ["b", "c"]),
    ],
)
def test_scores(client: TestClient, path: str, first: Any, second: Any) -> None:
    found = client.post(path, json={"text_1": first, "text_2": second}).json()
    one, other = ([t] if isinstance(t, str) else t for t in (first, second))
    wanted = cosines(client, one, other)
    assert [row["score"] for row in found["data"]] == pytest.approx(wanted, abs=1e-5)
    assert [row["index"] for row in found["data"]] == list(range(len(other)))
    assert found["object"] == "list"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/rerank", {"query": "a", "documents": ["a", ""]}, "documents"),
        ("/rerank", {"query": "a", "documents": [{"title": "a"}]}, "documents[0]"),
        ("/rerank", {"query": "a", "documents": [{"content": [{"type": "image_url"}]}]}, "documents[0]"),
        ("/rerank", {"query": "a", "documents": ["x"] * 99}, "documents"),
        ("/rerank", {"query": "a", "documents": ["x " * 3000]}, "documents"),
        ("/rerank", {"query": "a", "documents": ["x"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": ["x"], "max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ("/rerank", {"query": "a", "documents": [{"a": "x"}], "rank_fields": ["a"]}, "rank_fields"),
        ("/rerank", {"query": "a", "documents": ["x"], "instruction": "i"}, "instruction"),
        ("/rerank", {"documents": ["x"]}, "query"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_1"),
        ("/score", {"text_1": "a"}, "text_2"),
    ],
)
def test_what_is_refused(llm: LLM, path: str, body: Any, named: str) -> None:
    client = TestClient(create_app(llm, ServerConfig(limits=Limits(embedding_inputs=50))))
    found = client.post(path, json=body)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["param"] == named
    assert "input" not in error["message"].split(":")[0]


@pytest.mark.filterwarnings("ignore")
def test_litellm(server: Process) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = pytest.importorskip("litellm", reason="LiteLLM: pip install '.[test-clients]'")
    found = litellm.rerank(
        model="hosted_vllm/octavo-embedded",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=2,
        api_base=f"{server.url}/v1",
        api_key=KEY,
    )
    assert found.results[0]["index"] == 2
    assert found.results[0]["document"]["text"] == DOCUMENTS[2]
    assert len(found.results) == 2
