"""Who and what a story is about: the slots that its sentences are filled with."""

from __future__ import annotations

import random

from .. import lexicon
from ..grammar import with_article

_PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}


def cast(rng: random.Random, topic: str | None = None) -> dict[str, str]:
    """Draws the slots of one story. ``topic``, a creature or a thing of the lexicon, takes its role in it."""
    creature = topic in lexicon.CREATURES or (topic is None and rng.random() < 0.4)
    sex = rng.choice(("girl", "boy"))
    he, him, his = _PRONOUNS[sex]
    trait, other_trait = rng.sample(lexicon.TRAITS, 2)
    if creature:
        kind = topic if topic is not None else rng.choice(lexicon.CREATURES)
        friend_kind = rng.choice([name for name in lexicon.CREATURES if name != kind])
        hero = rng.choice(lexicon.CREATURE_GIRLS if sex == "girl" else lexicon.CREATURE_BOYS)
        friend = rng.choice([name for name in lexicon.CREATURE_GIRLS + lexicon.CREATURE_BOYS if name != hero])
        noun, friend_noun = kind, friend_kind
    else:
        hero = rng.choice(lexicon.GIRLS if sex == "girl" else lexicon.BOYS)
        friend = rng.choice([name for name in lexicon.GIRLS + lexicon.BOYS if name != hero])
        noun = rng.choice((sex, f"young {rng.choice(lexicon.TRADES)}", f"little {sex}"))
        friend_noun = "friend"
    friend_sex = "girl" if friend in lexicon.GIRLS + lexicon.CREATURE_GIRLS else "boy"
    friend_he, friend_him, friend_his = _PRONOUNS[friend_sex]
    thing = topic if topic in lexicon.THINGS else rng.choice(lexicon.THINGS)
    color = rng.choice(lexicon.COLORS)
    first, second = rng.sample(lexicon.FOODS, 2)
    elder = rng.choice(("grandmother", "grandfather", "mother", "father", "aunt", "uncle"))
    place = rng.choice(lexicon.PLACES)
    return {
        "hero": hero, "he": he, "him": him, "his": his, "himself": f"{him}self",
        "noun": noun, "a_noun": with_article(noun),
        "trait": trait, "a_trait": with_article(trait), "other_trait": other_trait,
        "friend": friend, "friend_noun": friend_noun,
        "fhe": friend_he, "fhim": friend_him, "fhis": friend_his,
        "thing": thing, "a_thing": with_article(thing), "color": color, "a_color": with_article(color),
        "food": first, "other_food": second, "elder": elder, "place": place, "a_place": with_article(place),
        "weather": rng.choice(lexicon.WEATHERS), "town": rng.choice(lexicon.CITIES),
        "number": rng.choice(("two", "three", "four", "five", "seven")),
    }  # fmt: skip
