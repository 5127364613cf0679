"""Reasoning before every kind of constraint: it is free text, and the constraint holds what comes after it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from octavo import LLM
from octavo.hub import embedded_model
from octavo.server import ServerConfig, create_app
from octavo.server.parsing import Plain, Thinking
from octavo.server.protocols import responses
from octavo.server.reasoning import ReasoningCounter, state_after
from starlette.testclient import TestClient

# The prompt opens the reasoning, closes it, or leaves it to the model.
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if begin %}{{ begin }}
{% endif %}{% if closed %}{{ closed }}

{% endif %}{% endif %}"""
MARKS = {
    "think": ("<think>", "</think>"),
    "deepseek_r1": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "f"}}


def is_answer(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"ok"} and isinstance(found["ok"], bool)


def is_object(text: str) -> bool:
    """An object, or the beginning of one: the bias of these tests fills its texts."""
    return text.startswith("{")


REGEX = {"response_format": {"type": "regex", "pattern": "a/[0-9]{2}\\/b"}}
GRAMMAR = {"response_format": {"type": "grammar", "grammar": 'start: a | "}"\na: "x" // b'}}
FORMATS: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        is_answer,
    ),
    "json_object": ({"response_format": {"type": "json_object"}}, is_object),
    "regex": (REGEX, re.compile("a/[0-9]{2}/b").fullmatch),
    "grammar": (GRAMMAR, {"x", "}"}.__contains__),
    "choice": ({"structured_outputs": {"choice": ["yes", "n}o"]}}, {"yes", "n}o"}.__contains__),
    "json": ({"structured_outputs": {"json": SCHEMA}}, is_answer),
}
CALLS: dict[str, dict[str, Any]] = {
    "required": {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "named": {"tools": [TOOL], "tool_choice": NAMED},
    "required with a format": {
        "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
    },
}  # fmt: skip


def with_marks(folder: Path, *, special: bool) -> Path:
    """The embedded model, whose last tokens are the marks of all formats."""
    source = embedded_model()
    for path in source.iterdir():
        if path.name != "tokenizer.json":
            (folder / path.name).symlink_to(path)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    marks = list(dict.fromkeys(mark for pair in MARKS.values() for mark in pair))
    words = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])[: -len(marks)]
    tokenizer["model"]["vocab"] = dict(words)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][: -len(marks)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    tokenizer["added_tokens"] += [{"id": len(words) + i, "content": mark, **flags} for i, mark in enumerate(marks)]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["text", "special"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = with_marks(tmp_path_factory.mktemp("model"), special=request.param)
    with LLM(str(folder), chat_template=TEMPLATE, max_num_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def clients(model: LLM) -> dict[str, openai.OpenAI]:
    def client(name: str) -> openai.OpenAI:
        http = TestClient(create_app(model, ServerConfig(reasoning_parser=name)))
        return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="x", http_client=http, max_retries=0)

    return {name: client(name) for name in MARKS}


def ask(client: openai.OpenAI, llm: LLM, name: str, where: str, fields: dict[str, Any], **more: Any) -> Any:
    """A chat whose reasoning ends soon, because a bias raises its end mark."""
    begin, end = MARKS[name]
    kwargs = {"inside": {"begin": begin}, "ended": {"closed": f"{begin}\n\n{end}"}, "open": {}}[where]
    (mark,) = llm.tokenize(end, add_special_tokens=False)
    return client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": "Is it?"}], max_tokens=120,
        temperature=1.0, seed=3, logit_bias={str(mark): 14},
        extra_body={"chat_template_kwargs": kwargs, "return_token_ids": True, **fields}, **more,
    )  # fmt: skip


def check(choice: Any, fields: str, llm: LLM, name: str, where: str) -> None:
    message = choice.message
    reasoning = getattr(message, "reasoning_content", None)
    if fields in CALLS:
        assert choice.finish_reason == "tool_calls"
        assert message.content is None
        (call,) = message.tool_calls
        assert is_answer(call.function.arguments)
    else:
        assert choice.finish_reason == "stop" or fields == "json_object"
        assert FORMATS[fields][1](message.content), message.content
        assert not message.tool_calls
    # The tokens are the whole output: the reasoning stands in them before the end mark.
    text = llm.detokenize(choice.token_ids, skip_special_tokens=False)
    before, mark, _ = text.partition(MARKS[name][1])
    if where == "inside" or (where == "open" and name == "deepseek_r1"):
        assert mark
        # A model may write the mark that its template has written.
        assert (reasoning or "") == before.removeprefix(MARKS[name][0])
    elif where == "ended":
        assert reasoning is None


@pytest.mark.parametrize("fields", [*FORMATS, *CALLS])
@pytest.mark.parametrize(
    ("name", "where"),
    [("think", "inside"), ("think", "ended"), ("think", "open"), ("deepseek_r1", "ended"), ("cohere", "inside")],
)
def test_the_constraint_holds_what_follows_the_reasoning(
    model: LLM, clients: dict[str, openai.OpenAI], name: str, where: str, fields: str
) -> None:
    asked = CALLS[fields] if fields in CALLS else FORMATS[fields][0]
    done = ask(clients[name], model, name, where, asked)
    check(done.choices[0], fields, model, name, where)


@pytest.mark.parametrize("fields", ["json_schema", "required"])
@pytest.mark.parametrize("name", ["mistral", "granite", "deepseek_r1"])
def test_every_format_of_reasoning(model: LLM, clients: dict[str, openai.OpenAI], name: str, fields: str) -> None:
    asked = CALLS[fields] if fields in CALLS else FORMATS[fields][0]
    done = ask(clients[name], model, name, "inside", asked)
    check(done.choices[0], fields, model, name, "inside")


def test_a_hybrid_model_may_think(model: LLM, clients: dict[str, openai.OpenAI]) -> None:
    """Where the template leaves it open, the begin mark stays possible before the answer."""
    (begin,) = model.tokenize("<think>", add_special_tokens=False)
    (end,) = model.tokenize("</think>", add_special_tokens=False)
    for asked in (FORMATS["json_schema"][0], CALLS["required"], {"tools": [TOOL]}):
        done = clients["think"].chat.completions.create(
            model=clients["think"].models.list().data[0].id, messages=[{"role": "user", "content": "Is it?"}],
            max_tokens=120, seed=3, logit_bias={str(begin): 30, str(end): 18},
            extra_body={"return_token_ids": True, **asked},
        )  # fmt: skip
        message = done.choices[0].message
        assert done.choices[0].token_ids[0] == begin
        thought = model.detokenize(done.choices[0].token_ids, skip_special_tokens=False).partition("</think>")[0]
        assert getattr(message, "reasoning_content", "") == thought.removeprefix("<think>")


def test_streams_and_responses(model: LLM, clients: dict[str, openai.OpenAI]) -> None:
    client = clients["think"]
    asked, is_right = FORMATS["json_schema"]
    whole = ask(client, model, "think", "inside", asked).choices[0].message
    chunks = list(ask(client, model, "think", "inside", asked, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    content = "".join(delta.content or "" for delta in deltas)
    assert content == whole.content
    assert is_right(content)
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == whole.reasoning_content


@pytest.mark.parametrize("tool", [False, True])
def test_responses(model: LLM, clients: dict[str, openai.OpenAI], monkeypatch: pytest.MonkeyPatch, tool: bool) -> None:
    (mark,) = model.tokenize("</think>", add_special_tokens=False)
    begin = responses.begin

    def biased(context: Any, request: Any, *rest: Any) -> Any:
        more = {"logit_bias": {str(mark): 14.0}, "chat_template_kwargs": {"begin": "<think>"}, "seed": 3}
        return begin(context, request.model_copy(update=more), *rest)

    monkeypatch.setattr(responses, "begin", biased)
    client = clients["think"]
    asked: dict[str, Any] = {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}}
    if tool:
        asked = {"tools": [{"type": "function", **TOOL["function"]}], "tool_choice": "required"}
        asked["parallel_tool_calls"] = False
    done = client.responses.create(
        model=client.models.list().data[0].id, input="Is it?", max_output_tokens=120, **asked
    )
    *before, last = done.output
    assert [item.type for item in before] in ([], ["reasoning"])
    assert is_answer(last.arguments if tool else done.output_text)
    thought = "".join(part.text for item in before for part in item.content)
    assert done.usage.output_tokens_details.reasoning_tokens == len(model.tokenize(thought, add_special_tokens=False))


def test_reasoning_tokens_are_counted(model: LLM, clients: dict[str, openai.OpenAI]) -> None:
    for name in ("think", "cohere"):
        done = ask(clients[name], model, name, "inside", FORMATS["json_schema"][0])
        (end,) = model.tokenize(MARKS[name][1], add_special_tokens=False)
        found = done.usage.completion_tokens_details.reasoning_tokens
        assert found == done.choices[0].token_ids.index(end)
    # A reply that is nothing but reasoning.
    cut = clients["think"].chat.completions.create(
        model=clients["think"].models.list().data[0].id, messages=[{"role": "user", "content": "Is it?"}],
        max_tokens=7, extra_body={"chat_template_kwargs": {"begin": "<think>"}, "min_tokens": 7},
    )  # fmt: skip
    assert cut.usage.completion_tokens_details.reasoning_tokens == 7


@pytest.mark.parametrize("name", ["think", "granite"])
def test_the_count_is_of_tokens_also_for_marks_of_several_tokens(llm: LLM, name: str) -> None:
    begin, end = MARKS[name]
    inner = llm.tokenize(" one two three.\n", add_special_tokens=False)
    ids = [llm.tokenize(part, add_special_tokens=False) for part in (begin, end, '{"a": 1}')]
    for state, before in (("open", ids[0]), ("inside", [])):
        counter = ReasoningCounter(llm, name, state)
        tokens = [*before, *inner, *ids[1], *ids[2]]
        text = Thinking(Plain(), begin, end, inside=state == "inside")
        for token in tokens:
            counter.feed([token], text.feed(llm.detokenize([token], skip_special_tokens=False)))
        counter.finish()
        assert counter.tokens == len(inner)


@pytest.mark.parametrize(
    ("name", "prompt", "continued", "state"),
    [
        ("think", "<|im_start|>assistant\n", "", "open"),
        ("think", "assistant\n<think>\n", "", "inside"),
        ("think", "assistant\n<think>\n\n</think>\n\n", "", "ended"),
        ("deepseek_r1", "assistant\n<think>\n\n</think>\n\n", "", "ended"),
        ("deepseek_r1", "<\uff5cAssistant\uff5c></think>", "", "ended"),
        ("deepseek_r1", "<\uff5cAssistant\uff5c>", "", "inside"),
        ("think", "assistant\n<think>\nOkay, so", "<think>\nOkay, so", "inside"),
        ("deepseek_r1", "assistant\n<think>\na</think>\nIt is", "<think>\na</think>\nIt is", "ended"),
        ("deepseek_r1", "assistant\nIt is", "It is", "ended"),
        ("cohere", "<|START_THINKING|><|END_THINKING|>", "", "ended"),
    ],
)
def test_the_prompt_says_where_the_reasoning_is(name: str, prompt: str, continued: str, state: str) -> None:
    assert state_after(name, prompt, continued) == state
