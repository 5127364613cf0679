"""The official client's helpers (parse, stream, raw responses, async) against a real server process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from client_cases import GREEDY, MODEL, QUESTION, TURNS, WIDE, Animal, City, Days, whole_answer
from octavo import LLM
from pydantic import BaseModel
from servers import KEY, Process

ASK: Any = {"model": MODEL, "messages": TURNS}


class Weather(BaseModel):
    """The weather in a city for some days."""

    city: City
    days: Days


TOOL = openai.pydantic_function_tool(Weather)
FLAT = {"type": "function", **TOOL["function"]}
NAMED: Any = {"type": "function", "function": {"name": "Weather"}}


@pytest.fixture(scope="module")
def thinker(thinking: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinking.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def test_parse(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(**ASK, **WIDE, response_format=Animal)
    assert isinstance(done.choices[0].message.parsed, Animal)
    done = client.chat.completions.parse(**ASK, **WIDE, tools=[TOOL], tool_choice=NAMED, parallel_tool_calls=False)
    (call,) = done.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    assert done.choices[0].finish_reason in ("stop", "tool_calls")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASK, temperature=0, max_tokens=3, response_format=Animal)


def test_stream_helper(client: openai.OpenAI, llm: LLM) -> None:
    with client.chat.completions.stream(**ASK, **GREEDY, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(e.delta for e in events if e.type == "content.delta") == whole_answer(llm)
    assert final.choices[0].message.content == whole_answer(llm)
    assert final.usage.completion_tokens > 0
    with client.chat.completions.stream(**ASK, **WIDE, response_format=Animal) as stream:
        final = stream.until_done().get_final_completion()
    assert (
        final.choices[0].message.parsed
        == client.chat.completions.parse(**ASK, **WIDE, response_format=Animal).choices[0].message.parsed
    )
    with client.chat.completions.stream(**ASK, **WIDE, tools=[TOOL], tool_choice=NAMED) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert all(isinstance(c.function.parsed_arguments, Weather) for c in final.choices[0].message.tool_calls)


def test_streamed_calls_equal_whole_ones(client: openai.OpenAI) -> None:
    forced = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**ASK, **WIDE, **forced).choices[0]
    pieces: dict[int, list[str]] = {}
    names = []
    for chunk in client.chat.completions.create(**ASK, **WIDE, **forced, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            pieces.setdefault(call.index, []).append(call.function.arguments or "")
            names += [call.function.name] if call.function.name else []
    assert whole.finish_reason == "tool_calls"
    assert names == [c.function.name for c in whole.message.tool_calls] == ["Weather"]
    assert ["".join(p) for p in pieces.values()] == [c.function.arguments for c in whole.message.tool_calls]


def test_responses_helpers(client: openai.OpenAI, llm: LLM) -> None:
    fields: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 200}
    assert client.responses.create(**fields).output_text == whole_answer(llm, max_tokens=200)
    parsed = client.responses.parse(**fields, text_format=Animal)
    assert isinstance(parsed.output_parsed, Animal)
    with client.responses.stream(**fields, text_format=Animal) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == final.output_text
    assert [e.sequence_number for e in events if hasattr(e, "sequence_number")] == sorted(
        e.sequence_number for e in events if hasattr(e, "sequence_number")
    )
    called = client.responses.parse(
        **fields, tools=[FLAT], tool_choice={"type": "function", "name": "Weather"}, parallel_tool_calls=False
    )
    (call,) = [item for item in called.output if item.type == "function_call"]
    Weather.model_validate_json(call.arguments)
    # The result goes back to the model.
    again = client.responses.create(
        **{**fields, "input": [
            {"role": "user", "content": QUESTION},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ]},
        tools=[FLAT],
    )  # fmt: skip
    assert again.status in ("completed", "incomplete")


def test_completions_stream(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": ["Once upon a time", "One day"], **GREEDY, "n": 2, "seed": 1}
    whole = client.completions.create(**fields)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_embeddings_in_both_forms(client: openai.OpenAI) -> None:
    texts = ["A cat.", "Two dogs."]
    # The client asks for base64 unless a form is given, and decodes it.
    packed = client.embeddings.create(model=MODEL, input=texts)
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    for a, b in zip(packed.data, plain.data, strict=True):
        assert np.allclose(a.embedding, b.embedding, atol=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0


def test_raw_and_streaming_responses(client: openai.OpenAI, llm: LLM) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASK, **GREEDY)
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content == whole_answer(llm)
    with client.chat.completions.with_streaming_response.create(**ASK, **GREEDY) as response:
        assert json.loads(b"".join(response.iter_bytes()))["object"] == "chat.completion"
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_async(server: Process, llm: LLM) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            many = await asyncio.gather(*(client.chat.completions.create(**ASK, **GREEDY) for _ in range(4)))
            assert {done.choices[0].message.content for done in many} == {whole_answer(llm)}
            parsed = await client.chat.completions.parse(**ASK, **WIDE, response_format=Animal)
            assert isinstance(parsed.choices[0].message.parsed, Animal)
            stream = await client.responses.create(model=MODEL, input=QUESTION, temperature=0, stream=True)
            kinds = [event.type async for event in stream]
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
            found = await client.embeddings.create(model=MODEL, input="x")
            assert len(found.data) == 1

    asyncio.run(run())


def test_reasoning(thinker: openai.OpenAI) -> None:
    """A template that opens the reasoning: what comes before its end mark is no answer."""
    ask: Any = {**ASK, **GREEDY, "extra_body": {"ignore_eos": True}}
    done = thinker.chat.completions.create(**ask)
    whole = done.choices[0].message
    assert whole.reasoning_content
    assert whole.content
    assert 0 < done.usage.completion_tokens_details.reasoning_tokens < done.usage.completion_tokens
    streamed = {"reasoning_content": "", "content": ""}
    for chunk in thinker.chat.completions.create(**ask, stream=True):
        for name in streamed:
            streamed[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert streamed == {name: getattr(whole, name) for name in streamed}
    fields: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 48}
    response = thinker.responses.create(**fields)
    assert response.output[0].type == "reasoning"
    assert response.output[0].content[0].text == whole.reasoning_content
    assert response.usage.output_tokens_details.reasoning_tokens > 0


ERRORS: list[tuple[type[openai.APIStatusError], dict[str, Any], str]] = [
    (openai.BadRequestError, {"temperature": 5}, "temperature"),
    (openai.BadRequestError, {"messages": []}, "messages"),
    (openai.BadRequestError, {"max_tokens": "7"}, "max_tokens"),
    (openai.NotFoundError, {"model": "absent"}, "absent"),
]


@pytest.mark.parametrize(("kind", "given", "match"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_keep_their_kind(
    client: openai.OpenAI, kind: type[openai.APIStatusError], given: dict[str, Any], match: str, stream: bool
) -> None:
    with pytest.raises(kind, match=match):
        client.chat.completions.create(**{**ASK, **given}, stream=stream)


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": Animal.model_json_schema()},
            }
        },
        {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
        {"extra_body": {"structured_outputs": {"regex": "(yes|no)"}}},
    ],
)
def test_constraints_hold_the_answer_behind_the_reasoning(thinker: openai.OpenAI, constraint: dict[str, Any]) -> None:
    ask = {**ASK, "temperature": 0, "max_tokens": 400, **constraint}
    whole = thinker.chat.completions.create(**ask).choices[0].message
    assert whole.content
    streamed = list(thinker.chat.completions.create(**ask, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == whole.content


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_calls_behind_the_reasoning(thinker: openai.OpenAI, choice: Any) -> None:
    done = thinker.chat.completions.create(
        **ASK, temperature=0, max_tokens=400, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False
    ).choices[0]
    assert done.message.tool_calls
    Weather.model_validate_json(done.message.tool_calls[0].function.arguments)
