"""A small invented country, the Lower Marches. Its facts never change: a model can learn them by heart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Town:
    """A town and the facts about it. ``road`` is the next town along the road, ``miles`` the way to it."""

    name: str
    river: str
    known_for: str
    mayor: str
    road: str
    miles: int


@dataclass(frozen=True)
class Person:
    """Somebody who lives in the Lower Marches. ``pet`` is the animal with its name."""

    name: str
    town: str
    job: str
    food: str
    animal: str
    pet: str
    friend: str
    age: int


TOWNS = (
    Town("Alderby", "the Swale", "its honey", "Greta Holm", "Brackwell", 12),
    Town("Brackwell", "the Swale", "its bells", "Anders Vey", "Corrin", 9),
    Town("Corrin", "the Ember", "its red pottery", "Petra Lund", "Dunmere", 21),
    Town("Dunmere", "the Ember", "its black cheese", "Silas Grey", "Eastling", 15),
    Town("Eastling", "the Tarn", "its kites", "Mabel Strand", "Fennick", 7),
    Town("Fennick", "the Tarn", "its glass", "Rufus Hale", "Glimmerford", 18),
    Town("Glimmerford", "the Silverrun", "its lanterns", "Ines Marlow", "Harrowick", 30),
    Town("Harrowick", "the Silverrun", "its apple market", "Bruno Falk", "Ivelport", 24),
    Town("Ivelport", "the Wend", "its lighthouse", "Cora Finch", "Juneford", 11),
    Town("Juneford", "the Wend", "its clock tower", "Edgar Pell", "Alderby", 16),
)

PEOPLE = (
    Person("Amos Reed", "Alderby", "beekeeper", "honey cake", "dog", "Barley", "Tessa Quill", 41),
    Person("Tessa Quill", "Alderby", "teacher", "pea soup", "cat", "Ink", "Amos Reed", 33),
    Person("Boris Pike", "Brackwell", "bell maker", "plum tart", "goose", "Clapper", "Nell Archer", 58),
    Person("Nell Archer", "Brackwell", "weaver", "cheese", "goat", "Thistle", "Boris Pike", 27),
    Person("Cyril Moth", "Corrin", "potter", "carrot stew", "crow", "Smoke", "Dagny Frost", 62),
    Person("Dagny Frost", "Corrin", "doctor", "pancakes", "horse", "Comet", "Cyril Moth", 36),
    Person("Emil Stone", "Dunmere", "cheese maker", "warm bread", "donkey", "Rollo", "Lotte Brook", 49),
    Person("Lotte Brook", "Dunmere", "singer", "berry jam", "parrot", "Pepper", "Emil Stone", 24),
    Person("Frida Vale", "Eastling", "kite maker", "apple pie", "owl", "Minerva", "Gus Tallow", 31),
    Person("Gus Tallow", "Eastling", "candle maker", "nut biscuits", "mouse", "Crumb", "Frida Vale", 67),
    Person("Hanna Birch", "Fennick", "glass blower", "mushroom soup", "fox", "Ruddy", "Igor Lamb", 45),
    Person("Igor Lamb", "Fennick", "shepherd", "fresh rolls", "sheep", "Cloud", "Hanna Birch", 29),
    Person("Jasper Wick", "Glimmerford", "lantern maker", "pea soup", "otter", "Ripple", "Kira Dunn", 38),
    Person("Kira Dunn", "Glimmerford", "fisher", "pancakes", "duck", "Puddle", "Jasper Wick", 22),
    Person("Linus Orchard", "Harrowick", "gardener", "apple pie", "hedgehog", "Needle", "Mona Sparrow", 54),
    Person("Mona Sparrow", "Harrowick", "baker", "plum tart", "rabbit", "Velvet", "Linus Orchard", 30),
    Person("Nils Harbor", "Ivelport", "lighthouse keeper", "cheese", "turtle", "Anchor", "Olga Rowe", 71),
    Person("Olga Rowe", "Ivelport", "boat builder", "warm bread", "seal", "Bubble", "Nils Harbor", 43),
    Person("Piet Cogs", "Juneford", "clock maker", "berry jam", "canary", "Tick", "Rena Wolfe", 50),
    Person("Rena Wolfe", "Juneford", "painter", "carrot stew", "wolf", "Shade", "Piet Cogs", 35),
)

RIVERS = {
    "the Swale": "the Green Hills",
    "the Ember": "the Ash Mountains",
    "the Tarn": "Lake Tarn",
    "the Silverrun": "the Moon Glacier",
    "the Wend": "the Old Forest",
}

CAPITAL = "Glimmerford"
QUEEN = "Queen Isolde"
