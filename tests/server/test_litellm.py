"""LiteLLM against a real server process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from octavo import LLM, SamplingParams
from pydantic import BaseModel, Field
from servers import KEY, Process

# It would fetch its list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm", reason="LiteLLM: pip install '.[test-clients]'")

# Of LiteLLM and what it needs, not of octavo.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]
TURNS = [{"role": "user", "content": "Who are you?"}]
FIELDS = {"temperature": 0, "max_tokens": 24}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Animal(BaseModel):
    """An animal."""

    kind: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


@pytest.fixture(scope="module")
def where(server: Process) -> dict[str, Any]:
    return {
        "model": "openai/octavo-embedded",
        "api_base": f"{server.url}/v1",
        "api_key": KEY,
        "num_retries": 0,
        "timeout": 60,
    }


@pytest.fixture(scope="module")
def answer(llm: LLM) -> str:
    return llm.chat(TURNS, SamplingParams(**FIELDS), use_tqdm=False)[0].text


def test_chat_and_streams(where: dict[str, Any], answer: str) -> None:
    whole = litellm.completion(messages=TURNS, **FIELDS, **where)
    assert whole.choices[0].message.content == answer
    assert whole.usage.completion_tokens > 0
    chunks = list(
        litellm.completion(messages=TURNS, stream=True, stream_options={"include_usage": True}, **FIELDS, **where)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    rebuilt = litellm.stream_chunk_builder(chunks, messages=TURNS)
    assert rebuilt.choices[0].message.content == answer
    assert rebuilt.usage.total_tokens == whole.usage.total_tokens

    async def run() -> list[str]:
        done = await litellm.acompletion(messages=TURNS, **FIELDS, **where)
        stream = await litellm.acompletion(messages=TURNS, stream=True, **FIELDS, **where)
        return [done.choices[0].message.content, "".join([c.choices[0].delta.content or "" async for c in stream])]

    assert asyncio.run(run()) == [answer, answer]


def test_text_completion(where: dict[str, Any], llm: LLM) -> None:
    want = llm.generate("Once upon a time", SamplingParams(**FIELDS), use_tqdm=False)[0].text
    path = {**where, "model": "text-completion-openai/octavo-embedded"}
    assert litellm.text_completion(prompt="Once upon a time", **FIELDS, **path).choices[0].text == want


def test_tools(where: dict[str, Any]) -> None:
    wanted = {"messages": TURNS, "tools": [TOOL], "temperature": 0, "max_tokens": 200, "parallel_tool_calls": False}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        said = litellm.completion(tool_choice=choice, **wanted, **where).choices[0]
        assert said.finish_reason == "tool_calls"
        for call in said.message.tool_calls:
            assert call.function.name == "weather"
            arguments = json.loads(call.function.arguments)
            assert set(arguments) == {"city", "days"}
            assert type(arguments["days"]) is int
    chunks = list(litellm.completion(tool_choice="required", stream=True, **wanted, **where))
    built = litellm.stream_chunk_builder(chunks).choices[0].message
    assert json.loads(built.tool_calls[0].function.arguments).keys() == {"city", "days"}


def test_structured_output(where: dict[str, Any]) -> None:
    said = litellm.completion(messages=TURNS, response_format=Animal, temperature=0, max_tokens=200, **where)
    Animal.model_validate_json(said.choices[0].message.content)


def test_embeddings(where: dict[str, Any], llm: LLM) -> None:
    texts = ["A cat.", "Two dogs, and a bird."]
    want = [np.asarray(output.embedding) for output in llm.embed(texts, use_tqdm=False)]
    for form in ("float", "base64"):
        found = litellm.embedding(**where, input=texts, encoding_format=form)
        assert [row["index"] for row in found.data] == [0, 1]
        rows = [row["embedding"] for row in found.data]
        if form == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(rows, want, strict=True))
        assert found.usage.prompt_tokens > 0
    again = asyncio.run(litellm.aembedding(**where, input=texts[:1]))
    assert np.allclose(again.data[0]["embedding"], want[0], atol=1e-6)


def test_errors_keep_their_kind(where: dict[str, Any]) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=TURNS, **{**where, "api_key": "wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=TURNS, **{**where, "model": "openai/absent"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=TURNS, temperature=5, **where)


def test_example(server: Process) -> None:
    program = Path(__file__).parents[2] / "examples" / "litellm_chat.py"
    done = subprocess.run(
        [sys.executable, str(program), server.url],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OCTAVO_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].removeprefix("answer: ") == lines[1].removeprefix("stream: ")
