"""What the chat template gets of a conversation: ids, arguments, calls as text, and messages that are continued."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from in_process import TOOL, Served, asked, serving
from octavo import LLM
from octavo.server.calls.arguments import arguments_object
from octavo.server.calls.as_text import write_calls
from octavo.server.calls.formats import FORMATS
from octavo.server.calls.ids import is_short, short_ids
from octavo.server.parsing import Arguments, Call
from octavo.server.template_traits import call_form, needs_short_ids

MODEL = "octavo-embedded"
# Templates in the manner of families that read calls in different ways.
TURNS = "{% for m in messages %}"
END = "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
STRICT_IDS = (
    TURNS + "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('length 9!') }}{% endif %}"
    "[TOOL_CALLS] {{ c.function | tojson }} id={{ c.id }} {% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('length 9!') }}{% endif %}result={{ m.tool_call_id }} {% endif %}" + END
)
ITEMS = (
    TURNS + "{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments.items() %}"
    "{{ k }}={{ v | tojson if v is not string else v }};{% endfor %}{% endfor %}" + END
)
TOJSON = TURNS + "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}" + END
JOINED = (
    TURNS + "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments + '</call>' }}"
    "{% endfor %}" + END
)
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with serving(None) as made:
        yield made


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    with serving(STRICT_IDS, tool_parser="mistral") as made:
        yield made


@pytest.fixture(scope="module")
def items() -> Iterator[Served]:
    with serving(ITEMS) as made:
        yield made


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parser", ["mistral", "hermes"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_conversation_goes_on(parser: str, stream: bool) -> None:
    """The template refuses other ids. The parser's family, or the template itself, leads to ids that it takes."""
    with serving(STRICT_IDS, tool_parser=parser) as served:
        turns: Any = [{"role": "user", "content": "Call it twice."}]
        ask: Any = {"model": MODEL, "tools": [TOOL], "max_tokens": 80, "temperature": 0}
        for _ in range(2):
            calls: list[Any] = []
            if stream:
                for chunk in served.client.chat.completions.create(
                    messages=turns, tool_choice="required", stream=True, **ask
                ):
                    for delta in chunk.choices[0].delta.tool_calls or []:
                        if delta.id:
                            calls.append(
                                {"id": delta.id, "type": "function", "function": {"name": delta.function.name}}
                            )
                        calls[-1]["function"].setdefault("arguments", "")
                        calls[-1]["function"]["arguments"] += delta.function.arguments or ""
            else:
                answer = served.client.chat.completions.create(messages=turns, tool_choice="required", **ask)
                calls = [call.model_dump() for call in answer.choices[0].message.tool_calls or []]
            assert calls
            assert all(is_short(call["id"]) for call in calls)
            # Arguments that max_tokens has cut off go back too.
            turns.append({"role": "assistant", "tool_calls": calls})
            turns += [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in calls]
        ids = [turn["tool_call_id"] for turn in turns if turn["role"] == "tool"]
        assert len(set(ids)) == len(ids)
        assert served.client.chat.completions.create(messages=turns, **ask).choices


@pytest.mark.parametrize("foreign", ["call_abc", "c1", "toolu_01" + "A" * 30, "ärger1234", "x" * 500, "functions.f:0"])
def test_ids_of_other_clients_are_mapped_at_both_ends(foreign: str, strict: Served) -> None:
    turns = asked((foreign, "{}"), ("abcdefghi", "{}"))
    prompt = strict.prompt(turns, tools=[TOOL])
    mapped = short_ids([foreign])[foreign]
    assert is_short(mapped)
    assert f"id={mapped}" in prompt
    assert f"result={mapped}" in prompt
    assert "id=abcdefghi" in prompt, "a valid id stays"
    assert strict.prompt([*turns, {"role": "user", "content": "And?"}], tools=[TOOL]).startswith(
        prompt[: prompt.index("[{")]
    ), "the mapping stays in the next turn"


@pytest.mark.parametrize("missing", [None, ""])
def test_missing_ids_are_made(missing: str | None, strict: Served) -> None:
    turns = asked((missing, "{}"), (missing, "{}"))
    for turn in turns[2:]:
        del turn["tool_call_id"]
    prompt = strict.prompt(turns, tools=[TOOL])
    calls = [part.split()[0] for part in prompt.split(" id=")[1:]]
    assert calls == [part.split()[0] for part in prompt.split("result=")[1:]]
    assert len(set(calls)) == 2


def test_mapped_ids_never_collide() -> None:
    wanted = short_ids(["c1"])["c1"]
    found = short_ids(["c1", wanted, "c2"])
    assert found[wanted] == wanted
    assert len(set(found.values())) == 3
    many = short_ids(str(i) for i in range(2000))
    assert len(set(many.values())) == 2000
    assert all(map(is_short, many.values()))


