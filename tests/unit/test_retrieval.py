"""Retrieval: BM25 against a plain reference, passages, and how both serve a chat."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError, MissingDependencyError
from octavo.retrieval import Bm25, Retriever, passage_message, split_passages, split_words

pytest.importorskip("bm25s", reason="Bm25 needs pip install 'octavo[rag]'")

WORDS = ("amber", "bell", "castle", "drum", "eagle", "falcon", "the", "of", "is")


def reference(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, word by word in Python."""
    documents = [split_words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(texts)
    for word in split_words(query):
        having = sum(word in document for document in documents)
        weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        for i, document in enumerate(documents):
            count = Counter(document)[word]
            if count:
                scores[i] += weight * count / (count + k1 * (1 - b + b * len(document) / mean))
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    texts = [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for i in range(rng.randint(2, 40))]
    query = " ".join(rng.choices((*WORDS, "absent"), k=rng.randint(1, 5)))
    k1, b = rng.choice(((1.5, 0.75), (0.9, 0.4), (2.0, 1.0), (1.2, 0.0)))
    scores = reference(texts, query, k1, b)
    found = Bm25(texts, k1=k1, b=b).search(query, len(texts))
    assert len(found) == sum(score > 0 for score in scores)
    for text, score in found:
        assert score == pytest.approx(scores[texts.index(text)], rel=1e-4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_a_dict_gives_names_and_equal_scores_keep_their_order() -> None:
    retriever: Retriever = Bm25({"law": "a bell of amber", "myths": "an eagle", "more law": "a bell of amber"})
    assert [name for name, _ in retriever.search("Amber bells? A bell!", 3)] == ["law", "more law"]
    assert [name for name, _ in retriever.search("amber", 1)] == ["law"]
    assert isinstance(retriever, Retriever)


def test_nothing_in_common_finds_nothing() -> None:
    retriever = Bm25(["a bell", ""])
    assert retriever.search("falcon", 3) == []
    assert retriever.search("?!", 3) == []
    assert Bm25(["", "..."]).search("bell", 3) == []


def test_own_words() -> None:
    retriever = Bm25(["東京の塔", "大阪の城"], words=list)
    assert [text for text, _ in retriever.search("城", 2)] == ["大阪の城"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bm25([]), "texts is empty"),
        (lambda: Bm25("one text"), "texts is one string"),
        (lambda: Bm25(["a", 3]), r"texts\[1\] is a int"),
        (lambda: Bm25({"law": None}), r"texts\['law'\] is a NoneType"),
        (lambda: Bm25(["a"], k1=-1), "k1 is -1"),
        (lambda: Bm25(["a"], k1=math.nan), "k1 is nan"),
        (lambda: Bm25(["a"], b=1.5), "b is 1.5"),
        (lambda: Bm25(["a"]).search("a", 0), "k is 0"),
        (lambda: split_passages("a", size=0), "size is 0"),
        (lambda: split_passages("a", overlap=-1), "overlap is -1"),
    ],
)
def test_bad_values_are_named(call: object, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call()  # type: ignore[operator]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingDependencyError, match=r"octavo\[rag\]"):
        Bm25(["a bell"])


def test_passages_keep_headings_and_overlap() -> None:
    text = (
        "Intro here.\n\n# Bells #\nOne bell. Two bells.\nThree bells.\n\nFour bells. Five bells.\n## Drums\nA drum.\n"
    )
    assert split_passages(text, size=35, overlap=1) == [
        "Intro here.",
        "Bells\nOne bell. Two bells. Three bells.",
        "Bells\nFour bells. Five bells.",
        "Drums\nA drum.",
    ]
    assert split_passages("One. Two. Six.", size=10, overlap=1, title="T") == ["T\nOne. Two.", "T\nTwo. Six."]
    assert split_passages("  \n\n") == []


SENTENCES = st.lists(st.text("abc ", min_size=1, max_size=20).map(lambda s: s.strip() + "x."), min_size=1, max_size=12)


@given(st.lists(SENTENCES, min_size=1, max_size=5), st.integers(1, 80), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_passages_hold_every_sentence_in_order(paragraphs: list[list[str]], size: int, overlap: int) -> None:
    sentences = [" ".join(sentence.split()) for paragraph in paragraphs for sentence in paragraph]
    text = "\n\n".join(" ".join(" ".join(sentence.split()) for sentence in paragraph) for paragraph in paragraphs)
    passages = split_passages(text, size=size, overlap=0)
    assert " ".join(" ".join(passages).split()) == " ".join(sentences)
    for passage in split_passages(text, size=size, overlap=overlap):
        assert len(passage) <= max(size, max(map(len, sentences)))


def test_the_found_passage_is_the_system_message_of_a_chat() -> None:
    text = "\n\n".join(f"The key of {key} is {value}." for key, value in (("falcon", 482), ("marble", 917)))
    found = Bm25(split_passages(text, size=30)).search("What is the key of marble?", 1)
    assert passage_message(found, "Read this.") == {
        "role": "system", "content": "Read this.\n\nThe key of marble is 917.",
    }  # fmt: skip
    messages = [passage_message(found), {"role": "user", "content": "What is the key of marble?"}]
    with LLM() as llm:
        output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24))[0]
    assert "917" in output.text


def test_the_example_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "knowledge.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(f"{block}\nllm.close()\n", "knowledge.md", "exec"), {})
    assert "664" in capsys.readouterr().out
