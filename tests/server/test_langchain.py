"""LangChain through its OpenAI client, against a real server process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import openai
import pytest
from octavo import LLM, SamplingParams
from pydantic import BaseModel, Field
from servers import KEY, Process

langchain_openai = pytest.importorskip("langchain_openai", reason="LangChain: pip install '.[test-clients]'")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402

# Of LangChain and what it needs, not of octavo.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
QUESTION = "Who are you?"
PARAMS = SamplingParams(temperature=0, max_tokens=24)


def chat_model(server: Process, **more: Any) -> Any:
    fields = {"model": "octavo-embedded", "temperature": 0, "max_tokens": 24, "max_retries": 0, **more}
    return langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key=KEY, **fields)


@pytest.fixture(scope="module")
def model(server: Process) -> Any:
    return chat_model(server)


@pytest.fixture(scope="module")
def answer(llm: LLM) -> str:
    return llm.chat([{"role": "user", "content": QUESTION}], PARAMS, use_tqdm=False)[0].text


@tool
def weather(city: Literal["Paris", "Rome"], days: Annotated[int, Field(ge=1, le=7)]) -> str:
    """The weather in a city for some days."""
    return f"{days} sunny days in {city}"


def test_chat(model: Any, answer: str, llm: LLM) -> None:
    said = model.invoke(QUESTION)
    assert said.content == answer
    assert said.usage_metadata["output_tokens"] > 0
    assert said.response_metadata["finish_reason"] in ("stop", "length")
    turns = [SystemMessage("Be brief."), HumanMessage(QUESTION), AIMessage("I am."), HumanMessage("Why?")]
    want = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    want += [{"role": "assistant", "content": "I am."}, {"role": "user", "content": "Why?"}]
    assert model.invoke(turns).content == llm.chat(want, PARAMS, use_tqdm=False)[0].text
    assert [a.content for a in model.batch([QUESTION] * 5)] == [answer] * 5


def test_streams(server: Process, model: Any, answer: str) -> None:
    pieces = list(model.stream(QUESTION, stream_usage=True))
    assert "".join(p.content for p in pieces) == answer
    assert sum((p.usage_metadata or {}).get("output_tokens", 0) for p in pieces) > 0

    # LangChain closes no connection of its own: one of an event loop that has ended would stay open.
    async def run() -> list[str]:
        async with httpx.AsyncClient() as http:
            made = chat_model(server, http_async_client=http)
            whole = (await made.ainvoke(QUESTION)).content
            return [whole, "".join([p.content async for p in made.astream(QUESTION)])]

    assert asyncio.run(run()) == [answer, answer]


@pytest.mark.parametrize("choice", ["weather", "any"])
def test_tools(model: Any, choice: str) -> None:
    caller = model.bind_tools([weather], tool_choice=choice, max_tokens=200)
    said = caller.invoke("How is the weather in Paris?")
    assert said.tool_calls
    for call in said.tool_calls:
        assert call["name"] == "weather"
        weather.args_schema.model_validate(call["args"], strict=True)
    whole = None
    for piece in caller.stream("How is the weather in Paris?"):
        whole = piece if whole is None else whole + piece
    assert [c["args"] for c in whole.tool_calls] == [c["args"] for c in said.tool_calls]
    # The result goes back to the model.
    result = ToolMessage(weather.invoke(said.tool_calls[0]["args"]), tool_call_id=said.tool_calls[0]["id"])
    again = model.bind_tools([weather]).invoke([HumanMessage("How is the weather in Paris?"), said, result])
    assert isinstance(again, AIMessage)


class Animal(BaseModel):
    """An animal."""

    kind: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: Any, method: str) -> None:
    wide = model.model_copy(update={"max_tokens": 200})
    found = wide.with_structured_output(Animal, method=method).invoke("Describe a cat.")
    assert isinstance(found, Animal)


def test_responses_api(server: Process, answer: str) -> None:
    assert chat_model(server, use_responses_api=True).invoke(QUESTION).text == answer


def test_embeddings(server: Process, llm: LLM) -> None:
    texts = ["A cat.", "Two dogs, and a bird.", ""]
    fields = {
        "base_url": f"{server.url}/v1",
        "api_key": KEY,
        "model": "octavo-embedded",
        "max_retries": 0,
        # Else LangChain sends the tokens of OpenAI's tokenizer.
        "check_embedding_ctx_length": False,
    }
    model = langchain_openai.OpenAIEmbeddings(**fields)
    want = [np.asarray(output.embedding) for output in llm.embed(texts[:2], use_tqdm=False)]
    found = model.embed_documents(texts[:2])
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, want, strict=True))
    assert np.allclose(model.embed_query(texts[0]), want[0], atol=1e-6)

    async def run() -> list[float]:
        async with httpx.AsyncClient() as http:
            made = langchain_openai.OpenAIEmbeddings(http_async_client=http, **fields)
            return await made.aembed_query(texts[1])

    assert np.allclose(asyncio.run(run()), want[1], atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="empty"):
        model.embed_documents(texts)


def test_errors_keep_their_kind(server: Process) -> None:
    import openai

    model = langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key="wrong", model="octavo-embedded")
    with pytest.raises(openai.AuthenticationError):
        model.invoke(QUESTION)


def test_example(server: Process) -> None:
    program = Path(__file__).parents[2] / "examples" / "langchain_chat.py"
    done = subprocess.run(
        [sys.executable, str(program), server.url],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OCTAVO_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    assert "tool: weather ['city', 'days']" in done.stdout
    assert "object: Animal" in done.stdout
