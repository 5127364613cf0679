"""Plots about things and friends: losing, giving, growing, meeting, owning up."""

from __future__ import annotations

from .beat import Plot
from .common import (
    ALONE_ENDING,
    ENDING,
    FEELING_GLAD,
    FEELING_SAD,
    HOME,
    MEET_FRIEND,
    MORNING,
    OFFER_HELP,
    OPENING,
    THANKS,
)

LOST: Plot = (
    OPENING,
    (
        "{His} favorite thing in the world was {a_color} {thing} that {his} {elder} had given {him}.",
        ("{Hero} owned {a_color} {thing} and [took it everywhere|kept it under {his} bed|was very proud of it]."),
    ),
    MORNING,
    (
        (
            "But the {thing} was gone! {He} looked [under the bed|behind the door|in the garden] and [in "
            "every pocket|on every shelf], but {he} could not find it."
        ),
        (
            "When {he} reached for the {color} {thing}, it was not there. {He} searched [the whole "
            "house|every room|the garden], but [found nothing|the {thing} was nowhere to be seen]."
        ),
    ),
    (0.6, FEELING_SAD),
    MEET_FRIEND,
    OFFER_HELP,
    (
        (
            "They followed [the path|small footprints|the river] to [the old bridge|the edge of the "
            "woods|the market square]."
        ),
        (
            "First they looked [by the well|near the barn], then [behind the mill|under the bridge], and at "
            "last [on the hill|by the river]."
        ),
    ),
    (
        ("There, [high in a tree|in a nest of leaves|between two stones|under a bench], was the {color} {thing}!"),
        (
            "Suddenly {friend} [pointed|stopped]. Something {color} was shining [in the grass|between the "
            "roots|in the mud]. It was the {thing}!"
        ),
        (
            "[A magpie|A small bird|A puppy] had taken the {thing} and hidden it [in a hollow tree|under a "
            "bush]. {Hero} gently took it back."
        ),
    ),
    FEELING_GLAD,
    (0.6, THANKS),
    (0.5, HOME),
    ENDING,
)

GIFT: Plot = (
    OPENING,
    (
        (
            "The birthday of {his} friend {friend} was coming, and {hero} wanted to give {fhim} [something "
            "special|a wonderful gift]."
        ),
        ("{Hero} wanted to make a gift for {his} friend {friend}, who had been [ill|sad|lonely] for {number} days."),
    ),
    (
        ("But {hero} had no money. {He} had only [some paper|a bit of wood|an old box] and a pot of {color} paint."),
        (
            "At the market {he} saw a beautiful {thing}, but it cost [too much|{number} silver coins], and "
            "{hero} had only one."
        ),
    ),
    (0.6, FEELING_SAD),
    (
        '"A gift made by hand is the best gift," said {his} {elder}.',
        'Then {hero} had an idea. ["I can make it myself," {he} said.|{He} would make one {himself}.]',
    ),
    (
        (
            "All [week|night|day] {he} [cut and glued|worked|hammered and painted] until {a_color} {thing} "
            "stood on the table."
        ),
        "{He} worked by candle light for {number} nights, and slowly the {color} {thing} took shape.",
    ),
    (
        "It was a little crooked, but it [shone|looked lovely].",
        "It was not perfect, but {hero} had put {his} whole heart into it.",
    ),
    (
        (
            'When {friend} opened the box, {fhis} eyes grew wide. "{A_color} {thing}! [I love it|It is '
            'perfect|Did you make this]!" {fhe} said.'
        ),
        ('"Is this for me?" asked {friend}. {Hero} nodded. "It is the best {thing} in the world," said {friend}.'),
    ),
    FEELING_GLAD,
    (0.5, HOME),
    ENDING,
)

