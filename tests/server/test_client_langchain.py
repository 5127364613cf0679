"""LangChain's OpenAI client with tools, formats and reasoning together, against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from client_cases import CALLING, MODEL, QUESTION, QUIET, Animal, City, Days
from servers import KEY, Process

langchain_openai = pytest.importorskip("langchain_openai", reason="LangChain: pip install '.[test-clients]'")

from langchain_core.messages import HumanMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402

pytestmark = QUIET
APIS = [False, True]
METHODS = ["json_schema", "function_calling"]
RUNNER = asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    """LangChain keeps its connections for all models of equal address and timeout: they need one event loop."""
    with RUNNER:
        yield


@tool
def weather(city: City, days: Days) -> str:
    """The weather in a city for some days."""
    return f"{days} sunny days in {city}"


def model(server: Process, **more: Any) -> Any:
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 200, "max_retries": 0, "timeout": 61, **more}
    return langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key=KEY, **fields)


@pytest.mark.parametrize("responses", APIS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strict", [None, True])
def test_typed_output(server: Process, responses: bool, method: str, strict: bool | None) -> None:
    made = model(server, use_responses_api=responses).with_structured_output(
        Animal, method=method, strict=strict, include_raw=True
    )
    found = made.invoke(QUESTION)
    assert isinstance(found["parsed"], Animal), found
    assert found["parsing_error"] is None
    assert RUNNER.run(made.ainvoke(QUESTION))["parsed"] == found["parsed"]


@pytest.mark.parametrize("responses", APIS)
def test_a_loop_of_tools_with_a_typed_end(server: Process, responses: bool) -> None:
    made = model(server, use_responses_api=responses)
    said = made.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke("Weather in Paris?")
    (call,) = said.tool_calls
    turns = [
        HumanMessage("Weather in Paris?"),
        said,
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    last = made.with_structured_output(Animal, method="json_schema").invoke(turns)
    assert isinstance(last, Animal)


def test_a_tool_may_be_called_beside_a_format(server: Process) -> None:
    bound = {"response_format": Animal, "strict": True, "parallel_tool_calls": False}
    said = model(server).bind_tools([weather], **bound).invoke("Weather in Paris?", extra_body={"logit_bias": CALLING})
    assert [call["name"] for call in said.tool_calls] == ["weather"]
    said = (
        model(server)
        .bind_tools([weather], **bound)
        .invoke("Weather in Paris?", extra_body={"logit_bias": {"30": -100}})
    )
    assert isinstance(said.additional_kwargs["parsed"], Animal)


@pytest.mark.parametrize("responses", APIS)
def test_streamed_calls(server: Process, responses: bool) -> None:
    made = model(server, use_responses_api=responses).bind_tools(
        [weather], tool_choice="any", parallel_tool_calls=False
    )
    whole = made.invoke("Weather in Paris?")
    built = None
    for piece in made.stream("Weather in Paris?"):
        built = piece if built is None else built + piece
    assert [c["args"] for c in built.tool_calls] == [c["args"] for c in whole.tool_calls]

    async def run() -> Any:
        pieces = [piece async for piece in made.astream("Weather in Paris?")]
        return sum(pieces[1:], pieces[0])

    assert [c["args"] for c in RUNNER.run(run()).tool_calls] == [c["args"] for c in whole.tool_calls]


@pytest.mark.parametrize("responses", APIS)
@pytest.mark.parametrize("method", METHODS)
def test_typed_output_after_the_reasoning(thinking: Process, responses: bool, method: str) -> None:
    made = model(thinking, use_responses_api=responses).with_structured_output(Animal, method=method)
    assert isinstance(made.invoke(QUESTION), Animal)
