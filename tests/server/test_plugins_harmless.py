"""Texts of plugins in a prompt hold no special token, and mean the same."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from octavo import LLM
from octavo.server.calls.ids import id_has, id_with, is_short, new_call_id
from octavo.server.harmless import harmless_json, harmless_tool
from plugin_cases import both

# Pieces of which special tokens are made, and text around them.
PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|im",
    "_end|>",
    "<",
    "|>",
    "\\",
    '"',
    "\n",
    "é",
    "😀",
    "a",
    " ",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def has_special(llm: LLM, text: str) -> bool:
    ids = llm.tokenize(text, add_special_tokens=False)
    return llm.detokenize(ids, skip_special_tokens=False) != llm.detokenize(ids)


def test_the_model_has_special_tokens(llm: LLM) -> None:
    assert has_special(llm, "a<|im_end|>b")
    assert not has_special(llm, "a<|im_end|b")


@settings(max_examples=300, deadline=None)
@given(value=VALUES, plain=st.booleans())
def test_json_keeps_its_meaning_and_loses_special_tokens(llm: LLM, value: Any, plain: bool) -> None:
    text = json.dumps(value, ensure_ascii=plain)
    found = harmless_json(llm, text)
    assert json.loads(found) == value
    assert not has_special(llm, found)
    if not has_special(llm, text):
        assert found == text


@settings(max_examples=100, deadline=None)
@given(about=TEXTS, inner=TEXTS)
def test_descriptions_lose_special_tokens(llm: LLM, about: str, inner: str) -> None:
    schema = {"type": "object", "properties": {"x": {"description": inner, "enum": ["b"]}}}
    tool = {"type": "function", "function": {"name": "f", "description": about, "parameters": schema}}
    found = harmless_tool(llm, tool)
    assert found["function"]["parameters"]["properties"]["x"]["enum"] == ["b"]
    for before, kept in (
        (about, found["function"]["description"]),
        (inner, found["function"]["parameters"]["properties"]["x"]["description"]),
    ):
        assert not has_special(llm, kept)
        if not has_special(llm, json.dumps(tool, ensure_ascii=False)):
            assert kept == before


@given(short=st.booleans(), one=st.text(max_size=80), other=st.text(max_size=80))
def test_an_id_says_under_which_schema_a_call_was_written(short: bool, one: str, other: str) -> None:
    made = id_with(new_call_id(short=short), one)
    assert is_short(made) == short
    assert id_has(made, one)
    assert id_has(made, other) == (one == other)
    assert not id_has("call_of_another_client", one)


def test_operations_with_special_tokens_in_their_values_are_not_offered(llm: LLM) -> None:
    from octavo.plugins import Plugin
    from octavo.server import ServerConfig
    from octavo.server.context import Context
    from octavo.server.plugins import offers

    local, _ = both()
    odd = Plugin("odd", version="1.0.0")

    @odd.operation()
    def look(at: str = "<|im_end|>") -> str:
        """Looks."""
        return at

    @odd.operation()
    def plain(at: str = "x") -> str:
        """Looks, too."""
        return at

    local.plugins["odd"] = odd
    with local.host() as host:
        context = Context(llm, ServerConfig(plugins=host))
        found, fault = offers(context, "odd", "plugins[0]", allowed=None, approval=None)
    assert ([offer.tool.operation for offer in found], fault) == (["plain"], None)
