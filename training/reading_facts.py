"""What the reading texts tell: fresh names, relations, and the ways to state and to ask a fact."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import lexicon
from .grammar import with_article

_STARTS = (
    "B", "Br", "C", "D", "Dr", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "St", "T", "V", "W", "El", "Al",
    "Or", "Is", "Un",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "au", "ou")
_MIDDLES = ("l", "n", "r", "s", "d", "m", "nd", "rt", "ll", "st", "v", "k", "b", "rn", "th", "g", "lm")
_TOWN_ENDS = ("ton", "by", "mere", "wick", "ford", "holm", "port", "dale", "ling", "gate", "ar", "en", "is", "o", "um")
_PERSON_ENDS = ("er", "an", "el", "in", "ock", "ley", "son", "ard", "ow", "ish", "a", "ell", "ant", "ick", "ens")
_RIVER_ENDS = ("e", "ow", "in", "ale", "a", "orn", "ell", "est", "une")
_FIRST_ENDS = ("a", "o", "en", "is", "us", "ia", "ett", "ina", "or", "el")

# Words for relations that only their name explains, and for values. No word of one list stands in another.
_ROLES = (
    "captain", "judge", "doctor", "baker", "teacher", "miller", "smith", "priest", "gardener", "painter", "guard",
    "singer", "weaver", "potter", "fisher", "shepherd", "carpenter", "tailor",
)  # fmt: skip
_FEATURES = (
    "tower", "bridge", "market", "bell", "garden", "fountain", "library", "gate", "school", "theater", "harbor",
    "garrison", "statue", "mill", "road", "hall", "inn", "park",
)  # fmt: skip
_WARES = (
    *lexicon.FOODS, "honey", "glass", "pottery", "lamps", "ropes", "tiles", "candles", "boats", "clocks", "drums",
    "kites", "carpets", "wine", "salt", "wool", "knives", "paper", "flutes", "baskets", "apples",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

Draw = Callable[[random.Random], str]


@dataclass(frozen=True)
class Relation:
    """One kind of fact. In the forms ``{x}`` is what the fact is about, ``{v}`` its value, ``{X}`` starts a sentence.

    Attributes:
        statements: sentences that state it. ``later``: sentences that come after one that names ``{x}``.
        questions: ways to ask for the value.
        answer: the sentence that answers, up to the value. ``{v}`` ends it.
    """

    statements: tuple[str, ...]
    later: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    value: Draw


def _name(rng: random.Random, ends: tuple[str, ...]) -> str:
    middle = rng.choice(_VOWELS) + rng.choice(_MIDDLES)
    if rng.random() < 0.2:
        middle += rng.choice(_VOWELS[:5]) + rng.choice(_MIDDLES[:8])
    return rng.choice(_STARTS) + middle + rng.choice(ends)


def town(rng: random.Random) -> str:
    """A fresh name of a town."""
    return _name(rng, _TOWN_ENDS)


def person(rng: random.Random) -> str:
    """A fresh name of a person: a first name, known or fresh, and a fresh family name."""
    first = rng.choice(lexicon.NAMES) if rng.random() < 0.4 else _name(rng, _FIRST_ENDS)
    return f"{first} {_name(rng, _PERSON_ENDS)}"


def river(rng: random.Random) -> str:
    """A fresh name of a river."""
    return _name(rng, _RIVER_ENDS)


def _choice(words: tuple[str, ...]) -> Draw:
    return lambda rng: rng.choice(words)


def _number(low: int, high: int, rng: random.Random) -> str:
    return str(rng.randint(low, high))


def _thing(rng: random.Random) -> str:
    return with_article(f"{rng.choice(lexicon.COLORS)} {rng.choice(lexicon.THINGS)}")


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}"


TOWN_RELATIONS = (
    Relation(
        (
            "The mayor of {x} is {v}.", "{v} is the mayor of {x}.", "{x} has a mayor named {v}.",
            "For [many|nine|some] years {v} has been the mayor of {x}.", "In {x} the mayor is called {v}.",
            "The people of {x} chose {v} as their mayor.", "The mayor of {x}, {v}, [is well liked|lives by the gate].",
        ),
        ("Its mayor is {v}.", "The mayor there is {v}.", "{v} is its mayor.", "The people chose {v} as their mayor."),
        (
            "Who is the mayor of {x}?", "What is the name of the mayor of {x}?", "Which person is the mayor of {x}?",
            "Who is mayor in {x}?",
        ),
        "The mayor of {x} is {v}.", person,
    ),
    Relation(
        (
            "{x} lies on the river {v}.", "The river {v} flows through {x}.", "{x} was built on the river {v}.",
            "The river of {x} is the {v}.", "The {v} is the river that flows through {x}.",
        ),
        ("It lies on the river {v}.", "The river {v} flows through it.", "The river there is the {v}."),
        (
            "Which river flows through {x}?", "What river is {x} on?", "What is the name of the river of {x}?",
            "On which river does {x} lie?",
        ),
        "{x} lies on the river {v}.", river,
    ),
    Relation(
        (
            "{x} is known for its {v}.", "People know {x} for its {v}.", "{x} sells its {v} [everywhere|far away].",
            "Travellers come to {x} for its {v}.", "What makes {x} famous is its {v}.",
        ),
        ("It is known for its {v}.", "People know it for its {v}.", "Travellers come for its {v}."),
        ("What is {x} known for?", "What is {x} famous for?", "For what is {x} known?", "Why do people know {x}?"),
        "{x} is known for its {v}.", _choice(_WARES),
    ),
    Relation(
        (
            "{x} was founded in {v}.", "In {v} people founded {x}.", "The town of {x} is as old as the year {v}.",
            "The first house of {x} was built in {v}.",
        ),
        ("It was founded in {v}.", "Its first house was built in {v}.", "People founded it in {v}."),
        ("When was {x} founded?", "In which year was {x} founded?", "In what year did people found {x}?"),
        "{x} was founded in {v}.", partial(_number, 700, 1899),
    ),
    Relation(
        (
            "{x} has {v} houses.", "There are {v} houses in {x}.", "{v} houses stand in {x}.",
            "The number of houses in {x} is {v}.",
        ),
        ("It has {v} houses.", "There are {v} houses in it.", "{v} houses stand there."),
        ("How many houses does {x} have?", "How many houses are there in {x}?", "What is the number of houses in {x}?"),
        "The number of houses in {x} is {v}.", partial(_number, 12, 980),
    ),
    Relation(
        (
            "The market of {x} is on {v}.", "{x} holds its market on {v}.", "On {v} there is a market in {x}.",
            "Every {v} the people of {x} go to the market.",
        ),
        ("Its market is on {v}.", "It holds its market on {v}.", "Every {v} the people go to the market."),
        ("On which day is the market of {x}?", "When does {x} hold its market?", "When is the market of {x}?"),
        "The market of {x} is on {v}.", _choice(lexicon.DAYS),
    ),
    Relation(
        (
            "The flag of {x} is {v}.", "{x} has a {v} flag.", "A {v} flag is the flag of {x}.",
            "{V} is the color of the flag of {x}.",
        ),
        ("Its flag is {v}.", "It has a {v} flag.", "The flag of the town is {v}."),
        ("What color is the flag of {x}?", "What is the color of the flag of {x}?", "Which color has the flag of {x}?"),
        "The flag of {x} is {v}.", _choice(lexicon.COLORS),
    ),
)  # fmt: skip

PERSON_RELATIONS = (
    Relation(
        (
            "{x} lives in {v}.", "The home of {x} is in {v}.", "In {v} lives {x}.", "{x} has a small house in {v}.",
            "{v} is the town where {x} lives.",
        ),
        ("[He|She] lives in {v}.", "[His|Her] home is in {v}.", "The town where [he|she] lives is {v}."),
        ("Where does {x} live?", "In which town does {x} live?", "Where is the home of {x}?"),
        "{x} lives in {v}.", town,
    ),
    Relation(
        (
            "{x} works as a {v}.", "{x} is a {v}.", "{x} earns a living as a {v}.", "The {v} {x} is [kind|busy|tall].",
            "The work of {x} is that of a {v}.",
        ),
        ("[He|She] works as a {v}.", "[He|She] is a {v}.", "[His|Her] work is that of a {v}."),
        ("What does {x} do?", "What is the job of {x}?", "What does {x} do for a living?", "As what does {x} work?"),
        "{x} is a {v}.", _choice(lexicon.TRADES + _ROLES[:9]),
    ),
    Relation(
        (
            "{x} is {v} years old.", "The age of {x} is {v}.", "{x} has turned {v} this year.",
            "At the age of {v}, {x} [still works|likes to walk].",
        ),
        ("[He|She] is {v} years old.", "[His|Her] age is {v}.", "[He|She] has turned {v} this year."),
        ("How old is {x}?", "What is the age of {x}?", "How many years old is {x}?"),
        "The age of {x} is {v}.", partial(_number, 12, 98),
    ),
    Relation(
        (
            "{x} likes to eat {v}.", "The favorite food of {x} is {v}.", "{V} is what {x} likes to eat.",
            "{x} eats {v} every [day|morning|Sunday].",
        ),
        ("[He|She] likes to eat {v}.", "[His|Her] favorite food is {v}.", "[He|She] eats {v} every day."),
        ("What does {x} like to eat?", "What is the favorite food of {x}?", "Which food does {x} like?"),
        "{x} likes to eat {v}.", _choice(lexicon.FOODS),
    ),
    Relation(
        (
            "{x} has {v}.", "{x} owns {v}.", "In the house of {x} there is {v}.", "{x} bought {v} [last week|in June].",
        ),
        ("[He|She] has {v}.", "[He|She] owns {v}.", "In [his|her] house there is {v}."),
        ("What does {x} own?", "What does {x} have?", "What is in the house of {x}?"),
        "{x} owns {v}.", _thing,
    ),
    Relation(
        (
            "The best friend of {x} is {v}.", "{x} has a friend named {v}.", "{v} is the best friend of {x}.",
            "{x} often walks with a good friend, {v}.",
        ),
        ("[His|Her] best friend is {v}.", "[He|She] has a friend named {v}.", "{v} is [his|her] best friend."),
        ("Who is the best friend of {x}?", "Who is a friend of {x}?", "What is the name of the friend of {x}?"),
        "The best friend of {x} is {v}.", person,
    ),
    Relation(
        (
            "{x} was born on {v}.", "The birthday of {x} is on {v}.", "On {v}, {x} has a birthday.",
            "{v} is the day on which {x} was born.",
        ),
        ("[He|She] was born on {v}.", "[His|Her] birthday is on {v}.", "{v} is [his|her] birthday."),
        ("When was {x} born?", "When is the birthday of {x}?", "On which day was {x} born?"),
        "The birthday of {x} is on {v}.", _date,
    ),
)  # fmt: skip


def named_relation(noun: str, value: Draw, word: str) -> Relation:
    """A relation that only ``noun`` names: the captain, the bridge, the falcon of somebody. ``word``: Who or What."""
    return Relation(
        (
            f"The {noun} of {{x}} is {{v}}.", f"{{v}} is the {noun} of {{x}}.", f"{{x}} has {{v}} as its {noun}.",
            f"As its {noun} {{x}} has {{v}}.", f"In {{x}} the {noun} is {{v}}.", f"The {noun} that {{x}} has is {{v}}.",
        ),
        (f"Its {noun} is {{v}}.", f"The {noun} there is {{v}}.", f"{{v}} is its {noun}."),
        (
            f"{word} is the {noun} of {{x}}?", f"What is the name of the {noun} of {{x}}?",
            f"Name the {noun} of {{x}}.", f"Which {noun} does {{x}} have?",
        ),
        f"The {noun} of {{x}} is {{v}}.", value,
    )  # fmt: skip


NAMED_RELATIONS = (
    *(named_relation(noun, person, "Who") for noun in _ROLES),
    *(named_relation(noun, town, "What") for noun in _FEATURES),
    *(named_relation(noun, _choice(lexicon.KEY_WORDS), "What") for noun in ("sign", "seal", "tree", "bird", "stone")),
)