def test_other_templates_keep_the_ids(plain: Served) -> None:
    answer = plain.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], tools=[TOOL], tool_choice="required", max_tokens=60
    )
    assert answer.choices[0].message.tool_calls[0].id.startswith("call-")  # type: ignore[index]


# --- arguments ------------------------------------------------------------------------------------------------------

BIG = 123456789012345678901234567890
READ: list[tuple[Any, str]] = [
    ("{}", ""), ("", ""), ("  ", ""), ("null", ""), (None, ""),
    ('{"a": 1}', "a=1;"), ({"a": 1}, "a=1;"), ({"a": {"b": [1]}}, 'a={"b": [1]};'),
    ('{"a": "cut off', "a=cut off;"), ('{"a": "x\\u12', "a=x;"), ('{"a": 1, "b": tru', "a=1;"),
    ('{"a": [1, {"b": 2', 'a=[1, {"b": 2}];'), ('{"a": 1}}', "a=1;"), ("plain", "arguments=plain;"),
    ("[1]", "arguments=[1];"), ([1, "x"], 'arguments=[1, "x"];'), (True, "arguments=true;"),
    ("{'a': 1}", "arguments={'a': 1};"), ('{"a": 1}{"b": 2}', 'arguments={"a": 1}{"b": 2};'),
    (f'{{"a": {BIG}}}', f"a={BIG};"), (f'{{"a": [-{BIG}, {2**64}]}}', f"a=[-{BIG}, {2**64}];"),
    ({"a": BIG}, f"a={BIG};"), ('{"a": NaN, "b": 1e999}', "a=NaN;b=1e999;"), ('{"a": "\\ud800"}', "a=\ufffd;"),
    ("[" * 500, "arguments=" + "[" * 500),
]  # fmt: skip


@pytest.mark.parametrize(("given", "shown"), READ, ids=[str(given)[:24] for given, _ in READ])
def test_no_arguments_end_a_conversation(given: Any, shown: str, items: Served) -> None:
    assert shown + "assistant:" in items.prompt(asked(("c1", given))) or given == "[" * 500
    call = items.prompt(asked(("c1", given), ("c2", "{}")), tools=[TOOL])
    assert shown[:100] in call


def test_integers_keep_their_digits() -> None:
    for template in (TOJSON, JOINED):
        with serving(template) as served:
            tool = json.loads(json.dumps(TOOL))
            tool["function"]["parameters"]["properties"]["city"] = {"type": "integer", "maximum": BIG}
            prompt = served.prompt(asked(("c1", f'{{"n": {BIG}, "t": "{BIG}"}}')), tools=[tool])
            assert f'{{"n": {BIG}, "t": "{BIG}"}}' in prompt
            assert f'"maximum": {BIG}' in prompt


def test_unreadable_arguments_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with serving(ITEMS) as served, caplog.at_level(logging.WARNING, "octavo.server"):
        served.prompt(asked(("c1", "{}")))
        assert "arguments" not in caplog.text
        served.prompt(asked(("c1", "my secret")))
    assert "arguments of an earlier call" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_earlier_reasoning_is_read_by_both_names(name: str) -> None:
    with serving(TURNS + "{{ m.reasoning_content }}/" + END) as served:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", name: "hm"}]
        assert "hm/assistant: y" in served.prompt(turns)


def test_hostile_arguments_are_read_soon() -> None:
    for text in ('{"a":' * 100_000, "{" + "[" * 300_000, '{"a": "' + "\\u00" * 100_000, '{"a":"' + "x" * 1_000_000):
        arguments_object(text)


# --- templates without a system message -----------------------------------------------------------------------------

SYSTEM: Any = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
NO_SYSTEM = {
    "refuses": "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}",
    "drops": "{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}",
}


@pytest.mark.parametrize("kind", NO_SYSTEM)
def test_system_messages_are_said_by_the_user(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving("{% for m in messages %}" + NO_SYSTEM[kind] + "{% endfor %}") as served:
        assert served.prompt(SYSTEM[1:]) == "[user]U"
        assert "no system message" not in caplog.text
        with caplog.at_level(logging.WARNING, "octavo.server"):
            assert served.prompt(SYSTEM) == "[user]S\n\nU"
            done = served.client.responses.create(model=MODEL, instructions="S", input="U", max_output_tokens=1)
        assert "no system message" in caplog.text
        assert done.usage
        assert done.usage.input_tokens == len(served.llm.tokenize("[user]S\n\nU", add_special_tokens=False))
        assert served.prompt(SYSTEM, tools=[TOOL]).startswith("[user]You can call functions.")
        assert served.prompt([*SYSTEM, {"role": "assistant", "content": "A"}, SYSTEM[0]]) == (
            "[user]S\n\nU[assistant]A[user]S"
        )


# --- templates that show no calls -----------------------------------------------------------------------------------


def test_earlier_calls_stand_in_the_form_that_was_taught(plain: Served) -> None:
    turns = asked(("c1", '{"city": "Oslo"}'))
    turns[1]["content"] = "Let me see."
    turns += [{"role": "assistant", "content": "Cold."}, {"role": "user", "content": "Thanks"}]
    for more in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}):
        prompt = plain.prompt(turns, **more)
        said = (
            "<|im_start|>assistant\nLet me see.\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\n<tool_response>\nanswer 0\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\nCold.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n"
        )
        assert said in prompt
        assert ("You can call functions" in prompt) == (more == {"tools": [TOOL]})


