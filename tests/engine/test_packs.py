"""Packs: answers have the bits of the full text, the memory is shared, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import assert_all_blocks_free
from octavo import LLM, SamplingParams, errors
from octavo.packs import SEPARATOR, join_documents, read_pack

FACTS = [f"The key of {name} is {number}." for number, name in enumerate(("Aro", "Bel", "Cid", "Dun", "Eli"), 4100)]
DOCUMENTS = {"keys.md": "\n".join(FACTS * 4), "more.md": "\n".join(reversed(FACTS * 3))}
QUESTION = "What is the key of Cid?"


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "logprobs": 2, **fields})


@pytest.fixture(scope="module")
def text_pack(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "facts.pack"
    llm.make_pack(DOCUMENTS, path, form="text")
    return path


@pytest.fixture(scope="module")
def chat_pack(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "facts.pack"
    llm.make_pack(DOCUMENTS, path, system="Answer from these.", form="chat")
    return path


@pytest.fixture
def loaded(llm: LLM, text_pack: Path) -> Iterator[LLM]:
    llm.load_pack("facts", text_pack)
    yield llm
    for pack in llm.packs():
        llm.unload_pack(pack.name)


def bits(output: Any) -> list[Any]:
    """Tokens and log-probabilities."""
    return [
        (o.token_ids, o.cumulative_logprob, [[p.logprob for p in row.values()] for row in o.logprobs])
        for o in output.outputs
    ]


def full_text() -> str:
    return join_documents(DOCUMENTS)[0] + SEPARATOR


def test_output_has_the_bits_of_the_full_text(loaded: LLM, text_pack: Path) -> None:
    with LLM(enable_prefix_caching=False) as fresh:
        expected = fresh.generate(full_text() + QUESTION, params())[0]
    [pack] = loaded.packs()
    found = loaded.generate(QUESTION, params(pack="facts"))[0]
    assert bits(found) == bits(expected)
    assert found.prompt_token_ids == expected.prompt_token_ids
    assert found.metrics is not None and found.metrics.cached_prompt_tokens >= pack.tokens > 64
    assert pack.tokens % 32 == 0 and pack.name == "facts" and pack.form == "text" and pack.adapter is None
    assert [s.title for s in pack.sources] == ["keys.md", "more.md"]
    text = read_pack(text_pack)["text"]
    assert [text[s.start : s.end] for s in pack.sources] == [d.strip() for d in DOCUMENTS.values()]
