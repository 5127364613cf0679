"""Anthropic's own client against a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from octavo import LLM, SamplingParams
from pydantic import BaseModel
from servers import KEY, Process

anthropic = pytest.importorskip("anthropic", reason="Anthropic's client: pip install '.[test-clients]'")

MODEL = "octavo-embedded"
TURNS: Any = [{"role": "user", "content": "Who are you?"}]
# The client has no parameters for sampling: they go into the body.
GREEDY: Any = {"model": MODEL, "max_tokens": 32, "extra_body": {"temperature": 0}}
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


class Animal(BaseModel):
    kind: Literal["cat", "dog"]
    wild: bool


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def answer(llm: LLM) -> str:
    """What the engine itself says to TURNS."""
    return llm.chat(TURNS, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)[0].text


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_message(client: Any, answer: str) -> None:
    found = client.messages.create(messages=TURNS, **GREEDY)
    assert text_of(found) == answer
    assert (found.type, found.role, found.model, found.stop_reason) == ("message", "assistant", MODEL, "end_turn")
    assert found.id.startswith("msg_")
    assert found.usage.output_tokens == 32
    assert found._request_id


def test_count_tokens_is_what_a_message_uses(client: Any) -> None:
    parts: Any = {"messages": TURNS, "system": "Be brief.", "tools": [WEATHER], "model": MODEL}
    counted = client.messages.count_tokens(**parts)
    used = client.messages.create(max_tokens=1, **parts).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
    fresh: Any = {"messages": [{"role": "user", "content": "Counted once, never seen before."}], "model": MODEL}
    assert client.messages.count_tokens(**fresh).input_tokens == (
        client.messages.create(max_tokens=1, **fresh).usage.input_tokens
    )


def test_cached_tokens_are_counted_apart(client: Any) -> None:
    ask: Any = {"messages": [{"role": "user", "content": "Tell me of the harbour. " * 20}], **GREEDY}
    first = client.messages.create(**ask).usage
    second = client.messages.create(**ask).usage
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens > 0
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens


def test_stream(client: Any, answer: str) -> None:
    with client.messages.stream(messages=TURNS, **GREEDY) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        found = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert text_of(found) == answer
    assert found.stop_reason == "end_turn"
    assert found.usage.output_tokens == 32
    assert found.usage.input_tokens + found.usage.cache_read_input_tokens > 0


def test_raw_stream_and_async(server: Process, client: Any, answer: str) -> None:
    raw = list(client.messages.create(messages=TURNS, stream=True, **GREEDY))
    assert raw[0].message.usage.input_tokens > 0
    assert raw[0].message.content == []
    assert raw[-2].delta.stop_reason == "end_turn"

    async def run() -> str:
        made = anthropic.AsyncAnthropic(base_url=server.url, auth_token=KEY, max_retries=0)
        async with made, made.messages.stream(messages=TURNS, **GREEDY) as stream:
            return "".join([part async for part in stream.text_stream])

    assert asyncio.run(run()) == answer


def test_ids_of_parallel_calls_differ(client: Any) -> None:
    ask: Any = {**GREEDY, "max_tokens": 200, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    asked = client.messages.create(messages=[{"role": "user", "content": "How is the weather?"}], **ask)
    ids = [block.id for block in asked.content if block.type == "tool_use"]
    assert len(set(ids)) == len(ids) > 1


def test_a_loop_of_tools(client: Any) -> None:
    ask: Any = {**GREEDY, "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    turns: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    asked = client.messages.create(messages=turns, tool_choice=choice, **ask)
    assert asked.stop_reason == "tool_use"
    calls = [block for block in asked.content if block.type == "tool_use"]
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain."} for call in calls]
    turns += [asked.to_param(), {"role": "user", "content": results}]
    done = client.messages.create(messages=turns, tool_choice={"type": "none"}, **ask)
    assert done.stop_reason in ("end_turn", "max_tokens")
    assert not [block for block in done.content if block.type == "tool_use"]


@pytest.mark.parametrize(
    "choice", [{"type": "tool", "name": "weather"}, {"type": "any", "disable_parallel_tool_use": True}]
)
def test_a_forced_tool_is_streamed(client: Any, choice: Any) -> None:
    ask: Any = {**GREEDY, "max_tokens": 80, "extra_body": {"temperature": 1.2, "top_k": 50}}
    other = {"name": "other", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
    with client.messages.stream(messages=TURNS, tools=[WEATHER, other], tool_choice=choice, **ask) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_message().content
    assert "input_json" in kinds
    if choice["type"] == "tool":
        assert call.name == "weather"
    if call.name == "weather":
        assert call.input["city"] in ("Paris", "Rome")
        assert 1 <= call.input["days"] <= 7


def test_the_tool_runner(client: Any) -> None:
    """The client's own loop. It asks for a thread on the server, and sends all messages where there is none."""
    ran = []

    @anthropic.beta_tool
    def now() -> str:
        """The time."""
        ran.append(True)
        return "noon"

    runner = client.beta.messages.tool_runner(
        tools=[now],
        tool_choice={"type": "tool", "name": "now"},
        messages=TURNS,
        max_iterations=2,
        **{**GREEDY, "max_tokens": 200},
    )
    found = list(runner)
    assert found[0].stop_reason == "tool_use"
    assert ran


