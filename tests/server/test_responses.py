"""The Responses API through the official client."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pytest
from octavo import LLM, SamplingParams
from pydantic import BaseModel
from servers import KEY, Process

MODEL = "octavo-embedded"
GREEDY: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Corrin", "Brackwell"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def answer(llm: LLM) -> str:
    turns = [{"role": "user", "content": "Who are you?"}]
    return llm.chat(turns, SamplingParams(max_tokens=24, temperature=0), use_tqdm=False)[0].text


def test_create(client: openai.OpenAI, answer: str) -> None:
    done = client.responses.create(input="Who are you?", **GREEDY)
    assert done.output_text == answer
    assert done.status in ("completed", "incomplete")
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]}]
    assert client.responses.create(input=parts, **GREEDY).output_text == answer
    short = client.responses.create(input="Tell me a story.", model=MODEL, max_output_tokens=3)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert client.responses.create(input="Hello", instructions="Be kind.", **GREEDY).store
    assert not client.responses.create(input="Hello", store=False, **GREEDY).store


def test_stream(client: openai.OpenAI, answer: str) -> None:
    events = list(client.responses.create(input="Who are you?", stream=True, **GREEDY))
    kinds = [e.type for e in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer
    assert events[-1].response.output_text == answer
    with client.responses.stream(input="Who are you?", **GREEDY | {"max_output_tokens": 300}) as stream:
        assert stream.get_final_response().output_text.startswith(answer)


def test_tools(client: openai.OpenAI) -> None:
    call: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    done = client.responses.create(input="The weather?", **GREEDY | {"max_output_tokens": 200}, **call)
    (item,) = done.output
    assert (item.type, item.name) == ("function_call", "weather")
    assert json.loads(item.arguments)["city"] in ("Corrin", "Brackwell")
    more = GREEDY | {"max_output_tokens": 200}
    named = {**call, "tool_choice": {"type": "function", "name": "weather"}}
    events = list(client.responses.create(input="The weather?", stream=True, **more, **named))
    arguments = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert json.loads(arguments) == json.loads(events[-1].response.output[0].arguments)
    # The result goes back with the next call.
    turns: Any = [
        {"role": "user", "content": "The weather?"},
        {"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": item.arguments},
        {"type": "function_call_output", "call_id": item.call_id, "output": "sun"},
    ]
    assert client.responses.create(input=turns, **GREEDY).output_text is not None


def test_parse(client: openai.OpenAI) -> None:
    class Town(BaseModel):
        name: Literal["Corrin", "Juneford"]

    done = client.responses.parse(input="A town?", text_format=Town, **GREEDY)
    assert isinstance(done.output_parsed, Town)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"instructions": "y", "input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"input": "word " * 6000}, "input"),
    ],
)
def test_errors(server: Process, fields: dict[str, Any], param: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    found = httpx.post(
        f"{server.url}/v1/responses", json={"input": "x", "max_output_tokens": 3, **fields}, headers=headers
    )
    assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text
