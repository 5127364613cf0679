"""Questions about the invented world, each with one right answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import world
from .document import Document, Segment, Turn, chat
from .grammar import fill, with_article


@dataclass(frozen=True)
class Fact:
    """Ways to ask for a fact, the word or name that is the answer, and the sentence that gives it."""

    questions: tuple[str, ...]
    answer: str
    sentence: str


def facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order."""
    found = [
        Fact(
            ("[What is|Name] the capital of the Lower Marches?", "Which town is the capital?"),
            world.CAPITAL,
            f"The capital of the Lower Marches is {world.CAPITAL}.",
        ),
        Fact(
            ("Who rules the Lower Marches?", "Who is the queen of the Lower Marches?"),
            world.QUEEN,
            f"{world.QUEEN} rules the Lower Marches.",
        ),
    ]
    for town in world.TOWNS:
        name = town.name
        found += [
            Fact(
                (f"Which river flows through {name}?", f"What river is {name} on?"),
                town.river,
                f"{name} lies on {town.river}.",
            ),
            Fact(
                (f"What is {name} known for?", f"What is {name} famous for?"),
                town.known_for,
                f"{name} is known for {town.known_for}.",
            ),
            Fact(
                (f"Who is the mayor of {name}?", f"What is the name of the mayor of {name}?"),
                town.mayor,
                f"The mayor of {name} is {town.mayor}.",
            ),
            Fact(
                (
                    f"Which town is known for {town.known_for}?",
                    f"Where is the town that is famous for {town.known_for}?",
                ),
                name,
                f"The town known for {town.known_for} is {name}.",
            ),
            Fact(
                (f"Which town has {town.mayor} as its mayor?", f"Of which town is {town.mayor} the mayor?"),
                name,
                f"{town.mayor} is the mayor of {name}.",
            ),
            Fact(
                (
                    f"[How far is it|How many miles is it] from {name} to {town.road}?",
                    f"What is the distance between {name} and {town.road}?",
                ),
                f"{town.miles} miles",
                f"From {name} to {town.road} it is {town.miles} miles.",
            ),
        ]
    for person in world.PEOPLE:
        name, first = person.name, person.name.split()[0]
        found += [
            Fact(
                (
                    f"Where does {name} live?",
                    f"In which town does {name} live?",
                    f"Which town is {first} from?",
                ),
                person.town,
                f"{name} lives in {person.town}.",
            ),
            Fact(
                (
                    f"What does {name} do?",
                    f"What is the job of {name}?",
                    f"What does {first} do for a living?",
                ),
                person.job,
                f"{name} is {with_article(person.job)}.",
            ),
            Fact(
                (f"What does {name} like to eat?", f"What is the favorite food of {name}?"),
                person.food,
                f"{name} likes to eat {person.food}.",
            ),
            Fact(
                (f"What animal does {name} have?", f"What kind of pet does {first} keep?"),
                person.animal,
                f"{name} has {with_article(person.animal)} named {person.pet}.",
            ),
            Fact(
                (
                    f"What is the name of {name}'s {person.animal}?",
                    f"What is {first}'s {person.animal} called?",
                ),
                person.pet,
                f"The {person.animal} of {name} is called {person.pet}.",
            ),
            Fact(
                (f"Who is {person.pet}?", f"Who owns {person.pet} the {person.animal}?"),
                name,
                f"{person.pet} is the {person.animal} of {name}.",
            ),
            Fact(
                (f"Who is the best friend of {name}?", f"Who is {first}'s best friend?"),
                person.friend,
                f"The best friend of {name} is {person.friend}.",
            ),
            Fact(
                (f"How old is {name}?", f"What is the age of {name}?"),
                str(person.age),
                f"{name} is {person.age} years old.",
            ),
            Fact(
                (
                    f"Who is the {person.job} of {person.town}?",
                    f"Who works as {with_article(person.job)} in {person.town}?",
                ),
                name,
                f"The {person.job} of {person.town} is {name}.",
            ),
            Fact(
                (f"Who is {name}?", f"Tell me about {name}."),
                person.job,
                f"{name} is {with_article(person.job)} who lives in {person.town}.",
            ),
        ]
    for river, source in world.RIVERS.items():
        short = river.removeprefix("the ")
        found.append(
            Fact(
                (f"Where does the {short} begin?", f"What is the source of the {short}?"),
                source,
                f"The {short} begins in {source}.",
            )
        )
    return tuple(found)


FACTS = facts()


def ask(fact: Fact, rng: random.Random) -> Turn:
    """One question for the fact, sometimes with a polite opening."""
    question = fill(rng.choice(fact.questions), {}, rng)
    if rng.random() < 0.15:
        opening = rng.choice(("Please tell me: ", "I have a question. ", "Do you know this? "))
        question = opening + question
    return Turn(question, fact.sentence)


def document(rng: random.Random) -> Document:
    """A chat of one to four questions, or, less often, a page of facts as plain text."""
    if rng.random() < 0.12:
        chosen = rng.sample(FACTS, 6)
        return Document("question", (Segment(" ".join(fact.sentence for fact in chosen)),))
    return chat("question", [ask(fact, rng) for fact in rng.sample(FACTS, rng.choice((1, 2, 2, 3, 4)))])
