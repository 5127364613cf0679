"""Two made-up domains that no model can know: registers, and prose about towns. All names and values are fresh."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training import lookup, reading
from training.reading_facts import TOWN_RELATIONS, town


@dataclass(frozen=True)
class Question:
    """A fact of the domain: its question in two forms, the value that answers it, and a sentence that does.

    ``passage``: where it stands.
    """

    forms: tuple[str, str]
    value: str
    answer: str
    statements: tuple[str, ...]
    passage: int


@dataclass(frozen=True)
class Domain:
    """A text in passages, and the questions for it."""

    name: str
    passages: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The whole text, as it goes into a pack."""
        return "\n\n".join(self.passages)


def registers(seed: int, count: int = 100, per_passage: int = 10) -> Domain:
    """Lines "The key of X is N.": the form that the embedded model was always trained to look up."""
    entries = lookup.draw(random.Random(f"knowledge/registers/{seed}"), count)
    groups = [entries[i : i + per_passage] for i in range(0, count, per_passage)]
    return Domain(
        "registers",
        tuple("\n".join(entry.line for entry in group) for group in groups),
        tuple(
            Question(
                (f"Name the key of {entry.key}.", entry.question),
                entry.value,
                entry.line,
                (entry.line,),
                i // per_passage,
            )
            for i, entry in enumerate(entries)
        ),
    )


def towns(seed: int, count: int = 16, relations: int = 3) -> Domain:
    """A paragraph for each of ``count`` towns, with ``relations`` facts each: its mayor, its river, its ware, ..."""
    rng = random.Random(f"knowledge/towns/{seed}")
    names: list[str] = []
    while len(names) < count:
        name = town(rng)
        if name not in names:
            names.append(name)
    passages, questions = [], []
    for index, name in enumerate(names):
        facts = [reading.Fact(name, relation, relation.value(rng)) for relation in TOWN_RELATIONS[:relations]]
        rng.shuffle(facts)
        passages.append(paragraph(facts, rng))
        for fact in facts:
            forms = (fact.form(fact.relation.questions[0], rng), fact.form(fact.relation.questions[1], rng))
            statements = tuple(fact.form(template, rng) for template in fact.relation.statements)
            questions.append(Question(forms, fact.value, fact.answer(), statements, index))
    return Domain("prose", tuple(passages), tuple(questions))


def paragraph(facts: list[reading.Fact], rng: random.Random) -> str:
    """The facts of one thing: the first sentence names it, the later ones may say ``it``."""
    sentences = [facts[0].form(rng.choice(facts[0].relation.statements), rng)]
    for fact in facts[1:]:
        forms = fact.relation.later if rng.random() < 0.5 else fact.relation.statements
        sentences.append(fact.form(rng.choice(forms), rng))
    return " ".join(sentences)
