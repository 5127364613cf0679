"""Structured output and tools: the Python API, and the official client against a real server."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from octavo import LLM, Grammar, JsonSchema, Regex, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.server import ServerConfig, create_app
from pydantic import BaseModel, ConfigDict, Field
from starlette.testclient import TestClient

MODEL = "octavo-embedded"
TURN: Any = [{"role": "user", "content": "What is the weather in Corrin?"}]


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Corrin", "Brackwell"]
    days: int = Field(ge=1, le=9)
    notes: list[Literal["rain", "sun"]] = Field(max_length=2)


TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema(), "strict": True}},
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/digit"}, "b": {"$ref": "#/$defs/digit"}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    },
]


def check_call(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        Weather.model_validate(arguments)
    else:
        assert call.function.name == "add"
        assert set(arguments) == {"a", "b"}
        assert all(0 <= v <= 9 for v in arguments.values())


def test_python_api(llm: LLM) -> None:
    params = SamplingParams(structured=JsonSchema(Weather), n=4, temperature=1.5, seed=1, max_tokens=200)
    for sample in llm.generate("The weather:", params)[0].outputs:
        assert sample.finish_reason == "stop"
        Weather.model_validate_json(sample.text)
    pattern = r"[A-Z][a-z]{2,9} has [1-9][0-9]{0,2} (goats|cows)\."
    params = SamplingParams(structured=Regex(pattern), n=4, temperature=1.5, seed=1)
    for sample in llm.generate("Once", params)[0].outputs:
        assert re.fullmatch(pattern, sample.text), sample.text
    params = SamplingParams(structured=Grammar('start: "a" start "b" | "-"'), temperature=20, seed=4)
    text = llm.generate("Once", params)[0].text
    assert re.fullmatch(r"a*-b*", text)
    assert text.count("a") == text.count("b")


def test_constraints_beside_others(llm: LLM) -> None:
    """A constrained request changes nothing for those beside it, and may be cut off by max_tokens like any other."""
    plain = SamplingParams(max_tokens=20, temperature=0)
    held = SamplingParams(structured=JsonSchema(Weather), max_tokens=8, temperature=0)
    alone = llm.generate("Once upon a time", plain)[0].outputs[0].token_ids
    outputs = llm.generate(["Once upon a time", "x"] * 4, [plain, held] * 4, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs[::2]] == [alone] * 4
    assert {o.outputs[0].finish_reason for o in outputs[1::2]} == {"length"}
    assert all(o.text.startswith("{") for o in outputs[1::2])


def test_bans_yield_to_the_grammar(llm: LLM) -> None:
    params = SamplingParams(structured=Regex("yes"), bad_words=["yes", "y", "e", "s"], min_tokens=3, temperature=0)
    assert llm.generate("Is it?", params)[0].text == "yes"
    params = SamplingParams(structured=Regex("yes"), ignore_eos=True, max_tokens=50)
    assert llm.generate("Is it?", params)[0].outputs[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "structured",
    [
        JsonSchema(3), JsonSchema({"a": float("nan")}), JsonSchema("{"), JsonSchema({"uniqueItems": True}),
        JsonSchema({"multipleOf": 1000003}), Regex("("), Regex("a{999999999}"), Grammar("start: nothing"), Grammar(""),
        {"type": "object"}, "text",
    ],
)  # fmt: skip
def test_refusals(llm: LLM, structured: Any) -> None:
    with pytest.raises(InvalidRequestError, match="structured"):
        llm.generate("x", SamplingParams(structured=structured, max_tokens=2))


def test_a_bad_structure_is_refused_before_anything_runs(llm: LLM) -> None:
    before = llm.stats()["requests"]["finished"]
    bad = SamplingParams(structured=Regex("("), max_tokens=2)
    with pytest.raises(InvalidRequestError, match="structured"):
        llm.generate(["a"] * 3, [SamplingParams(max_tokens=2), SamplingParams(max_tokens=2), bad], use_tqdm=False)
    assert llm.stats()["requests"]["finished"] == before


def test_parse(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(model=MODEL, messages=TURN, response_format=Weather, max_tokens=200)
    assert isinstance(done.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(model=MODEL, messages=TURN, response_format=Weather, max_tokens=200) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)


@pytest.mark.parametrize("stream", [False, True])
def test_response_formats(client: openai.OpenAI, stream: bool) -> None:
    def text(form: Any = None, turn: Any = TURN, **extra: Any) -> str:
        more = {} if form is None else {"response_format": form}
        done: Any = client.chat.completions.create(
            model=MODEL, messages=turn, max_tokens=60, temperature=0, stream=stream, extra_body=extra, **more
        )
        if stream:
            return "".join(c.choices[0].delta.content or "" for c in done)
        return str(done.choices[0].message.content)

    # A question that the model answers shortly: an answer cut at max_tokens is no whole document.
    asked = [{"role": "user", "content": "Give me a JSON object."}]
    assert isinstance(json.loads(text({"type": "json_object"}, asked)), dict)
    assert re.fullmatch("[ab]{3}", text({"type": "regex", "pattern": "[ab]{3}"}))
    assert text({"type": "grammar", "grammar": 'start: "x"'}) == "x"
    assert text(structured_outputs={"choice": ['red "deep"', "green\n"]}) in ('red "deep"', "green\n")
    assert text(structured_outputs={"regex": "[0-9]{4}"}).isdigit()
    assert json.loads(text(structured_outputs={"json": {"const": [1, "a"]}})) == [1, "a"]


def schema_format(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


NEVER = {"name": "a", "parameters": {"not": {}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema_format("a", {"not": {}})}, "response_format"),
        ({"response_format": schema_format("a b", {})}, "response_format.json_schema.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {**NEVER, "strict": True}}]}, "tools"),
    ],
)  # fmt: skip
def test_bad_structures_name_their_field(llm: LLM, fields: dict[str, Any], param: str) -> None:
    found = TestClient(create_app(llm)).post("/v1/chat/completions", json={"messages": TURN, **fields})
    assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.json()


@pytest.mark.parametrize("seed", range(4))
def test_required_tools(client: openai.OpenAI, seed: int) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=TURN, tools=TOOLS, tool_choice="required", seed=seed, temperature=1.2, max_tokens=400
    )
    (choice,) = done.choices
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert len({c.id for c in calls}) == len(calls)
    if choice.finish_reason == "length":
        # A model that cannot stop calling: the last call is cut off, those before it are whole.
        assert calls.pop()
    else:
        assert choice.finish_reason == "tool_calls"
    assert calls
    for call in calls:
        check_call(call)


@pytest.mark.parametrize("seed", range(4))
def test_one_call_where_no_more_are_wanted(client: openai.OpenAI, seed: int) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=TURN, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed,
        temperature=1.2, max_tokens=400,
    )  # fmt: skip
    (call,) = done.choices[0].message.tool_calls
    check_call(call)
    assert done.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("name", ["weather", "add"])
def test_named_tool_streamed(client: openai.OpenAI, name: str) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=TURN, tools=TOOLS, tool_choice={"type": "function", "function": {"name": name}},
        max_tokens=200, temperature=0, stream=True,
    )  # fmt: skip
    found, arguments, reasons = [], "", []
    for chunk in stream:
        (choice,) = chunk.choices
        reasons.append(choice.finish_reason)
        assert not choice.delta.content
        for call in choice.delta.tool_calls or []:
            found += [call.function.name] if call.id else []
            arguments += call.function.arguments
    assert found == [name]
    assert isinstance(json.loads(arguments), dict)
    assert reasons[-1] == "tool_calls"
    assert set(reasons[:-1]) == {None}


def test_tools_that_need_not_be_called(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        done = client.chat.completions.create(
            model=MODEL, messages=TURN, tools=TOOLS, tool_choice=choice, max_tokens=30, temperature=0
        )
        assert done.choices[0].message.content or done.choices[0].message.tool_calls
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        *TURN,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]  # fmt: skip
    assert client.chat.completions.create(model=MODEL, messages=turns, tools=TOOLS, max_tokens=5).choices


TEMPLATE = """{%- if tools %}<|im_start|>system
{% for t in tools %}{{ t | tojson }}{% endfor %} Answer with [TOOL_CALLS].<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""


def test_the_template_decides_the_format() -> None:
    with LLM(chat_template=TEMPLATE, max_num_seqs=4) as llm:
        client = TestClient(create_app(llm, ServerConfig(reasoning_parser="think")))
        body = {"messages": TURN, "tools": TOOLS, "tool_choice": "required", "max_tokens": 400, "temperature": 0}
        found = client.post("/v1/chat/completions", json={**body, "return_token_ids": True, "logprobs": True}).json()
        (choice,) = found["choices"]
        written = "".join(r["token"] for r in choice["logprobs"]["content"])
        # The model may reason first.
        assert '[TOOL_CALLS][{"name": "' in written
        assert "weather" in llm.detokenize(found["prompt_token_ids"], skip_special_tokens=False)
        assert choice["message"]["tool_calls"][0]["function"]["name"] in ("weather", "add")
        thinking = {"enable_thinking": True}
        thought = client.post(
            "/v1/chat/completions",
            json={
                "messages": TURN,
                "max_tokens": 5,
                "min_tokens": 5,
                "chat_template_kwargs": thinking,
            },
        ).json()["choices"][0]["message"]
        assert thought["content"] == ""
        assert thought["reasoning_content"]