SEED: Plot = (
    OPENING,
    (
        ('One spring {his} {elder} gave {him} a small {color} seed. "[Plant it|Take care of it]," said {his} {elder}.'),
        (
            "On the road {hero} found a tiny {color} seed. {He} did not know what it was, but {he} put it in "
            "{his} pocket."
        ),
    ),
    (
        "{Hero} planted it [behind the house|by the wall|in an old pot] and watered it every day.",
        "{He} dug a hole, put the seed in, and covered it with earth.",
    ),
    (
        (
            'A week went by, and nothing happened. ["It will never grow," said {his} friend {friend}.|{His} '
            "friend {friend} shook {fhis} head.]"
        ),
        "{Number} weeks passed, and {friend} from next door laughed, for there was nothing to see but earth.",
    ),
    (
        "But {hero} was patient. {He} [sang to it|sat beside it|talked to it] every evening.",
        '"Wait and see," said {hero}, and {he} kept on watering.',
    ),
    (
        "Then, after a night of rain, a little green leaf came up.",
        "One {weather} morning a green tip looked out of the ground.",
    ),
    (
        (
            "It grew and grew, until it was [taller than the house|as tall as {his} {elder}], and it was "
            "full of {color} [flowers|apples|berries]."
        ),
        "By summer it was a fine bush with {color} flowers, and [bees|butterflies] came from far away.",
    ),
    FEELING_GLAD,
    (
        "They used the fruit to make {food}, and {friend} ate the most.",
        "{Hero} gave a flower to everyone in the {place}, and the first one to {friend}.",
    ),
    ENDING,
)

NEWCOMER: Plot = (
    OPENING,
    (
        ("One day a new family moved to the {place}. Their child was called {friend}, and {fhe} did not say a word."),
        ("{Friend} was new in the {place}, and {fhe} always sat alone [on the wall|under the big tree|by the well]."),
    ),
    (
        "The others [laughed and played|ran past], and nobody asked {friend} to join them.",
        '"{Friend} is strange," said the others. But {hero} was not so sure.',
    ),
    (
        (
            '{Hero} [took some {food}|picked up {his} {thing}] and sat down beside {fhim}. "Hello," {he} '
            'said. "I am {hero}."'
        ),
        '"Would you like some {food}?" asked {hero}. {Friend} looked up and [nodded|smiled a little].',
    ),
    (
        (
            "For a while they sat in silence. Then {friend} took {a_color} {thing} from {fhis} bag and "
            "[showed it to {hero}|put it on the grass]."
        ),
        '"I miss my old home," {friend} said [softly|at last]. {Hero} listened to every word.',
    ),
    (
        '"[That is beautiful|How clever]!" said {hero}. "[Can you teach me|Will you show the others]?"',
        '"Then let us make a new home here," said {hero}, and {he} took {fhis} hand.',
    ),
    (
        "Soon the others came to see, and by evening they were all [playing together|the best of friends].",
        (
            "The next day {friend} [told stories from far away|taught everyone a new game], and nobody "
            "thought {fhe} was strange."
        ),
    ),
    (0.6, FEELING_GLAD),
    (0.5, HOME),
    ENDING,
)

MISTAKE: Plot = (
    OPENING,
    (
        "{His} {elder} had {a_color} {thing} that nobody was allowed to touch.",
        "On the highest shelf stood {a_color} {thing}. It belonged to {his} friend {friend}.",
    ),
    MORNING,
    (
        (
            "{Hero} only wanted to look at the {thing}. But it slipped from {his} hands, and it [broke|fell "
            "to the floor with a crash]."
        ),
        ("{He} climbed on a chair and reached for the {thing}. Crash! It [broke in two|lay in pieces on the floor]."),
    ),
    FEELING_SAD,
    (
        "{He} thought of hiding [the pieces|it] under the rug. But that did not feel right.",
        '"I could say it was the cat," thought {hero}. But {he} knew that it would be a lie.',
    ),
    (
        'So {hero} told the truth. "I broke the {thing}," {he} said. "I am very sorry."',
        'In the evening {hero} said, "It was me. I broke the {thing}. Please forgive me."',
    ),
    (
        (
            'It was quiet for a moment. "Thank you for telling me," came the answer. "[A thing can be '
            'repaired|Being honest is hard, and you did it]."'
        ),
        "There was no shouting. There was only a [warm hug|kind smile] and a pot of glue.",
    ),
    (
        "Together they glued the {thing}, and you could hardly see [where it was broken|the crack].",
        "They worked on it together until it was whole again, and then they ate {food}.",
    ),
    ALONE_ENDING,
)