def test_parallel_calls_carry_their_ids(plain: Served) -> None:
    prompt = plain.prompt(asked(("c1", '{"city": "Oslo"}'), ("c2", '{"city": "Rome"}')), tools=[TOOL])
    for i, (call, city) in enumerate((("c1", "Oslo"), ("c2", "Rome"))):
        assert f'{{"name": "weather", "arguments": {{"city": "{city}"}}, "id": "{call}"}}' in prompt
        assert f'<tool_response>\n{{"name": "weather", "id": "{call}"}}\nanswer {i}\n</tool_response>' in prompt
    assert prompt.count("<|im_start|>user") == 2, "the results are one turn"


def test_gemma_reads_calls_as_code() -> None:
    with serving(GEMMA) as served:
        prompt = served.prompt(asked(("c1", '{"city": "Oslo"}'), ("c2", '{"city": "Rome"}')), tools=[TOOL])
    assert '```tool_code\nweather(city="Oslo")\nweather(city="Rome")\n```' in prompt
    assert '```tool_output\n{"name": "weather", "id": "c2", "arguments": {"city": "Rome"}}\nanswer 1\n```' in prompt


def test_roles_alternate_where_results_are_text() -> None:
    with serving(ALTERNATES) as served:
        turns = [*asked(("c1", "{}")), {"role": "user", "content": "And?"}]
        assert "answer 0\n</tool_response>\n\nAnd?" in served.prompt(turns)


def test_a_template_with_tools_and_results_keeps_its_form_of_results() -> None:
    """Granite's template describes tools and shows results, and leaves out calls."""
    template = TURNS + "[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    with serving(template, tool_parser="granite") as served:
        prompt = served.prompt(asked(("c1", '{"city": "Oslo"}')), tools=[TOOL])
    call = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]'
    assert f"[assistant]{call}\n[tool]answer 0\n" in prompt


@pytest.mark.parametrize("template", [STRICT_IDS, ITEMS, TOJSON, JOINED])
def test_templates_that_show_calls_show_them(template: str) -> None:
    with serving(template) as served:
        for more in ({}, {"tools": [TOOL]}):
            prompt = served.prompt(asked(("c1", '{"city": "Oslo"}')), **more)
            assert "tool: answer 0" in prompt
            assert "<tool_response>" not in prompt
            assert "Oslo" in prompt


@pytest.mark.parametrize("name", FORMATS)
def test_written_calls_are_read_back(name: str) -> None:
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"s": {"type": "string"}, "n": {}}}}]
    arguments = {"s": "it's\nélan", "n": [1, {"x": None, "y": True}]}
    calls = [{"id": f"c{i}", "function": {"name": "f", "arguments": arguments}} for i in range(2)]
    form = FORMATS[name]
    for given in (calls[:1], calls) if form.begin or form.sep is not None else (calls[:1],):
        parser = form.reader(tools)
        pieces = [*parser.feed(write_calls(form, given)), *parser.finish()]
        assert [piece.name for piece in pieces if isinstance(piece, Call)] == ["f"] * len(given)
        text = "".join(piece.text for piece in pieces if isinstance(piece, Arguments))
        decoder, read = json.JSONDecoder(), []
        while text:
            value, end = decoder.raw_decode(text)
            read.append(value)
            text = text[end:]
        assert read == [arguments] * len(given)


def test_traits_of_templates(llm: LLM) -> None:
    wanted = {STRICT_IDS: "object", ITEMS: "object", TOJSON: "object", JOINED: "text", PLAIN: "none", GEMMA: "none"}
    for template, form in wanted.items():
        with LLM(max_num_seqs=1, chat_template=template) as made:
            assert {call_form(made, with_tools=flag) for flag in (True, False)} == {form}, template
            assert needs_short_ids(made) == (template == STRICT_IDS)
    assert call_form(llm, with_tools=False) == "none"
