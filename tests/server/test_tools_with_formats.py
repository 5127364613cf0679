"""Tools beside a format of the answer: the model calls, or answers in the format."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from octavo import LLM
from octavo.server import ServerConfig, create_app
from octavo.server.calls.formats import FORMATS
from octavo.server.config import TOOL_PARSERS
from octavo.server.parsing import Arguments, Call, Content
from starlette.testclient import TestClient

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "arguments": {"type": "object", "maxProperties": 0}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
ARGUMENTS = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": ARGUMENTS}}
TURN: Any = [{"role": "user", "content": "Is it?"}]
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        r'\{\s*"name"\s*:\s*"(Ann|Bo)"\s*,\s*"arguments"\s*:\s*\{\s*\}\s*\}',
    ),
    "json_object": ({"response_format": {"type": "json_object"}}, r"\{(.|\n)*"),
    "regex": ({"response_format": {"type": "regex", "pattern": "[0-9]{3}"}}, "[0-9]{3}"),
    "grammar": ({"response_format": {"type": "grammar", "grammar": 'start: "x"+ "y"'}}, "x+y"),
    "choice": ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    "structured json": ({"structured_outputs": {"json": {"const": "z"}}}, r"\"z\""),
}


@pytest.fixture(scope="module")
def clients(llm: LLM) -> dict[str, openai.OpenAI]:
    def client(name: str) -> openai.OpenAI:
        http = TestClient(create_app(llm, ServerConfig(tool_parser=name)))
        return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="x", http_client=http, max_retries=0)

    return {name: client(name) for name in TOOL_PARSERS}


def first_token(llm: LLM, name: str, *, call: bool) -> dict[str, float]:
    """A bias that makes a call the best beginning of the output, or the worst."""
    form = FORMATS[name]
    begin = "".join((form.begin, *form.opening)) or ("f(" if form.style == "python" else "f\n")
    token = llm.tokenize(begin.strip(), add_special_tokens=False)[0]
    return {str(token): 60.0 if call else -60.0}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "mistral_args", "glm4"])
def test_both_ways_are_open(llm: LLM, clients: dict[str, openai.OpenAI], name: str, answer: str) -> None:
    fields, pattern = ANSWERS[answer]
    for call in (True, False):
        done = clients[name].chat.completions.create(
            model=clients[name].models.list().data[0].id, messages=TURN, tools=[TOOL], max_tokens=120, seed=1,
            parallel_tool_calls=False, logit_bias=first_token(llm, name, call=call), extra_body=fields,
        )  # fmt: skip
        message = done.choices[0].message
        if call:
            assert not message.content
            (made,) = message.tool_calls
            assert made.function.name == "f"
            assert done.choices[0].finish_reason in ("tool_calls", "length")
            if done.choices[0].finish_reason == "tool_calls":
                assert json.loads(made.function.arguments)["x"] in (1, 2)
        else:
            assert message.tool_calls is None
            assert re.fullmatch(pattern, message.content), message.content


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_looks_like_a_call_is_an_answer(clients: dict[str, openai.OpenAI], stream: bool) -> None:
    """Llama 3 writes calls as bare objects with a name: only the names of the tools make a call."""
    client = clients["llama3_json"]
    for seed in range(4):
        done: Any = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=TURN, tools=[TOOL], max_tokens=80, seed=seed, stream=stream,
            extra_body=ANSWERS["json_schema"][0], temperature=1.5,
        )  # fmt: skip
        if stream:
            deltas = [chunk.choices[0].delta for chunk in done]
            text = "".join(delta.content or "" for delta in deltas)
            calls = [call for delta in deltas for call in delta.tool_calls or []]
        else:
            text, calls = done.choices[0].message.content, done.choices[0].message.tool_calls or []
        if calls:
            assert calls[0].function.name == "f"
            assert not text
        else:
            assert re.fullmatch(ANSWERS["json_schema"][1], text), text


def test_an_answer_may_not_begin_with_white_space(clients: dict[str, openai.OpenAI], llm: LLM) -> None:
    """The grammars of calls and of the answer would both take it, and the parser would lose one of them."""
    client = clients["llama3_json"]
    spaces = {str(llm.tokenize(text, add_special_tokens=False)[0]): 20 for text in ("\n", " ", " {")}
    for seed in range(4):
        done = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=TURN, tools=[TOOL], max_tokens=80, seed=seed,
            extra_body=ANSWERS["json_schema"][0], temperature=1.5, logit_bias=spaces,
        )  # fmt: skip
        assert done.choices[0].finish_reason in ("stop", "tool_calls", "length")


def test_responses(llm: LLM, clients: dict[str, openai.OpenAI]) -> None:
    client = clients["hermes"]
    tool: Any = {"type": "function", "strict": None, **TOOL["function"]}
    form: Any = {"type": "json_schema", "name": "a", "schema": SCHEMA}
    kinds = set()
    for i in range(3):
        done = client.responses.create(
            model=client.models.list().data[0].id, input=f"Is it {i}?", tools=[tool], text={"format": form},
            max_output_tokens=200, temperature=1.9,
        )  # fmt: skip
        kinds |= {item.type for item in done.output}
        if done.status == "completed" and done.output_text:
            assert re.fullmatch(ANSWERS["json_schema"][1], done.output_text)
    assert kinds <= {"function_call", "message"}


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_a_cut_call_leaves_no_markup(llm: LLM, clients: dict[str, openai.OpenAI], name: str) -> None:
    """However few tokens a forced call has, and a second one: what is no call yet is no content."""
    for most in (1, 2, 3, 5, 8, 13, 14, 21, 34, 55):
        done = clients[name].chat.completions.create(
            model=clients[name].models.list().data[0].id, messages=TURN, tools=[TOOL], tool_choice="required",
            max_tokens=most, temperature=0, logit_bias=first_token(llm, name, call=True),
        )  # fmt: skip
        assert not done.choices[0].message.content, (most, done.choices[0].message)


@pytest.mark.parametrize("size", range(1, 60))
def test_a_second_call_that_is_cut(size: int) -> None:
    whole = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    text = f"{whole}\n{whole}"[: len(whole) + size]
    parser = FORMATS["hermes"].reader([TOOL["function"]])
    pieces = [*parser.feed(text), *parser.finish(cut=True)]
    assert not [piece for piece in pieces if isinstance(piece, Content)]
    assert [type(piece) for piece in pieces][:2] == [Call, Arguments]


def test_text_that_is_cut_stays_text() -> None:
    parser = FORMATS["hermes"].reader([TOOL["function"]])
    pieces = [*parser.feed("Is a <to"), *parser.finish(cut=True)]
    assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == "Is a <to"
    # An output that ended by itself keeps everything.
    parser = FORMATS["hermes"].reader([TOOL["function"]], forced=True)
    assert [*parser.feed("<tool_call>x"), *parser.finish()] == [Content("<tool_call>x")]
