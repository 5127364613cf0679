"""OpenAI's Agents SDK, with its chat and its responses model, against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from client_cases import CALLING, MODEL, QUESTION, QUIET, Animal, City, Days, whole_answer
from octavo import LLM
from servers import KEY, Process

agents = pytest.importorskip("agents", reason="OpenAI's Agents SDK: pip install '.[test-clients]'")

from openai.types.responses import ResponseReasoningItem, ResponseTextDeltaEvent  # noqa: E402

pytestmark = QUIET
# It would send traces to OpenAI.
agents.set_tracing_disabled(True)
MODELS = ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"]
RUNNER = asyncio.Runner()
CLIENTS: list[openai.AsyncOpenAI] = []


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    """All clients live in one event loop, which closes them."""

    async def close() -> None:
        for client in CLIENTS:
            await client.close()

    with RUNNER:
        yield
        RUNNER.run(close())


def settings(**more: Any) -> Any:
    return agents.ModelSettings(temperature=0, max_tokens=200, **more)


def agent(server: Process, kind: str, key: str = KEY, model: str = MODEL, **more: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)
    CLIENTS.append(client)
    made = getattr(agents, kind)(model=model, openai_client=client)
    return agents.Agent(**{"name": "helper", "model": made, "model_settings": settings(), **more})


def run(made: Any, question: str = QUESTION) -> Any:
    return RUNNER.run(agents.Runner.run(made, question))


def streamed(made: Any, question: str = QUESTION) -> tuple[Any, list[Any]]:
    async def collect() -> tuple[Any, list[Any]]:
        result = agents.Runner.run_streamed(made, question)
        return result, [event async for event in result.stream_events()]

    return RUNNER.run(collect())


def weather(calls: list[Any]) -> Any:
    @agents.function_tool
    def weather(city: City, days: Days) -> str:
        """The weather in a city for some days."""
        calls.append((city, days))
        return f"{days} sunny days in {city}"

    return weather


@pytest.mark.parametrize("kind", MODELS)
def test_text_whole_and_streamed(server: Process, llm: LLM, kind: str) -> None:
    answer = whole_answer(llm, max_tokens=200)
    whole = run(agent(server, kind))
    assert whole.final_output == answer
    usage = whole.raw_responses[0].usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0
    result, events = streamed(agent(server, kind))
    assert result.final_output == answer
    deltas = [e.data.delta for e in events if isinstance(getattr(e, "data", None), ResponseTextDeltaEvent)]
    assert "".join(deltas) == answer


@pytest.mark.parametrize("kind", MODELS)
def test_typed_output(server: Process, kind: str) -> None:
    made = agent(server, kind, output_type=Animal)
    whole = run(made).final_output
    assert isinstance(whole, Animal)
    assert streamed(made)[0].final_output == whole


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_tool_then_the_answer(server: Process, kind: str, typed: bool, choice: str) -> None:
    calls: list[Any] = []
    made = agent(
        server,
        kind,
        tools=[weather(calls)],
        model_settings=settings(tool_choice=choice, parallel_tool_calls=False),
        output_type=Animal if typed else None,
    )
    whole = run(made, "Weather in Paris?")
    names = [type(item).__name__ for item in whole.new_items]
    assert names[:2] == ["ToolCallItem", "ToolCallOutputItem"]
    assert isinstance(whole.final_output, Animal if typed else str)
    ((city, days),) = calls
    assert city in ("Paris", "Rome")
    assert days in (1, 2, 3)
    result, events = streamed(made, "Weather in Paris?")
    assert calls == [(city, days)] * 2, "streamed as whole"
    assert result.final_output == whole.final_output
    assert {"tool_called", "tool_output"} <= {getattr(e, "name", "") for e in events}


@pytest.mark.parametrize("kind", MODELS)
def test_tools_that_may_stay_unused(server: Process, kind: str) -> None:
    made = agent(server, kind, tools=[weather([])], output_type=Animal)
    assert isinstance(run(made).final_output, Animal)


@pytest.mark.parametrize("kind", MODELS)
def test_handoff(server: Process, kind: str) -> None:
    other = agent(server, kind, name="other", handoff_description="Answers all.")
    first = agent(server, kind, handoffs=[other], model_settings=settings(tool_choice="transfer_to_other"))
    result = run(first)
    assert result.last_agent.name == "other"
    assert [type(item).__name__ for item in result.new_items][:2] == ["HandoffCallItem", "HandoffOutputItem"]


@pytest.mark.parametrize("kind", MODELS)
def test_errors_keep_their_kind(server: Process, kind: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        run(agent(server, kind, key="wrong"))
    with pytest.raises(openai.NotFoundError):
        run(agent(server, kind, model="absent"))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        run(agent(server, kind, model_settings=agents.ModelSettings(temperature=5)))


def test_a_tool_may_be_called_beside_a_typed_output(server: Process) -> None:
    """With `output_type` and tools the model chooses: a call, or the answer in the schema."""
    calls: list[Any] = []
    biased = settings(extra_body={"logit_bias": CALLING})
    made = agent(server, MODELS[0], tools=[weather(calls)], output_type=Animal, model_settings=biased)
    made.tool_use_behavior = "stop_on_first_tool"
    result = run(made, "Weather in Paris?")
    assert calls
    assert type(result.new_items[0]).__name__ == "ToolCallItem"


@pytest.mark.parametrize("kind", MODELS)
def test_reasoning(thinking: Process, kind: str) -> None:
    """A template that opens the reasoning: the reasoning is an item of its own, and a typed output comes after it."""
    made = agent(thinking, kind, output_type=Animal)
    result = run(made)
    assert isinstance(result.final_output, Animal)
    items = [item for response in result.raw_responses for item in response.output]
    assert any(isinstance(item, ResponseReasoningItem) for item in items) or kind == MODELS[0]
    assert streamed(made)[0].final_output == result.final_output
