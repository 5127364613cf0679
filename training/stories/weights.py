"""Which words of a story count more: those of its cast, above all the names."""

from __future__ import annotations

import re

from .. import lexicon
from ..document import CAST_WEIGHT, Segment

_PRONOUNS = ("he", "she", "him", "her", "his")
_CAST = frozenset(
    word.lower()
    for words in (
        lexicon.NAMES, lexicon.CREATURES, lexicon.THINGS, lexicon.COLORS, lexicon.FOODS, lexicon.PLACES,
        lexicon.CITIES, _PRONOUNS,
    )
    for phrase in words
    for word in phrase.split()
)  # fmt: skip
# As the tokenizer parts them: a word goes with the space before it.
_WORD = re.compile(r" ?[A-Za-z]+")


def segments(story: str) -> tuple[Segment, ...]:
    """The text of a story in segments; a word of its cast weighs ``CAST_WEIGHT``.

    It does so at its first mention too: were only repeats to count more, the model would rather repeat the hero's name
    than bring in a friend.
    """
    found: list[Segment] = []
    start = 0
    for match in _WORD.finditer(story):
        # After a line break a cut would change the tokens of the break.
        if match[0].strip().lower() in _CAST and not story[: match.start()].endswith("\n"):
            found += [Segment(story[start : match.start()]), Segment(match[0], CAST_WEIGHT)]
            start = match.end()
    return tuple(segment for segment in (*found, Segment(story[start:])) if segment.text)
