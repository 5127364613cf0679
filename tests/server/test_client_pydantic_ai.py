"""pydantic-ai with its OpenAI and Anthropic models against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from client_cases import CALLING, MODEL, QUESTION, QUIET, Animal, City, Days, whole_answer
from octavo import LLM
from servers import KEY, Process

anthropic = pytest.importorskip("anthropic", reason="Anthropic's client: pip install '.[test-clients]'")
pytest.importorskip("pydantic_ai", reason="pydantic-ai: pip install '.[test-clients]'")

import pydantic_ai.models.anthropic as of_anthropic  # noqa: E402
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput  # noqa: E402
from pydantic_ai.messages import ThinkingPart  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.profiles.openai import OpenAIModelProfile  # noqa: E402
from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

pytestmark = QUIET
MODELS = ["chat", "responses", "anthropic"]
OUTPUTS = [NativeOutput, ToolOutput]
# Its model of Anthropic has native output only for names that it knows.
FORMS = [(kind, form) for kind in MODELS for form in OUTPUTS if (kind, form) != ("anthropic", NativeOutput)]
RUNNER = asyncio.Runner()
CLIENTS: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def typed_dicts() -> Iterator[None]:
    """anthropic 2 made a union of a type that pydantic-ai 2.38 still calls."""
    with pytest.MonkeyPatch.context() as patch:
        if not isinstance(of_anthropic.BetaMessageParam, type):
            patch.setattr(of_anthropic, "BetaMessageParam", dict)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    """All clients live in one event loop, which closes them."""

    async def close() -> None:
        for client in CLIENTS:
            await client.close()

    with RUNNER:
        yield
        RUNNER.run(close())


def agent(server: Process, kind: str, key: str = KEY, model: str = MODEL, **more: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 200, "parallel_tool_calls": False, **more.pop("settings", {})}
    return Agent(model_of(server, kind, key, model), model_settings=settings, retries=1, **more)


def model_of(server: Process, kind: str, key: str, model: str) -> Any:
    if kind == "anthropic":
        other = anthropic.AsyncAnthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)
        CLIENTS.append(other)
        return of_anthropic.AnthropicModel(model, provider=AnthropicProvider(anthropic_client=other))
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)
    CLIENTS.append(client)
    # It takes every name that begins with "o" for a reasoning model of OpenAI's.
    profile = OpenAIModelProfile(openai_supports_reasoning=False)
    cls = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    return cls(model, provider=OpenAIProvider(openai_client=client), profile=profile)


def with_weather(made: Any) -> list[Any]:
    calls: list[Any] = []

    @made.tool_plain
    def weather(city: City, days: Days) -> str:
        """The weather in a city for some days."""
        calls.append((city, days))
        return f"{days} sunny days in {city}"

    return calls


def run(made: Any, question: str = QUESTION) -> Any:
    return RUNNER.run(made.run(question))


def streamed_output(made: Any, question: str = QUESTION) -> list[Any]:
    async def collect() -> list[Any]:
        async with made.run_stream(question) as result:
            return [output async for output in result.stream_output(debounce_by=None)]

    return RUNNER.run(collect())


@pytest.mark.parametrize("kind", MODELS)
def test_text_whole_and_streamed(server: Process, llm: LLM, kind: str) -> None:
    answer = whole_answer(llm, max_tokens=200)
    made = agent(server, kind)
    whole = run(made)
    assert whole.output == answer
    assert whole.usage.output_tokens > 0

    async def collect() -> str:
        async with made.run_stream(QUESTION) as result:
            return "".join([text async for text in result.stream_text(delta=True, debounce_by=None)])

    assert RUNNER.run(collect()) == answer


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_typed_output(server: Process, kind: str, form: Any) -> None:
    made = agent(server, kind, output_type=form(Animal))
    whole = run(made).output
    assert isinstance(whole, Animal)
    assert streamed_output(made)[-1] == whole


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_tools_beside_a_typed_output(server: Process, kind: str, form: Any) -> None:
    made = agent(server, kind, output_type=form(Animal))
    with_weather(made)
    assert isinstance(run(made, "Weather in Paris?").output, Animal)


@pytest.mark.parametrize("kind", MODELS)
def test_a_tool_is_called(server: Process, kind: str) -> None:
    forced: Any = {"type": "any", "disable_parallel_tool_use": True} if kind == "anthropic" else "required"
    made = agent(server, kind, settings={"extra_body": {"tool_choice": forced}})
    ((city, days),) = until_called(made, with_weather(made))
    assert city in ("Paris", "Rome")
    assert days in (1, 2, 3)


def until_called(made: Any, calls: list[Any]) -> list[Any]:
    """Runs until the tool has run: it is asked for at every turn."""

    async def steps() -> None:
        async with made.iter("Weather in Paris?") as nodes:
            async for _ in nodes:
                if calls:
                    break

    RUNNER.run(steps())
    return calls


@pytest.mark.parametrize("kind", MODELS)
def test_errors_keep_their_kind(server: Process, kind: str) -> None:
    for status, given in ((401, {"key": "wrong"}), (404, {"model": "absent"}), (400, {"settings": {"temperature": 5}})):
        with pytest.raises(ModelHTTPError) as caught:
            run(agent(server, kind, **given))
        assert caught.value.status_code == status


def test_a_tool_may_be_called_beside_a_native_output(server: Process) -> None:
    made = agent(server, "chat", output_type=NativeOutput(Animal), settings={"logit_bias": CALLING})
    assert until_called(made, with_weather(made))


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_typed_output_after_the_reasoning(thinking: Process, kind: str, form: Any) -> None:
    made = agent(thinking, kind, output_type=form(Animal), settings={"max_tokens": 400})
    whole = run(made)
    assert isinstance(whole.output, Animal)
    parts = [part for message in whole.all_messages() for part in message.parts]
    assert any(isinstance(part, ThinkingPart) for part in parts)
    assert streamed_output(made)[-1] == whole.output
