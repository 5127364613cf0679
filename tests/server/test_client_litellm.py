"""LiteLLM's other routes against a real server process: Responses, Anthropic, vLLM, rerank, reasoning."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from client_cases import GREEDY, MODEL, QUESTION, QUIET, TOOL, TURNS, WIDE, Animal, whole_answer
from octavo import LLM
from servers import KEY, Process

# It would fetch its list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm", reason="LiteLLM: pip install '.[test-clients]'")

pytestmark = QUIET
ROUTES = ["openai", "hosted_vllm", "anthropic"]


def where(server: Process, route: str, **more: Any) -> dict[str, Any]:
    base = server.url if route == "anthropic" else f"{server.url}/v1"
    return {"model": f"{route}/{MODEL}", "api_base": base, "api_key": KEY, "num_retries": 0, "timeout": 60, **more}


@pytest.mark.parametrize("route", ROUTES)
def test_text_whole_and_streamed(server: Process, llm: LLM, route: str) -> None:
    whole = litellm.completion(messages=TURNS, **GREEDY, **where(server, route))
    assert whole.choices[0].message.content == whole_answer(llm)
    assert whole.usage.completion_tokens > 0
    chunks = litellm.completion(messages=TURNS, stream=True, **GREEDY, **where(server, route))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole_answer(llm)


@pytest.mark.parametrize("route", ROUTES)
def test_a_forced_tool(server: Process, route: str) -> None:
    ask = {"messages": TURNS, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **WIDE}
    said = litellm.completion(**ask, **where(server, route)).choices[0]
    assert said.finish_reason == "tool_calls"
    (call,) = said.message.tool_calls
    assert call.function.name == "weather"
    chunks = list(litellm.completion(**ask, stream=True, **where(server, route)))
    (streamed,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments) == json.loads(call.function.arguments)


@pytest.mark.parametrize("route", ROUTES)
def test_a_typed_answer(server: Process, route: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": Animal.model_json_schema(), "strict": True}}
    for wanted in (Animal, form):
        said = litellm.completion(messages=TURNS, response_format=wanted, **WIDE, **where(server, route)).choices[0]
        Animal.model_validate_json(said.message.content)


@pytest.mark.parametrize("route", ROUTES)
def test_errors_keep_their_kind(server: Process, route: str) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=TURNS, **where(server, route, api_key="wrong"))
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=TURNS, **where(server, route, model=f"{route}/absent"))


def test_responses(server: Process, llm: LLM) -> None:
    fields = {"input": QUESTION, "temperature": 0, "max_output_tokens": 48}
    whole = litellm.responses(**fields, **where(server, "openai"))
    assert whole.output[0].content[0].text == whole_answer(llm)
    events = list(litellm.responses(**fields, stream=True, **where(server, "openai")))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == whole_answer(llm)


def test_rerank_and_embeddings(server: Process) -> None:
    there = where(server, "hosted_vllm")
    asked = {name: there[name] for name in ("model", "api_base", "api_key")}
    found = litellm.rerank(query="a cat", documents=["the sun", "a cat", "a dog"], **asked)
    assert found.results[0]["index"] == 1
    scores = [row["relevance_score"] for row in found.results]
    assert scores == sorted(scores, reverse=True)
    assert len(litellm.embedding(input=["a", "b"], **there).data) == 2


def test_reasoning(thinking: Process) -> None:
    said = litellm.completion(messages=TURNS, response_format=Animal, **WIDE, **where(thinking, "openai")).choices[0]
    assert said.message.reasoning_content
    Animal.model_validate_json(said.message.content)
