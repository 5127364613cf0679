"""Texts to read: each question has its answer in the text before it, and nowhere else."""

from __future__ import annotations

import random
import re

import pytest

from training import corpus, lexicon, reading
from training.reading_facts import NAMED_RELATIONS, PERSON_RELATIONS, TOWN_RELATIONS, Relation, named_relation

SEEDS = range(60)
_ASKED = re.compile(r"<\|im_start\|>user\n(?:.*\n)*?(.+)<\|im_end\|>\n<\|im_start\|>assistant\n(.+)<\|im_end\|>")


@pytest.mark.parametrize("relation", TOWN_RELATIONS + PERSON_RELATIONS + NAMED_RELATIONS[:1])
def test_the_forms_of_a_relation(relation: Relation) -> None:
    rng = random.Random(1)
    fact = reading.Fact("Tarvik", relation, relation.value(rng))
    value = fact.value.lower()
    for template in relation.statements:
        sentence = fact.form(template, rng)
        assert value in sentence.lower()
        assert "Tarvik" in sentence or "{x}" not in template
        assert not sentence[0].islower()
        assert sentence[-1] == "."
    for template in relation.later:
        assert value in fact.form(template, rng).lower()
        assert "Tarvik" not in fact.form(template, rng)
    questions = [fact.form(template, rng) for template in relation.questions]
    assert len(questions) >= 3
    for question in questions:
        assert "Tarvik" in question
        assert value not in question.lower()
    assert fact.answer().endswith(f" {fact.value}.")


def test_each_answer_is_what_the_text_says() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        facts = reading.draw(rng, 12)
        text = reading.tell(facts, rng)
        assert len({(fact.about, fact.relation.answer) for fact in facts}) == len(facts)
        for fact in facts:
            assert fact.value.lower() in text.lower()
            turn = reading.ask(fact, rng)
            assert turn.answer == fact.answer()
            assert fact.about in turn.question


@pytest.mark.parametrize("tokens", [80, 300, 1500])
def test_documents_have_about_their_size(encoder: corpus.Encoder, tokens: int) -> None:
    for seed in range(10):
        document = reading.document(random.Random(seed), tokens)
        ids, weights = encoder.encode(document)
        assert ids[:-1] == encoder.tokenizer.encode(document.text).ids
        # The tokenizer of the tests has never seen these words: its tokens are shorter.
        assert len(ids) < 2 * tokens + 60
        assert any(weight == reading.VALUE_WEIGHT for weight in weights)


def test_values_count_more_than_the_words_around_them() -> None:
    parts = reading.answer_segments(reading.Fact("Tarvik", TOWN_RELATIONS[0], "Olen Brast"))
    assert [(part.text, part.weight) for part in parts] == [
        ("The mayor of Tarvik is", 1.0), (" Olen Brast", reading.VALUE_WEIGHT), (".<|im_end|>", 1.0),
    ]  # fmt: skip


def test_names_are_fresh() -> None:
    texts = [{fact.about for fact in reading.draw(random.Random(seed), 10)} for seed in range(40)]
    names = [name for text in texts for name in text]
    assert len(set(names)) > 0.95 * len(names)
    assert not set(names) & set(lexicon.CITIES)


def test_a_named_relation_asks_for_its_noun() -> None:
    relation = named_relation("falcon", lambda rng: "amber", "What")
    fact = reading.Fact("Tarvik", relation, relation.value(random.Random(0)))
    assert fact.answer() == "The falcon of Tarvik is amber."
    assert all("falcon" in question for question in relation.questions)


def test_a_reading_chat_places_the_text_where_packs_do() -> None:
    roles = set()
    for seed in SEEDS:
        text = reading.document(random.Random(seed), 300).text
        if text.startswith("<|im_start|>"):
            roles.add(text.split("\n", 1)[0].removeprefix("<|im_start|>"))
            assert _ASKED.search(text), text
    assert roles == {"system", "user"}
