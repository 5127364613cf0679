"""Parsers of a model's text: the same pieces however the text is cut, and nothing lost."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.server import reasoning
from octavo.server.calls.formats import FORMATS, REASONING
from octavo.server.config import REASONING_PARSERS, TOOL_PARSERS
from octavo.server.parsing import Arguments, Call, Content, Parser, Piece, Plain, Reasoning, Thinking, Without, Xml

HERMES, MISTRAL, LLAMA = (FORMATS[name].parser for name in ("hermes", "mistral", "llama3_json"))
ARGS, PYTHON, OLMO, V3, V31, GRANITE, PHI, FUNCTOOLS, COHERE, GLM = (
    FORMATS[name].parser
    for name in (
        "mistral_args", "pythonic", "olmo3", "deepseek_v3", "deepseek_v31", "granite", "phi4_mini", "phi4_mini_json",
        "cohere", "glm4",
    )
)  # fmt: skip
GEMMA = FORMATS["gemma"].parser
# Which arguments are texts comes from the tools: `s` is one.
QWEN = partial(Xml, {"f": {"s"}})
QWEN_F = "<tool_call>\n<function=f>\n"
QWEN_END = "\n</parameter>\n</function>\n</tool_call>"
V3_TEXT = (
    "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"x": "```"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V31_TEXT = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": [1]}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)


def thinking(name: str, rest: Parser, prompt: str) -> Parser:
    return reasoning.parser(name, rest, reasoning.state_after(name, prompt))


def read(parser: Parser, text: str, cuts: list[int] | None = None) -> list[Piece]:
    """All pieces of `text`, cut at `cuts`, with neighbours of a kind joined."""
    points = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts or [])})
    pieces: list[Piece] = []
    for start, end in itertools.pairwise(points):
        pieces += parser.feed(text[start:end])
    pieces += parser.finish()
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and type(last) is type(piece) and not isinstance(piece, Call):
            joined[-1] = type(piece)(last.text + piece.text)  # type: ignore[union-attr]
        else:
            joined.append(piece)
    return joined


CASES: list[tuple[Callable[[], Parser], str, list[Piece]]] = [
    (HERMES, "Just text.", [Content("Just text.")]),
    (HERMES, "a < b <tool", [Content("a < b <tool")]),
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [Call("f"), Arguments('{"x": 1}')]),
    (
        HERMES,
        'Hm.<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"s": "}<"}}</tool_call>',
        [Content("Hm."), Call("f"), Arguments("{}"), Call("g"), Arguments('{"s": "}<"}')],
    ),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": [1, {}]}, "name": "late"}</tool_call>',
        [Call("late"), Arguments('{"a": [1, {}]}')],
    ),
    (HERMES, "<tool_call>not JSON", [Content("<tool_call>not JSON")]),
    (HERMES, '<tool_call>{"x": 1}</tool_call>', [Content('<tool_call>{"x": 1}'), Content("</tool_call>")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"x": ', [Call("f"), Arguments('{"x": ')]),
    (HERMES, '<tool_call>{"na', [Content('<tool_call>{"na')]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"x": "\\"]"}}]', [Call("f"), Arguments('{"x": "\\"]"}')]),
    (
        MISTRAL,
        'ok [TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"y": null}}]',
        [Content("ok "), Call("f"), Arguments("{}"), Call("g"), Arguments('{"y": null}')],
    ),
    (LLAMA, '{"name": "f", "parameters": {"x": 1}}', [Call("f"), Arguments('{"x": 1}')]),
    (
        LLAMA,
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        [Call("f"), Arguments("{}"), Call("g"), Arguments("{}")],
    ),
    (LLAMA, "Hello {", [Content("Hello {")]),
    (LLAMA, '{"a": 1}', [Content('{"a": 1}')]),
    (LLAMA, '{"a', [Content('{"a')]),
    (LLAMA, " ", [Content(" ")]),
    (ARGS, '[TOOL_CALLS]f[ARGS]{"x": "]"}', [Call("f"), Arguments('{"x": "]"}')]),
    (
        ARGS,
        'Hm [TOOL_CALLS]f[CALL_ID]a1B2c3D4e[ARGS]{"x": {}}[TOOL_CALLS]g-2[ARGS]{} ok',
        [Content("Hm "), Call("f"), Arguments('{"x": {}}'), Call("g-2"), Arguments("{}"), Content("ok")],
    ),
    (ARGS, "[TOOL_CALLS]no name[ARGS]{}", [Content("[TOOL_CALLS]no name[ARGS]{}")]),
    (ARGS, "[TOOL_CALLS]f[AR", [Content("[TOOL_CALLS]f[AR")]),
    (ARGS, "[TOOL_CALLS]" + "x" * 300, [Content("[TOOL_CALLS]" + "x" * 300)]),
    (ARGS, '[TOOL_CALLS]f[ARGS]{"x": ', [Call("f"), Arguments('{"x": ')]),
    (V3, V3_TEXT, [Content("Hm."), Call("f"), Arguments('{"x": "```"}'), Call("g"), Arguments("{}")]),
    (V3, "<｜tool▁calls▁begin｜>what", [Content("<｜tool▁calls▁begin｜>what")]),
    (V3, "<｜tool▁calls▁begin｜>", [Content("<｜tool▁calls▁begin｜>")]),
    (V3, "a <｜tool", [Content("a <｜tool")]),
    (V31, V31_TEXT, [Call("f"), Arguments('{"x": [1]}'), Call("g"), Arguments("{}")]),
    (V31, f"{V31_TEXT}\nDone.", [Call("f"), Arguments('{"x": [1]}'), Call("g"), Arguments("{}"), Content("Done.")]),
    (
        GRANITE,
        '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, {"arguments": {}, "name": "g"}]',
        [Call("f"), Arguments('{"x": 1}'), Call("g"), Arguments("{}")],
    ),
    (PHI, '<|tool_call|>[{"name": "f", "arguments": {"x": "]"}}]<|/tool_call|>', [Call("f"), Arguments('{"x": "]"}')]),
    (FUNCTOOLS, 'functools[{"name": "f", "arguments": {"x": 1}}]', [Call("f"), Arguments('{"x": 1}')]),
    (
        COHERE,
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"name": "n"}},\n'
        '    {"tool_call_id": "1", "tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
        [Call("f"), Arguments('{"name": "n"}'), Call("g"), Arguments("{}")],
    ),
    (GLM, 'get_weather\n{"city": "Paris"}', [Call("get_weather"), Arguments('{"city": "Paris"}')]),
    (GLM, "\nf \n {}\n", [Call("f"), Arguments("{}")]),
    (GLM, "Hello.\nHow are you?", [Content("Hello.\nHow are you?")]),
    (GLM, "Hello\nHow are you?", [Content("Hello\nHow are you?")]),
    (GLM, "Hello", [Content("Hello")]),
    (GLM, "\n{}", [Content("\n{}")]),
    (GLM, " " * 300 + "f\n{}", [Content(" " * 300 + "f\n{}")]),
    (
        PYTHON,
        "[f(x=1, s='it\\'s \"x\"', on=True, none=None), ns.g(a=[1, 2.5], d={'k': (1, -2)})]",
        [
            Call("f"),
            Arguments('{"x": 1, "s": "it\'s \\"x\\"", "on": true, "none": null}'),
            Call("ns.g"),
            Arguments('{"a": [1, 2.5], "d": {"k": [1, -2]}}'),
        ],
    ),
    (PYTHON, "<|python_start|>[f()]<|python_end|>", [Call("f"), Arguments("{}")]),
    (PYTHON, 'f(x="a, b)")', [Content('f(x="a, b)")')]),
    (PYTHON, "[1, 2]", [Content("[1, 2]")]),
    (PYTHON, "[]", [Content("[]")]),
    (PYTHON, "[see", [Content("[see")]),
    (PYTHON, "Hello [f()]", [Content("Hello [f()]")]),
    (PYTHON, '[f(x="\\u00e9\\x41\\n\\q")]', [Call("f"), Arguments('{"x": "\\u00e9\\u0041\\n\\\\q"}')]),
    (PYTHON, "[f(x=bare, y=1_000)] and", [Call("f"), Arguments('{"x": "bare", "y": 1000}'), Content("and")]),
    (PYTHON, '[f(x="a', [Call("f"), Arguments('{"x": "a')]),
    (
        OLMO,
        "Hm.<function_calls>\nf(x='<', y=[])\ng()\n</function_calls>\nok",
        [Content("Hm."), Call("f"), Arguments('{"x": "<", "y": []}'), Call("g"), Arguments("{}"), Content("ok")],
    ),
    (OLMO, "<function_calls>none</function_calls>", [Content("<function_calls>none</function_calls>")]),
    (OLMO, "<function_calls>\nf", [Content("<function_calls>\nf")]),
    (
        QWEN,
        f'Hm.\n{QWEN_F}<parameter=s>\na "b"\n\n c\n</parameter>\n<parameter=n>\n[1, {{}}]{QWEN_END}\n'
        "<tool_call>\n<function=g>\n</function>\n</tool_call>\nok",
        [
            Content("Hm.\n"),
            Call("f"),
            Arguments('{"s": "a \\"b\\"\\n\\n c", "n": [1, {}]}'),
            Call("g"),
            Arguments("{}"),
            Content("ok"),
        ],
    ),
    (
        QWEN,
        "<tool_call><function=f><parameter=s>1</parameter><parameter=n> None </parameter></function></tool_call>",
        [Call("f"), Arguments('{"s": "1", "n": "None"}')],
    ),
    (QWEN, f"{QWEN_F}<parameter=s>\n</para\n{QWEN_END}", [Call("f"), Arguments('{"s": "</para\\n"}')]),
    (QWEN, f"{QWEN_F}<parameter=n>\nNaN{QWEN_END}", [Call("f"), Arguments('{"n": "NaN"}')]),
    (QWEN, f"{QWEN_F}<parameter=s>\nhal", [Call("f"), Arguments('{"s": "hal')]),
    (QWEN, f"{QWEN_F}</function>\n<function=g>\n</function>", [Call("f"), Arguments("{}"), Call("g"), Arguments("{}")]),
    (QWEN, f"{QWEN_F}what</function>", [Call("f"), Arguments("{}"), Content("what</function>")]),
    (QWEN, "<tool_call>\n<function=f g>", [Content("<tool_call>\n<function=f g>")]),
    (QWEN, "<tool_call>\n{}", [Content("<tool_call>\n{}")]),
    (QWEN, "<tool_call>\n<func", [Content("<tool_call>\n<func")]),
    (QWEN, "<tool_call><function=" + "x" * 300, [Content("<tool_call><function=" + "x" * 300)]),
    (QWEN, "a <tool_cal", [Content("a <tool_cal")]),
    (
        GEMMA,
        "Hm.\n```tool_code\nf(x='```', y=[])\n```\nok",
        [Content("Hm.\n"), Call("f"), Arguments('{"x": "```", "y": []}'), Content("ok")],
    ),
    (GEMMA, "```python\nprint(1)\n```", [Content("```python\nprint(1)\n```")]),
    (
        lambda: thinking("cohere", COHERE(), ""),
        "<|START_THINKING|>so<|END_THINKING|><|START_RESPONSE|>Yes <|x.<|END_RESPONSE|>",
        [Reasoning("so"), Content("Yes <|x.")],
    ),
    (
        lambda: thinking("cohere", COHERE(), ""),
        '<|START_THINKING|>so<|END_THINKING|><|START_ACTION|>[{"tool_name": "f", "parameters": {}}]<|END_ACTION|>',
        [Reasoning("so"), Call("f"), Arguments("{}")],
    ),
    (lambda: Without(Plain(), "<a>", "</a>"), "<a>x<</a>a></a", [Content("x<a></a")]),
    (lambda: thinking("deepseek_r1", Plain(), ""), "so</think>Yes.", [Reasoning("so"), Content("Yes.")]),
    (lambda: thinking("deepseek_r1", V3(), ""), "<think>so</think>Yes.", [Reasoning("so"), Content("Yes.")]),
    (lambda: thinking("think", Plain(), "<think>\n"), "so</think>Yes.", [Reasoning("so"), Content("Yes.")]),
    (lambda: thinking("mistral", ARGS(), ""), "[THINK]a[/THINK]b", [Reasoning("a"), Content("b")]),
    (
        lambda: thinking("granite", Plain(), ""),
        "Here is my thought process: a\n\nHere is my response: b",
        [Reasoning(" a\n\n"), Content("b")],
    ),
    (lambda: Thinking(Plain()), "<think>\nhm</think>\n\nYes.", [Reasoning("\nhm"), Content("Yes.")]),
    (lambda: Thinking(Plain()), "No thoughts <think>", [Content("No thoughts <think>")]),
    (lambda: Thinking(Plain(), inside=True), "so</think>Yes.", [Reasoning("so"), Content("Yes.")]),
    (lambda: Thinking(Plain(), inside=True), "never ends </thi", [Reasoning("never ends </thi")]),
    (
        lambda: Thinking(HERMES()),
        '<think>a</think><tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [Reasoning("a"), Call("f"), Arguments("{}")],
    ),
]


def joined(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        if out and isinstance(piece, Content) and isinstance(out[-1], Content):
            out[-1] = Content(out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


@pytest.mark.parametrize(("make", "text", "want"), CASES)
def test_pieces(make: Callable[[], Parser], text: str, want: list[Piece]) -> None:
    assert read(make(), text) == joined(want)
    assert read(make(), text, list(range(len(text)))) == joined(want), "character by character"
    for at in range(1, len(text)):
        assert read(make(), text, [at]) == joined(want), f"cut at {at}"
    for size in (2, 3, 7):
        for begin in range(size):
            assert read(make(), text, list(range(begin, len(text), size))) == joined(want), f"{begin}, then by {size}"
    if len(text) <= 32:
        for pair in itertools.combinations(range(1, len(text)), 2):
            assert read(make(), text, list(pair)) == joined(want), f"cut at {pair}"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 200), max_size=12))
def test_cuts_make_no_difference(case: tuple[Callable[[], Parser], str, list[Piece]], cuts: list[int]) -> None:
    make, text, want = case
    assert read(make(), text, cuts) == joined(want)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.lists(st.integers(0, 500), max_size=9))
def test_arguments_come_back_as_they_were(arguments: list[dict[str, object]], cuts: list[int]) -> None:
    calls = [{"name": f"f{i}", "arguments": a} for i, a in enumerate(arguments)]
    text = "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)
    pieces = read(HERMES(), text, cuts)
    assert [p.name for p in pieces if isinstance(p, Call)] == [c["name"] for c in calls]
    assert [json.loads(p.text) for p in pieces if isinstance(p, Arguments)] == arguments
    text = "[TOOL_CALLS]" + json.dumps(calls)
    assert [json.loads(p.text) for p in read(MISTRAL(), text, cuts) if isinstance(p, Arguments)] == arguments


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.lists(st.integers(0, 500), max_size=9))
def test_every_format_gives_back_what_was_written(arguments: list[dict[str, object]], cuts: list[int]) -> None:
    def check(parser: Parser, text: str) -> None:
        pieces = read(parser, text, cuts)
        assert [p.name for p in pieces if isinstance(p, Call)] == [f"f{i}" for i in range(len(arguments))]
        assert [json.loads(p.text) for p in pieces if isinstance(p, Arguments)] == arguments
        assert len(pieces) == 2 * len(arguments), "nothing is left over"

    whole = [(f"f{i}", json.dumps(a, ensure_ascii=i % 2 == 0)) for i, a in enumerate(arguments)]
    objects = ", ".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in whole)
    check(ARGS(), "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in whole))
    check(GRANITE(), f"<|tool_call|>[{objects}]")
    check(PHI(), f"<|tool_call|>[{objects}]<|/tool_call|>")
    begin, end, one, last, sep = (
        f"<｜tool▁{x}｜>" for x in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
    )
    check(V31(), begin + "".join(f"{one}{n}{sep}{a}{last}" for n, a in whole) + end)
    v3 = "\n".join(f"{one}function{sep}{n}\n```json\n{a}\n```{last}" for n, a in whole)
    check(V3(), begin + v3 + end)

    # An argument each: a text as it stands, anything else as JSON.
    def xml(a: dict[str, object]) -> str:
        values = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in a.items())
        return "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values)

    if all(not any(c in k for c in "<>\n") and k for a in arguments for k in a):
        strings = {f"f{i}": {k for k, v in a.items() if isinstance(v, str)} for i, a in enumerate(arguments)}
        calls = [f"<tool_call>\n<function=f{i}>\n{xml(a)}</function>\n</tool_call>" for i, a in enumerate(arguments)]
        check(Xml(strings), "\n".join(calls))
    if len(whole) == 1:
        check(GLM(), "{}\n{}".format(*whole[0]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), VALUES, max_size=3), min_size=1, max_size=3
    ),
    st.lists(st.integers(0, 500), max_size=9),
    st.booleans(),
)
def test_python_values_are_read_as_python_has_them(
    arguments: list[dict[str, object]], cuts: list[int], literal: bool
) -> None:
    """Each argument as `repr` writes it, or as JSON does."""
    write = repr if literal else json.dumps
    calls = [f"f{i}({', '.join(f'{k}={write(v)}' for k, v in a.items())})" for i, a in enumerate(arguments)]
    for parser, text in (
        (PYTHON(), f"[{', '.join(calls)}]"),
        (OLMO(), "<function_calls>\n" + "\n".join(calls) + "\n</function_calls>"),
    ):
        pieces = read(parser, text, cuts)
        assert [p.name for p in pieces if isinstance(p, Call)] == [f"f{i}" for i in range(len(arguments))]
        assert [json.loads(p.text) for p in pieces if isinstance(p, Arguments)] == arguments


def test_the_settings_name_every_format() -> None:
    assert tuple(FORMATS) == TOOL_PARSERS
    assert tuple(REASONING) == REASONING_PARSERS


# Openings without ends, ends without openings.
HOSTILE = ["<tool_call>", "<tool_call", "{", "[", '"', "\\", "</tool_call>", "<think>", "[TOOL_CALLS]", "a"]
HOSTILE += [
    '{"name": "f", "arguments": [',
    "[TOOL_CALLS]f[ARGS]{",
    "[f(x=(",
    "\\'",
    "<｜tool▁calls▁begin｜>",
    QWEN_F,
    f"{QWEN_F}<parameter=s>",
    f"{QWEN_F}<parameter=n>",
    "</para",
    "```tool_code f(",
    "<|START_RESPONSE|>",
    " ",
    "f\n",
]
PARSERS = [
    *(f.parser for f in FORMATS.values() if f.style != "xml"),
    QWEN,
    lambda: Thinking(HERMES()),
    lambda: thinking("granite", PYTHON(), ""),
    lambda: thinking("cohere", COHERE(), ""),
]


def work_of(parser: Parser, text: str, portion: int) -> int:
    """Work of parsing `text`: one per call of a function, and the length of the string per call of a string method.
    Unlike a time it does not depend on the machine."""
    work = 0

    def count(_frame: FrameType, event: str, arg: Any) -> None:
        nonlocal work
        owner = getattr(arg, "__self__", None) if event == "c_call" else None
        work += len(owner) if isinstance(owner, str) else event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for start in range(0, len(text), portion):
            parser.feed(text[start : start + portion])
        parser.finish()
    finally:
        sys.setprofile(None)
    return work


# In small portions, as a stream comes, and all at once.
PORTIONS = (7, 1 << 30)


@pytest.mark.parametrize("make", PARSERS)
@pytest.mark.parametrize("unit", HOSTILE)
def test_linear_in_time(make: Callable[[], Parser], unit: str) -> None:
    """Sixteen times the text takes about sixteen times the work, not 256 times; nothing raises."""
    for portion in PORTIONS:
        small = work_of(make(), unit * 100, portion)
        assert work_of(make(), unit * 1_600, portion) < 24 * small + 1000, portion


class Rescans(Parser):
    """Searches all of the text again at each portion: its work grows with the square of the text."""

    text = ""

    def feed(self, text: str) -> list[Piece]:
        self.text += text
        return [] if self.text.find("<") < 0 else [Content(text)]

    def finish(self) -> list[Piece]:
        return []


def test_the_count_shows_quadratic_work() -> None:
    small = work_of(Rescans(), "x" * 100, 7)
    assert work_of(Rescans(), "x" * 1_600, 7) > 50 * small