@pytest.mark.parametrize("beta", [False, True])
def test_a_pydantic_answer(client: Any, beta: bool) -> None:
    place = client.beta.messages if beta else client.messages
    ask: Any = {**GREEDY, "max_tokens": 100}
    assert isinstance(place.parse(messages=TURNS, output_format=Animal, **ask).parsed_output, Animal)
    schema = Animal.model_json_schema()
    raw = place.create(messages=TURNS, output_config={"format": {"type": "json_schema", "schema": schema}}, **ask)
    Animal.model_validate_json(text_of(raw))


def test_the_old_name_of_the_output_format(client: Any) -> None:
    form = {"type": "json_schema", "schema": Animal.model_json_schema()}
    ask: Any = {**GREEDY, "max_tokens": 200, "extra_body": {"output_format": form}}
    Animal.model_validate_json(text_of(client.messages.create(messages=TURNS, **ask)))


def test_stop_sequences(client: Any, answer: str) -> None:
    word = answer.split()[3].strip(".")
    found = client.messages.create(messages=TURNS, stop_sequences=["never there", word], **GREEDY)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)
    assert text_of(found) == answer[: answer.index(word)]


def test_a_limit_is_max_tokens(client: Any) -> None:
    ask: Any = {**GREEDY, "max_tokens": 3}
    found = client.messages.create(messages=TURNS, **ask)
    assert (found.stop_reason, found.usage.output_tokens) == ("max_tokens", 3)
    ask = {**GREEDY, "max_tokens": 14, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    cut = client.messages.create(messages=TURNS, **ask)
    assert cut.stop_reason == "max_tokens"


def test_no_tokens_fill_the_cache(client: Any) -> None:
    turns: Any = [{"role": "user", "content": "A long text to keep. " * 20}]
    found = client.messages.create(model=MODEL, max_tokens=0, messages=turns)
    assert (found.content, found.usage.output_tokens, found.stop_reason) == ([], 0, "max_tokens")
    assert client.messages.create(messages=turns, **GREEDY).usage.cache_read_input_tokens > 0


def test_the_model_continues_a_last_turn_of_its_own(client: Any, answer: str) -> None:
    head = " ".join(answer.split()[:3])
    turns = [*TURNS, {"role": "assistant", "content": head}]
    ask: Any = {**GREEDY, "max_tokens": 8}
    assert answer.startswith(head + text_of(client.messages.create(messages=turns, **ask)))


PNG: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
REFUSED: list[tuple[type[Exception], int, dict[str, Any], str]] = [
    (anthropic.NotFoundError, 404, {"model": "claude-opus-4-1"}, "--served-model-name"),
    (anthropic.BadRequestError, 400, {"max_tokens": -1}, "max_tokens"),
    (anthropic.BadRequestError, 400, {"messages": [{"role": "user", "content": [PNG]}]}, "messages[0].content[0]"),
    (anthropic.BadRequestError, 400, {"stop_sequences": ["x"] * 99}, "stop_sequences"),
    (anthropic.BadRequestError, 400, {"tool_choice": {"type": "any"}}, "tool_choice"),
    (anthropic.BadRequestError, 400, {"messages": [{"role": "user", "content": "x " * 9000}]}, "prompt is too long: "),
]


@pytest.mark.parametrize(("kind", "status", "fields", "named"), REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_errors(client: Any, kind: Any, status: int, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(kind) as caught:
        client.messages.create(**{"messages": TURNS, **GREEDY, **fields})
    assert caught.value.status_code == status
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert named in caught.value.body["error"]["message"]
    assert caught.value.request_id == caught.value.body["request_id"]


def test_a_wrong_key(server: Process) -> None:
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as made,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        made.messages.create(messages=TURNS, **GREEDY)
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_models(client: Any) -> None:
    (found,) = list(client.models.list())
    assert (found.id, found.type, found.display_name) == (MODEL, "model", MODEL)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-none")


def test_a_path_that_is_not_served(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.batches.list()
    assert caught.value.body["error"]["type"] == "not_found_error"
