"""The generators: the same from the same seed, and right where an answer can be checked."""

from __future__ import annotations

import json
import random
import re

import pytest

from training import arithmetic, conversation, corpus, extraction, lexicon, lookup, questions, world
from training.stories import segments, tell
from training.stories.plots import PLOTS

SEEDS = range(200)


@pytest.mark.parametrize("skill", sorted(corpus.MIX.shares))
def test_a_seed_gives_the_same_document(skill: str) -> None:
    def make(seed: int) -> object:
        rng = random.Random(seed)
        return lookup.document(rng, 300) if skill == "lookup" else corpus.generators()[skill](rng)

    assert make(7) == make(7)
    assert make(7) != make(8), "two seeds gave one document"


def test_stories_are_complete_and_of_the_stated_length() -> None:
    texts = [tell(random.Random(seed)) for seed in SEEDS]
    for seed, text in enumerate(texts):
        assert not re.search(r"[{}\[\]|]", text), f"seed {seed}: a template is left in: {text}"
        assert 40 <= len(text.split()) <= 220, f"seed {seed}: {len(text.split())} words"
        assert text[0].isupper(), f"seed {seed}: {text}"
        assert text[-1] in '."!', f"seed {seed}: {text}"
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou\W]", text), f"seed {seed}: wrong article: {text}"
        assert not re.search(r"[.!?] [a-z]", text.replace('" ', "")), f"seed {seed}: lower case start: {text}"
    assert len(set(texts)) == len(texts), "two of 200 stories are the same"


def test_words_of_the_cast_count_more() -> None:
    for seed in SEEDS:
        text = tell(random.Random(seed))
        assert "".join(part.text for part in segments(text)) == text
    parts = segments("Pip was a fox. He met Moss.\n\nPip was glad.")
    assert [part.text for part in parts if part.weight > 1] == ["Pip", " fox", " He", " Moss"]


def test_every_plot_can_be_told_about_every_topic() -> None:
    assert len(PLOTS) >= 8
    for topic in lexicon.CREATURES + lexicon.THINGS:
        assert topic in tell(random.Random(topic), topic)


def test_a_fact_sentence_holds_its_answer_and_no_two_facts_share_a_question() -> None:
    owners: dict[str, questions.Fact] = {}
    for fact in questions.FACTS:
        assert fact.answer.removeprefix("the ") in fact.sentence
        for question in fact.questions:
            assert owners.setdefault(question, fact) is fact, f"{question} has two answers"


def test_the_world_is_consistent() -> None:
    towns = {town.name: town for town in world.TOWNS}
    assert world.CAPITAL in towns
    assert len({town.mayor for town in world.TOWNS}) == len(towns)
    people = {person.name: person for person in world.PEOPLE}
    for person in world.PEOPLE:
        assert person.town in towns
        assert people[person.friend].friend == person.name, f"{person.name}'s friend has another friend"
    for town in world.TOWNS:
        assert town.river in world.RIVERS
        assert town.road in towns
        assert town.miles > 0
    unknown = {name.split()[0] for name in people} & set(lexicon.GIRLS + lexicon.BOYS)
    assert not unknown, f"{unknown} are people of the world and also names that the model says it does not know"


@pytest.mark.parametrize("tokens", [80, 300, 2000])
def test_each_asked_key_stands_in_the_context_before(tokens: int) -> None:
    for seed in range(30):
        text = lookup.document(random.Random(seed), tokens).text
        asked = list(re.finditer(r"What is the key of (\w+)\?<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)<", text))
        if "What is" in text:
            assert asked
        for match in asked:
            assert f"\n{match[2]}\n" in "\n" + text[: match.start()].replace("<|im_start|>user", ""), match[0]
            assert f"key of {match[1]} is" in match[2]
        values: dict[str, str] = {}
        for key, value in re.findall(r"key of (\w+) is (\d{3})\.", text):
            assert values.setdefault(key, value) == value, f"seed {seed}: {key} has two values"


def test_a_ledger_weighs_values_only_where_they_can_be_known() -> None:
    for seed in range(20):
        known: set[str] = set()
        previous = ""
        for segment in lookup._ledger(random.Random(seed), 400).segments:
            stated = re.match(r"The key of (\w+) is (\d+)\.", segment.text)
            if stated:
                assert segment.weight < 1, f"seed {seed}: a fresh value has full weight"
                known.add(stated[1])
            elif segment.weight == 1:
                assert previous.split()[3] in known, f"seed {seed}: {previous}"
            previous = segment.text
        assert known


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="key words"):
        lookup.draw(random.Random(0), 10_000)
    assert len(set(lexicon.KEY_WORDS)) == len(lexicon.KEY_WORDS)


def test_sums_and_their_steps_are_right() -> None:
    names = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for seed in range(1000):
        turn = arithmetic.problem(random.Random(seed))
        equations = re.findall(r"([\d +*-]+) = (\d+)", turn.answer)
        assert equations
        for left, right in equations:
            first, *rest = left.split()
            total = int(first)
            for operator, number in zip(rest[::2], rest[1::2], strict=True):
                total = names[operator](total, int(number))
            assert total == int(right), f"seed {seed}: {turn.answer}"
        numbers = re.findall(r"\d+", turn.question)
        assert sorted(numbers) == sorted(re.findall(r"\d+", equations[-1][0])), f"seed {seed}: {turn}"


def test_json_answers_parse_and_hold_only_what_the_sentence_says() -> None:
    for seed in SEEDS:
        turn = extraction.problem(random.Random(seed))
        record = json.loads(turn.answer)
        assert record
        for key, value in record.items():
            assert key in turn.question
            assert str(value) in turn.question, f"seed {seed}: {value} is not in {turn.question}"


def test_unknown_questions_do_not_name_the_world() -> None:
    known = {question for fact in questions.FACTS for question in fact.questions}
    for seed in SEEDS:
        turn = conversation.unknown(random.Random(seed))
        assert turn.answer == "I don't know that."
        assert turn.question not in known
