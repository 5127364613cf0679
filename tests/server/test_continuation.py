"""Answers that continue the last message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from in_process import TOOL, Served, asked, serving

MODEL = "octavo-embedded"


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with serving(None) as made:
        yield made


BEGUN: Any = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "My name is"}]
MARKED: Any = [BEGUN[0], {**BEGUN[1], "prefix": True}]
WAYS: list[dict[str, Any]] = [
    {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": False},
    {"messages": BEGUN, "continue_final_message": True},
    {"messages": BEGUN, "chat_template_kwargs": {"continue_final_message": True}},
    {"messages": MARKED},
    {"messages": MARKED, "add_generation_prompt": False, "continue_final_message": True},
    {"messages": [BEGUN[0], {**BEGUN[1], "partial": True}]},
]


@pytest.mark.parametrize("way", WAYS)
def test_a_message_is_continued(way: dict[str, Any], plain: Served) -> None:
    end = "<|im_start|>assistant\nMy name is"
    assert plain.prompt(**way).endswith(end)
    more = {key: value for key, value in way.items() if key != "messages"}
    ask: Any = {"model": MODEL, "messages": way["messages"], "temperature": 0, "max_tokens": 12, "extra_body": more}
    whole = plain.client.chat.completions.create(**ask).choices[0].message.content
    assert whole
    assert whole.startswith(" Octavo")
    chunks = plain.client.chat.completions.create(stream=True, **ask)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert plain.prompt(tools=[TOOL], **way).endswith(end)


def test_without_a_continuation_nothing_changes(plain: Served) -> None:
    for way in ({}, {"continue_final_message": False}, {"add_generation_prompt": True}):
        assert plain.prompt(BEGUN, **way).endswith("My name is<|im_end|>\n<|im_start|>assistant\n")
    assert plain.prompt(BEGUN, add_generation_prompt=False).endswith("My name is<|im_end|>\n")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ({"messages": MARKED, "add_generation_prompt": True}, "add_generation_prompt"),
    ({"messages": MARKED, "continue_final_message": False}, "continue_final_message"),
    ({"messages": [*MARKED, BEGUN[0]]}, "messages[1].prefix"),
    ({"messages": [{**BEGUN[0], "prefix": True}]}, "messages[0].prefix"),
    (
        {"messages": BEGUN, "chat_template_kwargs": {"continue_final_message": "yes"}},
        "chat_template_kwargs.continue_final_message",
    ),
    (
        {
            "messages": BEGUN,
            "continue_final_message": True,
            "chat_template_kwargs": {"continue_final_message": False},
        },
        "chat_template_kwargs.continue_final_message",
    ),
    ({"messages": asked(("c1", "{}"), results=False), "continue_final_message": True}, "messages[1].tool_calls"),
    ({"messages": [BEGUN[0], {"role": "assistant"}], "continue_final_message": True}, "messages[1].content"),
]


@pytest.mark.parametrize(("body", "param"), REFUSALS)
def test_contradictions_are_refused(body: dict[str, Any], param: str, plain: Served) -> None:
    assert plain.refused(**body)[0] == param
    assert plain.http.post("/tokenize", json=body).json()["error"]["param"] == param


def test_a_format_holds_the_continuation(plain: Served) -> None:
    """A choice or a schema holds what is generated. JSON that the message has begun cannot be continued under it."""
    turns: Any = [BEGUN[0], {"role": "assistant", "content": "The answer:", "prefix": True}]
    ask: Any = {"model": MODEL, "messages": turns, "max_tokens": 80}
    held = plain.client.chat.completions.create(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **ask)
    assert held.choices[0].message.content in ("yes", "no")
    held = plain.client.chat.completions.create(response_format={"type": "json_object"}, **ask)
    assert (held.choices[0].message.content or "").startswith("{")
    call = plain.client.chat.completions.create(tools=[TOOL], tool_choice="required", **ask).choices[0].message
    assert json.loads(call.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")  # type: ignore[index,union-attr]
    for text in ('{"a": ', "Here it is:\n```json\n{", ' ["'):
        body = {"messages": [BEGUN[0], {"role": "assistant", "content": text, "prefix": True}]}
        form = {"response_format": {"type": "json_object"}}
        assert plain.refused(**body, **form)[0] == "response_format"
        assert plain.refused(**body, structured_outputs={"json_object": True})[0] == "structured_outputs"
