"""Beats that many plots share, in the notation of grammar.py."""

from __future__ import annotations

OPENING = (
    "Once upon a time, there was {a_trait} {noun} named {hero} who lived in {a_place}.",
    "{Hero} was {a_trait} {noun} who lived [in|near] {a_place}.",
    (
        "Long ago, in {a_place} [far from any city|by the sea|below the hills], there lived {a_noun} named "
        "{hero}. {He} was {trait} and {other_trait}."
    ),
    "In a small house at the edge of {a_place} lived {a_trait} {noun} called {hero}.",
    "There once was {a_noun} named {hero}. Everyone in the {place} knew that {hero} was [very |]{trait}.",
    (
        "{Hero} the {noun} lived in {a_place} with {his} {elder}. {He} was {trait}, and {he} [loved|liked] "
        "to [sing|explore|ask questions|build things]."
    ),
)
MORNING = (
    ("One {weather} morning, {hero} [woke up early|got up before the sun|looked out of the window|opened the door]."),
    (
        "It was a {weather} day, and [the birds were singing|the wind smelled of rain|the sky was full of "
        "clouds|the air was still]."
    ),
    (
        "One {weather} [afternoon|evening], {hero} [was walking home|sat by the window|was sweeping the "
        "floor|was helping {his} {elder}]."
    ),
    ("One day, after [breakfast|lunch|a long night], {hero} [went outside|set out for a walk|went to the market]."),
)
MEET_FRIEND = (
    "On the way {he} met {friend}, {his} best friend.",
    "{Friend}, who lived next door, [came along|wanted to come too|was waiting by the gate].",
    "Just then {friend} came [running|walking] down the path.",
    "{His} friend {friend} was [sitting on a wall|eating {other_food}|resting under a tree] nearby.",
)
OFFER_HELP = (
    (
        '"[Can I help you|May I help|Do you need help]?" asked {friend}. "[Yes, please|Oh, yes|I would like '
        'that]," said {hero}.'
    ),
    (
        '"What is wrong?" asked {friend}. {Hero} told {fhim} everything. "Do not worry," said {friend}. "We '
        'will do it together."'
    ),
    (
        '"You look sad," said {friend}. "[Tell me why|What happened]?" So {hero} explained, and {friend} '
        "[nodded|listened carefully]."
    ),
    '{Friend} saw that {hero} was worried. "Let me help you," {fhe} said.',
)
REST = (
    "They sat down and shared [some|their] {food}.",
    "At noon they rested under [a tall tree|an old oak|the bridge] and ate {food}.",
    "{Hero} was tired, but {he} did not give up.",
    (
        "It took [a long time|all afternoon|many tries], but [nobody complained|they kept going|the two "
        "friends did not stop]."
    ),
)
FEELING_SAD = (
    "{Hero} felt [sad|worried|very small|afraid].",
    "{Hero} wanted to cry, but {he} took a deep breath instead.",
    '"Oh no," said {hero}. "What shall I do now?"',
    "For a moment {hero} did not know what to do.",
)
FEELING_GLAD = (
    "{Hero} [laughed with joy|smiled from ear to ear|was so happy that {he} danced|could hardly believe it].",
    '"[We did it|Look at that|How wonderful]!" cried {hero}.',
    "{Friend} clapped, and {hero} [bowed|blushed|laughed].",
    "{Hero} had never been so [happy|proud|glad].",
)
THANKS = (
    (
        '"Thank you, {friend}," said {hero}. "[You are a true friend|I could not have done it alone|I will '
        'never forget this]."'
    ),
    "{Hero} thanked {friend} and gave {fhim} [some of {his} {food}|a big hug|half of {his} {other_food}].",
    '"Thank you," said {hero}. "That is what friends are for," {friend} answered.',
)
HOME = (
    "That evening they [ate|shared] {food} by the fire and told the story to {his} {elder}.",
    (
        "When {he} came home, {his} {elder} had made {food}, and {hero} told {his} {elder} [all about it|the "
        "whole story]."
    ),
    "The sun was setting when they walked home, [tired and happy|singing all the way|hand in hand].",
    "Then they went home [together|under the stars|before it got dark], and there was {food} for everyone.",
)
# For plots in which the hero may be alone.
ALONE_ENDING = (
    (
        "And {hero} learned that [a small kindness can go a long way|it is good to ask for help|being "
        "{trait} is a gift|patience is worth more than gold]."
    ),
    "After that, {hero} was never [afraid|lonely|bored] again.",
    "{Hero} fell asleep with a smile that night.",
    ("And if you ever visit the {place}, you may still [hear|see] {hero} [singing|laughing|telling this story]."),
    "The end.",
)
ENDING = (
    "From that day on, {hero} and {friend} [were never apart|met every day|shared everything].",
    *ALONE_ENDING,
)
