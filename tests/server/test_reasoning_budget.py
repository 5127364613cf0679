"""Limits on reasoning: the answer that a request forces always gets tokens, and `thinking_token_budget` is held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from octavo import LLM
from octavo.server import ServerConfig, create_app
from starlette.testclient import TestClient

# As DeepSeek-R1's: the prompt ends inside the reasoning. The embedded model never ends it by itself.
OPEN = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if not closed %}<think>
{% endif %}{% endif %}"""
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
ASK: dict[str, Any] = {
    "model": "octavo-embedded",
    "messages": [{"role": "user", "content": "Is it?"}],
    "temperature": 0,
    "max_tokens": 60,
}
# Room for an answer with the most whitespace that the grammar allows, in tokens of one character.
LONG: dict[str, Any] = {**ASK, "max_tokens": 320}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.fixture(scope="module", params=["think", "deepseek_r1"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with LLM(chat_template=OPEN) as llm:
        app = create_app(llm, ServerConfig(reasoning_parser=request.param))
        with TestClient(app, base_url="http://test") as http:
            yield openai.OpenAI(base_url="http://test/v1", api_key="x", http_client=http, max_retries=0)


def reasoning_of(message: Any) -> str:
    return getattr(message, "reasoning_content", None) or ""


def test_a_format_gets_its_answer(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**LONG, response_format=FORMAT).choices[0]  # type: ignore[call-overload]
    assert choice.finish_reason == "stop"
    assert set(json.loads(choice.message.content)) == {"ok"}
    assert reasoning_of(choice.message)
    assert "<" not in reasoning_of(choice.message)[-8:]


@pytest.mark.parametrize(
    ("outputs", "answers"),
    [({"choice": ["yes", "no"]}, {"yes", "no"}), ({"regex": "[ab]"}, {"a", "b"}), ({"grammar": 'start: "x"'}, {"x"})],
    ids=["choice", "regex", "grammar"],
)
def test_other_constraints_get_their_answer(client: openai.OpenAI, outputs: Any, answers: set[str]) -> None:
    done = client.chat.completions.create(**ASK, extra_body={"structured_outputs": outputs})
    assert done.choices[0].message.content in answers
    details = done.usage.completion_tokens_details  # type: ignore[union-attr]
    # Half of max_tokens is for the answer.
    assert 20 <= details.reasoning_tokens <= 30  # type: ignore[union-attr]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}], ids=["any", "named"])
def test_a_forced_call_comes(client: openai.OpenAI, choice: Any) -> None:
    done = client.chat.completions.create(**LONG, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    calls = done.choices[0].message.tool_calls or []
    assert set(json.loads(calls[0].function.arguments)) == {"ok"}
    assert reasoning_of(done.choices[0].message)


def test_responses_have_a_message_beside_the_reasoning(client: openai.OpenAI) -> None:
    done = client.responses.create(
        model="octavo-embedded",
        input="Is it?",
        max_output_tokens=LONG["max_tokens"],
        temperature=0,
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    )
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert set(json.loads(done.output_text)) == {"ok"}


def test_streams_equal_whole_answers(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, response_format=FORMAT).choices[0].message  # type: ignore[call-overload]
    reasoning = content = ""
    for chunk in client.chat.completions.create(**ASK, response_format=FORMAT, stream=True):  # type: ignore[call-overload]
        for choice in chunk.choices:
            reasoning += reasoning_of(choice.delta)
            content += choice.delta.content or ""
    assert (reasoning, content) == (reasoning_of(whole), whole.content)


def test_samples_have_limits_of_their_own(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(  # type: ignore[call-overload]
        **{**LONG, "temperature": 1}, n=3, seed=1, response_format=FORMAT
    )
    assert [set(json.loads(c.message.content)) for c in done.choices] == [{"ok"}] * 3
    assert len({reasoning_of(c.message) for c in done.choices}) == 3


@pytest.mark.parametrize("name", ["thinking_token_budget", "thinking_budget", "reasoning_budget"])
def test_a_budget_ends_the_reasoning_of_free_answers(client: openai.OpenAI, name: str) -> None:
    free = client.chat.completions.create(**ASK, extra_body={"min_tokens": 40})
    assert reasoning_of(free.choices[0].message)
    assert not free.choices[0].message.content
    held = client.chat.completions.create(**ASK, extra_body={name: 10, "min_tokens": 40})
    message = held.choices[0].message
    assert reasoning_of(free.choices[0].message).startswith(reasoning_of(message))
    assert message.content
    assert 5 <= held.usage.completion_tokens_details.reasoning_tokens <= 10  # type: ignore[union-attr]


def test_a_budget_of_nothing_ends_the_reasoning_at_once(client: openai.OpenAI) -> None:
    for more in ({"response_format": FORMAT}, {}):
        body: dict[str, Any] = {"thinking_token_budget": 0, "min_tokens": 20, **more}
        done = client.chat.completions.create(**ASK, extra_body=body)
        assert not reasoning_of(done.choices[0].message)
        assert done.choices[0].message.content
        assert done.usage.completion_tokens_details.reasoning_tokens == 0  # type: ignore[union-attr]


def test_a_budget_without_effect_changes_nothing(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(**ASK).choices[0].message
    for budget in (-1, 1000):
        message = client.chat.completions.create(**ASK, extra_body={"thinking_token_budget": budget}).choices[0].message
        assert reasoning_of(message) == reasoning_of(free)
    # The prompt has not begun any reasoning: there is none to end.
    more: dict[str, Any] = {"chat_template_kwargs": {"closed": True}}
    if not reasoning_of(client.chat.completions.create(**ASK, extra_body=more).choices[0].message):
        answer = client.chat.completions.create(**ASK, extra_body=more).choices[0].message.content
        more["thinking_token_budget"] = 3
        assert client.chat.completions.create(**ASK, extra_body=more).choices[0].message.content == answer


def test_a_budget_without_a_parser_is_refused() -> None:
    with LLM() as llm, TestClient(create_app(llm), base_url="http://test") as http:
        reply = http.post("/v1/chat/completions", json={**ASK, "thinking_token_budget": 5})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "thinking_token_budget"
        assert "--reasoning-parser" in reply.json()["error"]["message"]
