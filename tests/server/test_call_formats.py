"""Every format of tool calls: its grammar, its parser and its sign in a template belong together."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from octavo import LLM, Grammar, SamplingParams
from octavo.server import ServerConfig, create_app
from octavo.server.calls.formats import FORMATS, detect, texts
from octavo.server.calls.grammar import grammar
from octavo.server.context import Context
from octavo.server.errors import ApiError
from octavo.server.parsing import Arguments, Call, Content
from octavo.server.schemas import tool_functions
from starlette.testclient import TestClient

TOOLS: list[dict[str, Any]] = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome", "L'Aquila"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "on": {"type": "boolean"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
    {
        "name": "now",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"$ref": "#/$defs/zone"}, "x": {"type": "null"}},
            "$defs": {"zone": {"enum": ["a", "b"]}},
            "additionalProperties": False,
        },
    },
]
SCHEMAS = {t["name"]: t["parameters"] for t in TOOLS}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_a_grammar_allows_its_parser_reads(name: str, parallel: bool, llm: LLM) -> None:
    form = FORMATS[name]
    held = Grammar(grammar(llm, form, TOOLS, forced=True, parallel=parallel))
    params = [SamplingParams(max_tokens=320, temperature=1.5, seed=s, structured=held) for s in range(3)]
    whole = 0
    for output in llm.generate(["Hello"] * 3, params, use_tqdm=False):
        parser = form.reader(TOOLS)
        pieces = [*parser.feed(output.text), *parser.finish()]
        cut = output.outputs[0].finish_reason == "length"
        # A call that was begun and cut off before its name is text.
        assert cut or not [p for p in pieces if isinstance(p, Content)], output.text
        calls = [p.name for p in pieces if isinstance(p, Call)]
        arguments = [p.text for p in pieces if isinstance(p, Arguments)]
        assert calls
        if not parallel:
            assert len(calls) == 1
        if not cut:
            whole += 1
            for call, text in zip(calls, arguments, strict=True):
                jsonschema.validate(json.loads(text), SCHEMAS[call])
    assert whole or parallel, "a single call ends by itself"


@pytest.mark.parametrize("name", FORMATS)
def test_free_text_stays_possible(name: str, llm: LLM) -> None:
    held = Grammar(grammar(llm, FORMATS[name], TOOLS, forced=False, parallel=True))
    output = llm.generate("Once upon a time", SamplingParams(max_tokens=12, temperature=0, structured=held))[0]
    free = llm.generate("Once upon a time", SamplingParams(max_tokens=12, temperature=0))[0]
    # Without a mark a text does not begin with a space.
    assert output.text == free.text or (not FORMATS[name].begin and output.text)


SAYS = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools | tojson }}SIGN{% endif %}"
CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}SIGN{% endfor %}{% endfor %}"
CALLS += "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}"
TEMPLATES = {
    "hermes": SAYS.replace("SIGN", "<tool_call>"),
    "qwen3_coder": SAYS.replace("SIGN", "<tool_call>\n<function=name>"),
    "gemma": SAYS.replace("SIGN", "```tool_code"),
    "mistral": SAYS.replace("SIGN", "[TOOL_CALLS]"),
    "mistral_args": CALLS.replace("SIGN", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
    "llama3_json": SAYS.replace("SIGN", '{"name": name, "parameters": values}'),
    "pythonic": CALLS.replace("SIGN", "[{{ c.function.name }}()]"),
    "olmo3": SAYS.replace("SIGN", "<function_calls>"),
    "deepseek_v3": CALLS.replace("SIGN", "<｜tool▁calls▁begin｜>{{ c.function.name }}\n```json\n{}\n```"),
    "deepseek_v31": CALLS.replace("SIGN", "<｜tool▁calls▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{}"),
    "granite": SAYS.replace("SIGN", "<|tool_call|>"),
    "phi4_mini": SAYS.replace("SIGN", "<|tool|>"),
    "phi4_mini_json": SAYS.replace("SIGN", 'functools[{"name": ...}]'),
    "cohere": SAYS.replace("SIGN", "<|START_ACTION|>"),
    "glm4": CALLS.replace("SIGN", "{{ c.function.name }}\n{{ c.function.arguments | tojson }}"),
}


def test_each_format_is_found_by_its_template() -> None:
    assert TEMPLATES.keys() == FORMATS.keys()
    for name, template in TEMPLATES.items():
        with LLM(max_num_seqs=1, max_model_len=64, chat_template=template) as llm:
            found = detect(llm)
            assert found is not None
            assert found.name == name


@pytest.mark.parametrize("name", ["pythonic", "deepseek_v31", "glm4", "cohere", "qwen3_coder", "gemma"])
def test_through_the_server(name: str, llm: LLM) -> None:
    """One call in a new form, whole and streamed."""
    tools = [{"type": "function", "function": t} for t in TOOLS]
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "temperature": 0,
        "max_tokens": 200,
    }
    with TestClient(create_app(llm, ServerConfig(tool_parser=name))) as client:
        choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS["weather"])
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).text
        chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        deltas = [c["choices"][0]["delta"].get("tool_calls", []) for c in chunks if c["choices"]]
        text = "".join(d["function"].get("arguments", "") for lot in deltas for d in lot)
        assert text == call["function"]["arguments"]


GEMMA = "<bos>{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + GEMMA


@pytest.mark.parametrize(
    ("template", "setting", "begin"),
    [
        (GEMMA, "auto", "<bos><start_of_turn>system\nYou can call functions."),
        (NO_SYSTEM, "auto", "<bos><start_of_turn>user\nYou can call functions."),
        # The parser is named; still the template tells the model of no tools.
        (GEMMA, "qwen3_coder", "<bos><start_of_turn>system\nYou can call functions."),
    ],
)
def test_a_template_without_tools_is_helped(template: str, setting: str, begin: str) -> None:
    """The prompt names the tools and shows the form that is then read."""
    with LLM(max_num_seqs=1, chat_template=template) as llm:
        prompts: list[str] = []
        submit = llm._engine.submit

        class Watching:
            def __getattr__(self, name: str) -> Any:
                return getattr(engine, name)

            def submit(self, prompt: str, *arguments: Any, **more: Any) -> Any:
                prompts.append(prompt)
                return submit(prompt, *arguments, **more)

        engine, llm._engine = llm._engine, Watching()  # type: ignore[assignment]
        body = {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": t} for t in TOOLS],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "max_tokens": 200,
        }
        with TestClient(create_app(llm, ServerConfig(tool_parser=setting))) as client:
            answer = client.post("/v1/chat/completions", json=body).json()
        assert prompts[0].startswith(begin)
        assert '"weather"' in prompts[0]
        assert ("```tool_code\nfunction(" if setting == "auto" else "<tool_call>\n<function=") in prompts[0]
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS["weather"])
        llm._engine = engine


def test_texts_of_a_schema() -> None:
    schema = {
        "properties": {
            "plain": {"type": "string", "description": "a word"},
            "few": {"enum": ["a", "b"]},
            "one": {"const": "a"},
            "moved": {"$ref": "#/$defs/colour"},
            "held": {"type": "string", "minLength": 2},
            "mixed": {"enum": ["a", 1]},
            "number": {"type": "integer"},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "ends": {"enum": ["</parameter>"]},
        },
        "$defs": {"colour": {"type": "string", "enum": ["red"]}},
    }
    assert texts(schema) == {"plain": None, "few": ["a", "b"], "one": ["a"], "moved": ["red"]}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "object", "properties": {"not a name": {}}}, "not a name"),
    ],
)
def test_what_pythons_form_cannot_hold_is_left_out_or_refused(
    schema: dict[str, Any], words: str, llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    context = Context(llm, ServerConfig())
    function = {"name": "f", "parameters": schema}
    (held,) = tool_functions(context, [{"function": function}], "python")
    assert held["parameters"]["properties"] == {}
    assert words in caplog.text
    with pytest.raises(ApiError, match=words):
        tool_functions(context, [{"function": {**function, "strict": True}}], "python")


def test_a_required_argument_without_a_schema_may_be_anything(llm: LLM) -> None:
    function = {"name": "f", "parameters": {"type": "object", "required": ["x"]}, "strict": True}
    (held,) = tool_functions(Context(llm, ServerConfig()), [{"function": function}], "python")
    assert (held["parameters"]["properties"], held["parameters"]["required"]) == ({"x": {}}, ["x"])
