"""Parsers of a model's text: the same pieces however the text is cut, and nothing lost."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.server.formats import FORMATS
from octavo.server.parsing import Arguments, Call, Content, Parser, Piece, Plain, Reasoning, Thinking

HERMES, MISTRAL, LLAMA = (FORMATS[name].parser for name in ("hermes", "mistral", "llama3_json"))


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


# Openings without ends, ends without openings.
HOSTILE = ["<tool_call>", "<tool_call", "{", "[", '"', "\\", "</tool_call>", "<think>", "[TOOL_CALLS]", "a"]
HOSTILE += ['{"name": "f", "arguments": [']


@pytest.mark.parametrize("make", [HERMES, MISTRAL, LLAMA, lambda: Thinking(HERMES())])
@pytest.mark.parametrize("unit", HOSTILE)
def test_linear_in_time(make: Callable[[], Parser], unit: str) -> None:
    """Sixteen times the text takes about sixteen times as long, not 256 times; nothing raises."""

    def seconds(count: int) -> float:
        text, parser = unit * count, make()
        begin = time.perf_counter()
        for start in range(0, len(text), 7):
            parser.feed(text[start : start + 7])
        parser.finish()
        return time.perf_counter() - begin

    small = min(seconds(1000) for _ in range(3))
    assert seconds(16_000) < 100 * small + 0.05
