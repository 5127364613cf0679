"""The template engine against Jinja2, as transformers configures it: the same text, or refused by both."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from octavo import LLM
from octavo.errors import InvalidRequestError
from template_features import EXPRESSIONS, LENIENT, STATEMENTS, VALUES
from transformers.utils.chat_template_utils import _compile_jinja_template

MESSAGES = [{"role": "user", "content": "hi"}]
# Between the outputs of expressions that are rendered together.
MARK = "\x1e"


def reference(template: str) -> str | None:
    """What Jinja2 writes; None where it raises."""
    variables: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": False, **VALUES}
    try:
        return str(_compile_jinja_template(template).render(messages=MESSAGES, **variables))
    except Exception:  # any error of Python, whatever the template does
        return None


def ours(template: str) -> str | None:
    """What octavo writes; None where it refuses."""
    try:
        with LLM(chat_template=template, max_model_len=64, max_num_seqs=1, threads=1) as llm:
            return llm.render_chat(MESSAGES, add_generation_prompt=False, **VALUES)
    except InvalidRequestError:
        return None


def differences(expressions: list[str]) -> list[str]:
    """Expressions that are written otherwise. Those that Jinja2 can write are rendered together."""
    wanted = {e: reference("{{ " + e + " }}") for e in expressions}
    written = [e for e in expressions if wanted[e] is not None]
    text = ours(f"{{{{ '{MARK}' }}}}".join("{{ " + e + " }}" for e in written))
    wrong = [e for e in expressions if wanted[e] is None and ours("{{ " + e + " }}") is not None]
    if text is None or not written:
        return wrong + [e for e in written if ours("{{ " + e + " }}") != wanted[e]]
    got = dict(zip(written, text.split(MARK), strict=True))
    return wrong + [f"{e}: {got[e]!r}, not {wanted[e]!r}" for e in written if got[e] != wanted[e]]


CHUNKS = [EXPRESSIONS[i : i + 100] for i in range(0, len(EXPRESSIONS), 100)]


@pytest.mark.parametrize("expressions", CHUNKS, ids=[chunk[0] for chunk in CHUNKS])
def test_expressions(expressions: list[str]) -> None:
    assert differences(expressions) == []


@pytest.mark.parametrize("template", STATEMENTS)
def test_statements(template: str) -> None:
    assert ours(template) == reference(template)


@pytest.mark.parametrize(("template", "text"), LENIENT)
def test_what_cannot_be_the_same(template: str, text: str) -> None:
    """Addresses of objects are no text to compare; what is written instead."""
    assert ours(template) == text


def words(text: str) -> list[str]:
    return text.split()


ATOMS = st.sampled_from(
    words(
        "1 0 -1 7 2.5 1e16 -0.5 true false none nope '' 'abc' '12' '-3' s e u nil i neg x big l w m z zm p text "
        "[] [1,2] ['a'] (1,) {'a':1} range(3) 'a,b' 10**20 'ÄÖß'"
    )
)
FILTERS = words(
    "upper lower title capitalize trim length list first last reverse|list sort unique|list join join(',') int float "
    "string abs round round(1) sum min max default('d') default('d',true) e tojson tojson(indent=2) indent "
    "indent(2,true) wordcount truncate(5) truncate(5,true) center(9) replace('a','b') map('string')|list "
    "select('string')|list reject('none')|list batch(2)|list slice(2)|list dictsort items|list urlencode striptags "
    "wordwrap(4) filesizeformat attr('x') pprint first|string count"
)
TESTS = words(
    "defined undefined none string number integer float boolean mapping sequence iterable callable odd even true "
    "false upper lower escaped divisibleby(2) eq(1) lt(2) in([1,'a']) sameas(none)"
)
METHODS = words(
    ".upper() .strip() .split() .split('l') .splitlines() .title() .swapcase() .find('l') .rfind('l') .count('l') "
    ".isdigit() .replace('l','L') .partition('l') .rsplit(none,1) .zfill(5) .get('a') .items()|list .keys()|list "
    ".index(1) .nope ['a'] [0] [-1] [1:] [::-1] [:2] [::2] .startswith('H') .endswith('') .expandtabs(2) .join(['x'])"
)
OPERATORS = [*words("+ - * / // % ~ == != < <= > >= and or in"), "not in"]


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions of smaller ones."""
    pair = st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})")
    return st.one_of(
        pair,
        st.tuples(inner, st.sampled_from(FILTERS)).map(lambda t: f"({t[0]}) | {t[1]}"),
        st.tuples(inner, st.sampled_from(TESTS)).map(lambda t: f"({t[0]}) is {t[1]}"),
        st.tuples(inner, st.sampled_from(TESTS)).map(lambda t: f"({t[0]}) is not {t[1]}"),
        st.tuples(inner, st.sampled_from(METHODS)).map("({0[0]}){0[1]}".format),
        st.tuples(inner, inner, inner).map("({0[0]}) if ({0[1]}) else ({0[2]})".format),
        st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]"),
        st.sampled_from(["not ", "-", "+"]).flatmap(lambda sign: inner.map(lambda e: f"{sign}({e})")),
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.recursive(ATOMS, grown, max_leaves=5), min_size=1, max_size=8))
def test_any_expression(expressions: list[str]) -> None:
    plain = [e for e in expressions if " at 0x" not in (reference("{{ " + e + " }}") or "")]
    assert differences(plain) == []


CHAT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
from octavo import LLM
with LLM(max_model_len=64, max_num_seqs=1, threads=1) as llm:
    print(llm.render_chat([{"role": "user", "content": "hi"}]) != "")
"""


def test_a_small_address_space_is_enough() -> None:
    """Rendering asks for no large stack, which `ulimit -v` and strict overcommit count in full."""
    done = subprocess.run([sys.executable, "-c", CHAT], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 700 << 20
