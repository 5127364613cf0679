"""instructor's modes against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import openai
import pytest
from client_cases import MODEL, QUIET, TURNS, WIDE, Animal, City, Days
from pydantic import BaseModel, field_validator
from servers import KEY, Process

instructor = pytest.importorskip("instructor", reason="instructor: pip install '.[test-clients]'")

from instructor.core import IncompleteOutputException, InstructorRetryException  # noqa: E402

pytestmark = QUIET
MODES = ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"]
# The embedded model closes an object as soon as it may: no key begins.
CLOSING = {"logit_bias": {"95": 100, "413": -100}}


class Weather(BaseModel):
    """The weather in a city for some days."""

    city: City
    days: Days


class Loose(BaseModel):
    """An object that may be empty."""

    ok: bool | None = None


def ask(client: openai.OpenAI, mode: str, **more: Any) -> Any:
    made = instructor.from_openai(client, mode=instructor.Mode[mode])
    # An output of text has no "retries": a failure is a failure.
    fields = {"model": MODEL, "messages": list(TURNS), "max_retries": 0, **WIDE, **more}
    return made.chat.completions.create(**fields)


@pytest.mark.parametrize("mode", MODES)
def test_an_object(client: openai.OpenAI, mode: str) -> None:
    found = ask(client, mode, response_model=Animal)
    assert isinstance(found, Animal)
    assert found.model_dump() == ask(client, mode, response_model=Animal).model_dump(), "greedy"
    usage = found._raw_response.usage
    assert usage.total_tokens > 0


@pytest.mark.parametrize("mode", MODES)
def test_partial_objects(client: openai.OpenAI, mode: str) -> None:
    made = instructor.from_openai(client, mode=instructor.Mode[mode])
    parts = list(made.chat.completions.create_partial(model=MODEL, messages=list(TURNS), response_model=Animal, **WIDE))
    assert parts
    last = Animal.model_validate(parts[-1].model_dump())
    for part in parts:
        assert last.kind.startswith(part.kind or "")
        assert part.legs in (None, last.legs)


def test_a_stream_of_objects(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client, mode=instructor.Mode.RESPONSES_TOOLS)
    found = made.chat.completions.create_iterable(model=MODEL, messages=list(TURNS), response_model=Animal, **WIDE)
    assert all(isinstance(a, Animal) for a in found)


def test_modes_that_only_say_json(client: openai.OpenAI) -> None:
    """JSON sends `json_object` and its schema as text; MD_JSON expects a fenced block."""
    assert ask(client, "JSON", response_model=Loose, extra_body=CLOSING).ok is None
    fenced = {"structured_outputs": {"regex": '```json\n\\{"kind": "(cat|dog)", "legs": [0-8]\\}\n```'}}
    assert isinstance(ask(client, "MD_JSON", response_model=Animal, extra_body=fenced), Animal)


def test_parallel_tools(client: openai.OpenAI) -> None:
    # instructor asks for "auto" itself, and leaves it to the model.
    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    kinds = Iterable[Animal | Weather]
    found = list(ask(client, "PARALLEL_TOOLS", response_model=kinds, extra_body=forced))
    assert found
    assert all(isinstance(item, (Animal, Weather)) for item in found)


@pytest.mark.parametrize("mode", MODES)
def test_a_retry_sends_the_fault_back(client: openai.OpenAI, mode: str) -> None:
    seen: list[str] = []

    class Fussy(Animal):
        @field_validator("kind")
        @classmethod
        def second(cls, kind: str) -> str:
            seen.append(kind)
            if len(seen) == 1:
                raise ValueError("say it again")
            return kind

    assert isinstance(ask(client, mode, response_model=Fussy, max_retries=2), Fussy)
    assert len(seen) == 2


def test_async(server: Process) -> None:
    async def run() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            made = instructor.from_openai(client)
            fields = {"model": MODEL, "messages": list(TURNS), "response_model": Animal, **WIDE}
            whole = await made.chat.completions.create(**fields)
            return whole, [part async for part in made.chat.completions.create_partial(**fields)]

    whole, parts = asyncio.run(run())
    assert isinstance(whole, Animal)
    Animal.model_validate(parts[-1].model_dump())


def test_errors(client: openai.OpenAI, server: Process) -> None:
    with pytest.raises(IncompleteOutputException):
        ask(client, "JSON_SCHEMA", response_model=Animal, max_tokens=3)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises((openai.AuthenticationError, InstructorRetryException), match=r"401|key"),
    ):
        ask(stranger, "TOOLS", response_model=Animal)


@pytest.fixture(scope="module")
def thinker(thinking: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinking.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize("mode", MODES)
def test_an_object_after_the_reasoning(thinker: openai.OpenAI, mode: str) -> None:
    assert isinstance(ask(thinker, mode, response_model=Animal, max_tokens=400), Animal)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_many_objects_from_an_open_schema(client: openai.OpenAI, mode: str) -> None:
    made = instructor.from_openai(client, mode=instructor.Mode[mode])
    fields = {"model": MODEL, "messages": list(TURNS), **WIDE, "max_tokens": 400}
    found = made.chat.completions.create_iterable(response_model=Animal, **fields)
    assert all(isinstance(a, Animal) for a in found)
