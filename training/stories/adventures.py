"""Plots in which something happens: storms, contests, sounds at night, journeys."""

from __future__ import annotations

from .beat import Plot
from .common import ALONE_ENDING, ENDING, FEELING_GLAD, FEELING_SAD, HOME, MORNING, OPENING, REST, THANKS

STORM: Plot = (
    OPENING,
    (0.6, MORNING),
    (
        (
            "That night a great storm came. The wind [howled|roared], and the rain [beat against the "
            "windows|would not stop]."
        ),
        ("Dark clouds rolled over the {place}, and soon [thunder shook the walls|the rain fell like a curtain]."),
    ),
    (
        (
            "In the morning the bridge was broken, and nobody could [cross the river|get to the market|reach "
            "the other side]."
        ),
        "In the morning the roof of the school was gone, and everything inside was wet.",
        ("In the morning a big tree lay across the road, and [no cart could pass|the way to {town} was closed]."),
    ),
    (0.5, FEELING_SAD),
    (
        (
            '"We must [repair it|do something]," said {hero}. {He} [took a hammer and a rope|called all the '
            "neighbors|made a plan]."
        ),
        (
            "{Hero} did not wait. {He} [fetched some tools|knocked on every door|climbed onto a box] and "
            "asked everyone to help."
        ),
    ),
    (
        "{His} friend {friend} brought [wood|ropes|nails], and {his} {elder} brought {food}.",
        (
            "{His} friend {friend} carried the [heavy boards|long ropes], and {hero} [held the "
            "ladder|counted the nails|tied the knots]."
        ),
    ),
    REST,
    (
        "After {number} days the work was done, and it was [stronger|better] than before.",
        "When the sun came out again, everything was [repaired|as good as new].",
    ),
    FEELING_GLAD,
    (0.6, HOME),
    ENDING,
)

CONTEST: Plot = (
    OPENING,
    (
        ("Every [year|spring|autumn] there was a great [race|cooking contest|singing contest|boat race] in {town}."),
        "A sign on the wall said: the winner of the [race|contest] in {town} gets {a_color} {thing}.",
    ),
    (
        (
            '"You will never win," said [the others|a rude crow|the neighbors]. But {hero} [practiced every '
            "day|did not listen|only smiled]."
        ),
        ("{Hero} wanted to win more than anything, so {he} practiced every [morning|evening] for {number} weeks."),
    ),
    (
        "On the day of the contest the whole {place} came to watch. {Hero}'s heart beat [fast|like a drum].",
        "At last the day came. Flags were flying, and the smell of {food} filled the air.",
    ),
    (
        (
            "Halfway through, {hero} saw that {his} friend {friend} had [fallen|hurt {fhis} foot|lost {fhis} "
            "way]. {Hero} stopped at once."
        ),
        (
            "{Hero} was in front when {he} heard a cry. It was {his} friend {friend}, who [had slipped|was "
            "stuck in the mud]."
        ),
    ),
    (
        ('"Go on, you can still win," said {friend}. "[No|Never mind]," said {hero}. "You are more important."'),
        "{Hero} could have gone on, but {he} turned around and helped {friend} up.",
    ),
    (
        ("They [crossed the line|finished] together, and they were last. But everyone [cheered|stood up and clapped]."),
        "They did not win. Yet the judge smiled and gave the {thing} to {hero} for {his} kind heart.",
    ),
    (0.6, THANKS),
    (0.6, FEELING_GLAD),
    ENDING,
)

NIGHT_SOUND: Plot = (
    OPENING,
    (
        "One night {hero} heard a strange sound. [Tap, tap, tap|Creak, creak|Whoo, whoo], it went.",
        (
            "In the middle of the night a strange noise woke {hero}. It came from [the attic|the cellar|the "
            "garden|the old well]."
        ),
    ),
    (0.7, FEELING_SAD),
    (
        ("{He} took {a_thing} and a candle and [tiptoed down the stairs|opened the door very slowly|crept outside]."),
        (
            "{Hero} pulled the blanket over {his} head. But the sound did not stop, so {he} [lit a "
            "candle|got up] to look."
        ),
    ),
    (
        '"Who is there?" {he} whispered. Nobody answered, but the sound came [again|closer].',
        "The moon was bright, and [every shadow|every tree] looked like a giant.",
    ),
    (
        (
            "It was only {his} friend {friend}! {Fhe} had [lost {fhis} key|come to look at the stars|been "
            "locked out] and was [knocking at|leaning against] the wall."
        ),
        (
            "There sat [a tiny kitten|a baby bird|a wet puppy], shivering with cold. It had been [calling "
            "for its mother|scratching at the door]."
        ),
        "It was only [a branch|a loose shutter|a bucket] moving in the wind!",
    ),
    (
        '{Hero} laughed. ["I was afraid of nothing," {he} said.|All the fear was gone at once.]',
        '"So that is all it was," said {hero}, and {he} began to laugh.',
    ),
    (
        "{He} made [warm milk|a pot of tea] and put some {food} on the table.",
        "Then {he} fetched a blanket and some {food} and waited for the morning.",
    ),
    ALONE_ENDING,
)

JOURNEY: Plot = (
    OPENING,
    (
        ('One day a letter came from {town}. ["Please come quickly," it said.|It was from {friend}, who needed help.]'),
        (
            "{Hero} had always dreamed of seeing the [lighthouse|market|great clock] of {town}, which was "
            "{number} days away."
        ),
    ),
    (
        "{He} packed {food}, {a_thing} and a warm blanket, and [said goodbye to|kissed] {his} {elder}.",
        (
            '{His} {elder} gave {him} {a_color} {thing}. "[It will bring you luck|Keep it safe|You may need '
            'it]," said {his} {elder}.'
        ),
    ),
    (
        (
            "On the first day {he} walked through [a dark forest|green fields|a deep valley]. On the second "
            "day {he} came to a [wide river|steep hill|gate that was locked]."
        ),
        (
            "The road was long. It went over [hills|bridges] and through [woods|fields], and at night {he} "
            "slept under the stars."
        ),
    ),
    (
        (
            'There an old [woman|man] sat by the road. "I am so hungry," [the stranger said|said the '
            "stranger]. {Hero} shared {his} {food}."
        ),
        ("A small bird lay on the path with a broken wing. {Hero} [carried it|put it in {his} hat] and took it along."),
    ),
    (
        "Because {hero} had been kind, the stranger showed {him} a secret way.",
        "The next morning the way was easy, and a warm wind [pushed|carried] {him} along.",
    ),
    (
        (
            "At last {he} saw the towers of {town}. {His} friend {friend} was waiting at the gate and "
            "[waved|called {his} name]."
        ),
        "When {hero} came to {town}, the bells were ringing, and {friend} ran to meet {him}.",
    ),
    (0.7, FEELING_GLAD),
    (
        "They [talked|ate {other_food} and talked] until late at night.",
        "{Hero} stayed for {number} weeks, and every day was an adventure.",
    ),
    ENDING,
)
